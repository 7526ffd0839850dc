"""Docstrings as Markdown: code and columns, which stand there without a fence, get one; what is described gets bold."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from typing import Any

from griffe import Extension, Module, Object


class Written(Extension):
    """Every docstring of a package, once it is read."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """All objects that lie in it."""
        for each in _walk(pkg):
            if each.docstring is not None:
                each.docstring.value = written(each.docstring.value, _names(each))


def _walk(found: Object) -> Iterator[Object]:
    yield found
    for member in found.members.values():
        if not member.is_alias:
            yield from _walk(member)  # type: ignore[arg-type]


def _names(found: Object) -> set[str]:
    """Its parameters, or its members."""
    return {each.name for each in getattr(found, "parameters", ())} | set(found.members)


def written(text: str, names: Collection[str] = ()) -> str:
    """Paragraph by paragraph; names: what its sentences describe, as in ``anchor: which end ...``."""
    paragraphs = re.split(r"\n{2,}", text.strip("\n"))
    return "\n\n".join(_fenced(each) or _bold(each, names) for each in paragraphs)


def _fenced(paragraph: str) -> str | None:
    if is_code(paragraph):
        return f"```python\n{paragraph}\n```"
    return f"```text\n{paragraph}\n```" if is_columns(paragraph) else None


def is_code(paragraph: str) -> bool:
    """Whether it is Python that does something: an assignment, a `with`, a call."""
    try:
        tree = ast.parse(paragraph)
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Assign | ast.With | ast.Call) for node in ast.walk(tree))


def is_columns(paragraph: str) -> bool:
    """Whether most of its lines have words far apart."""
    lines = paragraph.splitlines()
    return sum(bool(re.search(r"\S {3,}\S", line)) for line in lines) > len(lines) / 2


def _bold(paragraph: str, names: Collection[str]) -> str:
    """``anchor: which end`` and ``v_min, v_max: how many`` with their names in bold, at the start of a sentence."""
    if not names or paragraph.startswith("    "):
        return paragraph
    name = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    pattern = rf"(^|(?<=[.;)]\s))((?:{name})(?:, (?:{name}))*)(?=:\s)"
    return re.sub(pattern, lambda found: ", ".join(f"**{each}**" for each in found[2].split(", ")), paragraph)
