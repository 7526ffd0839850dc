"""What the scripts of this folder share: where results, pages and pictures are, and how a script writes them."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # scripts of training/ can be imported, too
RESULTS = ROOT / "benchmarks/results"
IMAGES = ROOT / "docs/images"
WORK = ROOT / "out"
"""Folder for rows that are measured once, so that an interrupted script continues."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def command(script: str, words: Iterable[str]) -> str:
    """The command line of a script, as a result records it."""
    return " ".join(["python", f"benchmarks/{script}", *words])


def save(name: str, document: Mapping[str, Any]) -> None:
    """Write a result, benchmarks/results/<name>.json."""
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def load(name: str) -> dict[str, Any]:
    """A result; empty if there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def page_with(marker: str) -> Path:
    """The page of docs/ that has a pair of markers, <!-- marker --> and <!-- /marker -->."""
    pages = [path for path in sorted((ROOT / "docs").rglob("*.md")) if f"<!-- /{marker} -->" in path.read_text("utf-8")]
    if len(pages) != 1:
        sys.exit(f"One page of docs/ needs the markers <!-- {marker} --> and <!-- /{marker} -->; {len(pages)} have.")
    return pages[0]


def fill_page(marker: str, lines: Sequence[str]) -> None:
    """Replace the text between a pair of markers in the page of docs/ that has them."""
    fill(page_with(marker), marker, lines)


def fill(path: Path, marker: str, lines: Sequence[str]) -> None:
    """Replace the text between <!-- marker --> and <!-- /marker --> in a file."""
    text = path.read_text(encoding="utf-8")
    pattern = rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)"
    new, count = re.subn(pattern, lambda match: match[1] + "\n".join(lines) + "\n" + match[2], text, flags=re.DOTALL)
    if count != 1:
        sys.exit(f"{path} needs the markers <!-- {marker} --> and <!-- /{marker} --> once.")
    path.write_text(new, encoding="utf-8")


def picture(marker: str, name: str, text: str) -> str:
    """Markdown for a picture of docs/images, on the page that has a pair of markers."""
    return f"![{text}]({os.path.relpath(IMAGES / name, page_with(marker).parent)})"


def machine(environment: Mapping[str, Any], *parts: str) -> str:
    """The hardware and the versions of a result, for the note under a table.

    parts: "threads", "diffusers", besides the CPU and torch.
    """
    threads = [f"{environment['threads']} threads"] if "threads" in parts else []
    diffusers = [f"diffusers {environment['diffusers']}"] if "diffusers" in parts else []
    return ", ".join([environment["cpu"], *threads, f"torch {environment['torch']}", *diffusers])
