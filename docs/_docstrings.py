"""Docstrings as Markdown: code and columns are fenced, lines that describe fields become a list, names are bold."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from typing import Any

from griffe import Extension, Module, Object


class Written(Extension):
    """Rewrites every docstring of a package once griffe has read it."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Rewrite the docstrings of a package in place."""
        for documented in _walk(pkg):
            if documented.docstring is not None:
                documented.docstring.value = written(documented.docstring.value, _names(documented))


def _walk(root: Object) -> Iterator[Object]:
    yield root
    for member in root.members.values():
        if not member.is_alias:
            yield from _walk(member)  # type: ignore[arg-type]


def _names(documented: Object) -> set[str]:
    """The names that a docstring may describe: parameters and members."""
    return {parameter.name for parameter in getattr(documented, "parameters", ())} | set(documented.members)


def written(text: str, names: Collection[str] = ()) -> str:
    """A docstring as Markdown, paragraph by paragraph.

    names: parameters and members, which it describes as in ``anchor: which end ...``
    """
    paragraphs = re.split(r"\n{2,}", text.strip("\n"))
    return "\n\n".join(
        _fenced(paragraph) or _listed(paragraph, names) or _bold(paragraph, names) for paragraph in paragraphs
    )


def _fenced(paragraph: str) -> str | None:
    if is_code(paragraph):
        return f"```python\n{paragraph}\n```"
    return f"```text\n{paragraph}\n```" if is_columns(paragraph) else None


def is_code(paragraph: str) -> bool:
    """Whether a paragraph is Python with an assignment, a `with` or a call."""
    try:
        tree = ast.parse(paragraph)
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Assign | ast.With | ast.Call) for node in ast.walk(tree))


def is_columns(paragraph: str) -> bool:
    """Whether most lines of a paragraph have words that are set far apart."""
    lines = paragraph.splitlines()
    return sum(bool(re.search(r"\S {3,}\S", line)) for line in lines) > len(lines) / 2


def _alternatives(names: Collection[str]) -> str:
    return "|".join(sorted(map(re.escape, names), key=len, reverse=True))


def _listed(paragraph: str, names: Collection[str]) -> str | None:
    """A paragraph of one field a line, ``name: text`` with indented continuations, as a list; None for another one."""
    if not names:
        return None
    field = re.compile(rf"((?:{_alternatives(names)})(?:, (?:{_alternatives(names)}))*): (.*)")
    items = []
    for line in paragraph.splitlines():
        if match := field.fullmatch(line):
            items.append(f"- {_strong(match[1])}: {match[2]}")
        elif items and line.startswith("    "):
            items.append(line)
        else:
            return None
    return "\n".join(items) if sum(item.startswith("- ") for item in items) > 1 else None


def _bold(paragraph: str, names: Collection[str]) -> str:
    """Bold for the names in ``anchor: which end`` and ``v_min, v_max: how many`` at the start of a sentence."""
    if not names or paragraph.startswith("    "):
        return paragraph
    name = _alternatives(names)
    pattern = rf"(^|(?<=[.;)]\s))((?:{name})(?:, (?:{name}))*)(?=:\s)"
    return re.sub(pattern, lambda match: _strong(match[2]), paragraph)


def _strong(names: str) -> str:
    return ", ".join(f"**{name}**" for name in names.split(", "))
