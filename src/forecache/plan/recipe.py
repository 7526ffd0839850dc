"""A recipe: the expression that made a method, as data that a file can hold.

    {"method": "goc", "eta": 0.8, "base": {"method": "fora", "interval": 2}}

This module knows its shape only; `forecache.methods.registry` knows the names and what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Recipe = Mapping[str, Any]
"""Names to numbers, strings, booleans, lists of these, or further such mappings; ``method`` names the method."""

MAX_DEPTH = 16
MAX_ENTRIES = 4096


def checked(value: Any) -> dict[str, Any]:
    """The recipe of a parsed file; ValueError where it has another shape."""
    if not isinstance(value, dict) or not isinstance(value.get("method"), str):
        raise ValueError("a recipe must be an object that names its method")
    _check(value, MAX_DEPTH)
    return value


def _check(value: Any, depth: int) -> None:
    if depth == 0:
        raise ValueError(f"a recipe must not be nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict | list):
        if len(value) > MAX_ENTRIES:
            raise ValueError(f"a recipe must not have a list of {len(value)} entries; {MAX_ENTRIES} are the most")
        for entry in value.values() if isinstance(value, dict) else value:
            _check(entry, depth - 1)
    elif not isinstance(value, str | bool | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("a recipe must hold numbers, strings, booleans, lists and objects")
