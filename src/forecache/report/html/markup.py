"""HTML elements: their text is escaped, so that no text of a file can become markup."""

from __future__ import annotations

from html import escape


class Html(str):
    """Text that is HTML already; only `tag` and `join` make it."""

    __slots__ = ()


VOID = ("input", "meta", "img")
"""HTML elements without an end tag. SVG elements have one: an open `<rect>` would contain what follows it."""


def tag(name: str, *children: str, **attributes: str | float | None) -> Html:
    """``<name attributes>children</name>``; children that are not `Html`, and all attributes, are escaped.

    The attribute ``class_`` is written class, ``aria_label`` aria-label; an attribute of None is left out.
    """
    inner = "".join(child if isinstance(child, Html) else escape(child) for child in children)
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    opened = " ".join([name, *(f'{key}="{escape(_text(value))}"' for key, value in pairs)])
    return Html(f"<{opened}>" if name in VOID else f"<{opened}>{inner}</{name}>")


def join(*parts: str) -> Html:
    """The parts one after the other; parts that are not `Html` are escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def _text(value: str | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
