"""Docstrings as Markdown: code and tables of examples, which stand there without a fence, get one."""

from __future__ import annotations

import ast
import re
from typing import Any

from griffe import Extension, Object


class Fenced(Extension):
    """Every docstring, as it is read."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Paragraph by paragraph."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The paragraphs that are code, or columns, in fences.

    >>> fenced("Say it.\\n\\nmethod = goc(fora(2), 0.8)")
    'Say it.\\n\\n```python\\nmethod = goc(fora(2), 0.8)\\n```'
    """
    paragraphs = re.split(r"\n{2,}", text.strip("\n"))
    return "\n\n".join(_fenced(paragraph) for paragraph in paragraphs)


def _fenced(paragraph: str) -> str:
    if is_code(paragraph):
        return f"```python\n{paragraph}\n```"
    return f"```text\n{paragraph}\n```" if is_columns(paragraph) else paragraph


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
