"""The page: sections in a template, with its style and its script inside, and a policy that lets in nothing else."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from string import Template

from forecache._version import __version__
from forecache.report.html.data import ReportData
from forecache.report.html.markup import Html, join, tag
from forecache.report.html.sections import SECTIONS


def page(data: ReportData, command: str = "") -> str:
    """The whole HTML file. command: how the report was made, for its last line."""
    style, script = _asset("page.css"), _asset("page.js")
    found = [section(data) for section in SECTIONS]
    body = join(*(each for each in found if each))
    made = tag("footer", f"forecache {__version__}", *([" · ", tag("code", command)] if command else []))
    return Template(_asset("page.html")).substitute(
        policy=_policy(script),
        title=tag("title", f"{data.title} · forecache"),
        heading=tag("h1", data.title),
        style=style,
        script=script,
        body=body or tag("p", "There is nothing to show."),
        footer=made,
    )


def _policy(script: str) -> Html:
    """Only the style, the script and the images that stand in the page; inline attributes of style are sizes."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return tag("meta", http_equiv="Content-Security-Policy", content=f"{allowed}; base-uri 'none'; form-action 'none'")


def _asset(name: str) -> str:
    return files("forecache.report.html").joinpath(name).read_text(encoding="utf-8").strip("\n")
