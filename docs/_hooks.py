"""Pages that mkdocs builds from outside of docs/: the changelog, the notebook, the service and the commands.

A link is read from where its file lies in the repository, and leads to the page of the file that it names. A file
without a page (code) is named without a link.
"""

from __future__ import annotations

import base64
import importlib
import json
import pkgutil
import posixpath
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

from forecache import cli

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/serve/README.md": "service.md",
}
"""Files of the repository outside of docs/ that have a page -> the page."""

NOTEBOOK = "docs/quickstart.ipynb"
PAGES = {**ELSEWHERE, NOTEBOOK: "quickstart.md"}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site with the generated pages added."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for name, content in notebook_files(ROOT / NOTEBOOK).items():
        files.append(File.generated(config, name, content=content))
    files.append(File.generated(config, "commands.md", content=commands_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text of a page with the links of the site."""
    origins = {name: source for source, name in PAGES.items()}
    origin = origins.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    known = {file.src_uri for file in files}
    return LINK.sub(lambda link: _linked(link, origin, page.file.src_uri, known), markdown)


def _linked(link: re.Match[str], origin: str, here: str, known: set[str]) -> str:
    text, target = link[1], link[2]
    path, hash_, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", target):
        return link[0]
    file = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
    if not (ROOT / file).exists() and file.removeprefix("docs/") not in known:
        return link[0]  # mkdocs reports that it leads nowhere
    page = PAGES.get(file, file.removeprefix("docs/"))
    if page not in known:
        return text if "`" in text else f"`{text}`"
    return f"[{text}]({posixpath.relpath(page, posixpath.dirname(here) or '.')}{hash_}{anchor})"


def commands_page() -> str:
    """The page of all commands with their options, as `--help` prints them."""
    for module in pkgutil.iter_modules(cli.__path__):
        importlib.import_module(f"forecache.cli.{module.name}")
    command = typer.main.get_command(importlib.import_module("forecache.cli.terminal").app)
    context = typer.Context(command, info_name="forecache")  # type: ignore[arg-type]
    text = get_docs_for_click(obj=command, ctx=context, name="forecache", title="The command line")
    title, *sections = text.replace("* `--help`: Show this message and exit.\n", "").split("\n## `")
    return "\n## `".join([title.partition("**Usage**")[0], *sections])


def notebook_files(path: Path) -> dict[str, str | bytes]:
    """The page of a notebook and its pictures, by their names in the site."""
    pictures: dict[str, bytes] = {}
    parts = []
    for cell_number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output_number, output in enumerate(cell.get("outputs", ())):
            parts.append(_output(output, f"images/{path.stem}-{cell_number}-{output_number}.png", pictures))
    parts.append(f'<a href="{path.name}" download>The notebook as a file</a>')
    return {**pictures, f"{path.stem}.md": "\n\n".join(filter(None, parts)) + "\n"}


def _output(output: dict[str, Any], name: str, pictures: dict[str, bytes]) -> str:
    """An output of a cell as Markdown; a picture is added to ``pictures`` under its name."""
    data = output.get("data", {})
    if "image/png" in data:
        pictures[name] = base64.b64decode("".join(data["image/png"]))
        return f"![Output]({name})"
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return f"```{{.text .output}}\n{text}\n```" if text else ""
