"""Comparison of fingerprints and schedulers: whether two describe the same model or run, within rounding."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

TOLERANCE = 0.02
"""Relative difference up to which weights are the same. Rounding to bfloat16 or float16 makes less, training more."""


def is_same(a: str, b: str) -> bool:
    """Whether two fingerprints can be of one model. What one of them leaves out, such as the weights, is ignored."""
    if not a or not b:
        return True
    (structure_a, _, weights_a), (structure_b, _, weights_b) = a.partition(":"), b.partition(":")
    if structure_a != structure_b:
        return False
    if not weights_a or not weights_b:
        return True
    try:
        pairs = [(float(x), float(y)) for x, y in zip(weights_a.split(","), weights_b.split(","), strict=True)]
    except ValueError:  # a fingerprint that was edited by hand
        return False
    return all(math.isclose(x, y, rel_tol=TOLERANCE, abs_tol=1e-4) for x, y in pairs)


def scheduler_differences(a: str, b: str) -> list[str]:
    """The settings in which two schedulers differ, each as ``name: x, not y``; none if one scheduler is not known."""
    if not a or not b or a == b:
        return []
    left, right = _settings(a), _settings(b)
    names = sorted(set(left) | set(right))
    return [f"{name}: {left.get(name)}, not {right.get(name)}" for name in names if left.get(name) != right.get(name)]


def _settings(description: str) -> Mapping[str, Any]:
    """The class and settings that a description holds; a text that was edited by hand counts as a class."""
    try:
        settings = json.loads(description)
    except (ValueError, RecursionError):
        settings = None
    return settings if isinstance(settings, Mapping) else {"class": description}
