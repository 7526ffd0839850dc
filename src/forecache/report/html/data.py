"""What a report can be made of, whatever file it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forecache.parts.statistics import Statistics
from forecache.plan.plan import Plan

MAX_TEXT = 600


@dataclass(frozen=True)
class Row:
    """One plan, cache or pattern of a comparison; None or empty is not known. picture: one sign a step.

    macs_ratio, time_ratio: how many times fewer, and less. quality: by what it is called, with the better direction in
    `ReportData.better`.
    """

    name: str
    method: str = ""
    picture: str = ""
    macs_ratio: float | None = None
    time_ratio: float | None = None
    quality: Mapping[str, float] = field(default_factory=dict)
    cache_bytes: float | None = None
    macs: float | None = None


@dataclass(frozen=True)
class Image:
    """A PNG as it lies in the file, and the same sample without a cache, where there is one."""

    name: str
    png: bytes
    uncached: bytes | None = None
    psnr_db: float | None = None


@dataclass(frozen=True)
class ReportData:
    """All that a report shows. kind: as in `kinds.KINDS`. facts: provenance, by headings. command: that made it.

    better: "higher" or "lower" by quality. figures: of an evaluation, each (name, value, interval, samples).
    """

    kind: str
    title: str
    plan: Plan | None = None
    statistics: Statistics | None = None
    rows: tuple[Row, ...] = ()
    better: Mapping[str, str] = field(default_factory=dict)
    images: tuple[Image, ...] = ()
    left_out: int = 0
    figures: tuple[tuple[str, ...], ...] = ()
    costs: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    command: str = ""


def number(value: Any) -> float | None:
    """A number that can be drawn; None for anything else. Of a spread it is the median."""
    value = value.get("median") if isinstance(value, dict) else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e18 else None


def text(value: Any) -> str:
    """Any value of a document in words, of bounded length."""
    if isinstance(value, str):
        found = value
    elif value is None:
        found = ""
    elif isinstance(value, float):
        found = f"{value:.6g}"
    else:
        found = json.dumps(value)
    return found if len(found) <= MAX_TEXT else found[: MAX_TEXT - 1] + "…"


def texts(value: Any) -> dict[str, str]:
    """The entries of an object in words; those that hold nothing are left out. Nothing, for what is no object."""
    if not isinstance(value, dict):
        return {}
    found = {text(str(name)): text(each) for name, each in list(value.items())[:60]}
    return {name: each for name, each in found.items() if each not in ("", "{}", "[]")}


def mapping(value: Any) -> dict[str, Any]:
    """The value, if it is an object; else an empty one."""
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    """The value, if it is a list; else an empty one."""
    return value if isinstance(value, list) else []
