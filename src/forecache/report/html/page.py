"""The page: sections in a template, with its style, its script, and a policy that admits nothing else."""

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
    """The HTML file of a report. command: the command that made the report, for its last line."""
    style, script = _asset("page.css"), _asset("page.js")
    body = join(*(section(data) for section in SECTIONS))
    footer = tag("footer", f"forecache {__version__}", *([" · ", tag("code", command)] if command else []))
    return Template(_asset("page.html")).substitute(
        policy=_policy(script),
        title=tag("title", f"{data.title} · forecache"),
        heading=tag("h1", data.title),
        style=style,
        script=script,
        body=body or tag("p", "There is nothing to show."),
        footer=footer,
    )


def _policy(script: str) -> Html:
    """Admits only the page's own style, script and images; inline style attributes are sizes."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return tag("meta", http_equiv="Content-Security-Policy", content=f"{allowed}; base-uri 'none'; form-action 'none'")


def _asset(name: str) -> str:
    return files("forecache.report.html").joinpath(name).read_text(encoding="utf-8").strip("\n")
