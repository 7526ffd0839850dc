"""The data of a report, from whatever file it came, and the readers of untrusted values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forecache.parts.statistics import Statistics
from forecache.plan.plan import Plan
from forecache.report.html.films import Sheet

MAX_TEXT = 600
ErrorTable = tuple[tuple[str, ...], tuple[tuple[float | None, ...], ...]]
"""Names of sites, and their values by step."""


@dataclass(frozen=True)
class Row:
    """One plan, cache or pattern of a comparison; None or empty where the file does not say.

    name: name in tables and charts.
    method: the method's description.
    picture: the schedule, one sign a step.
    macs_ratio: MACs without a cache divided by the row's.
    time_ratio: time without a cache divided by the row's.
    quality: values by metric; `ReportData.better` says which direction is better.
    cache_bytes: peak cache memory in bytes.
    macs: multiply-accumulates, as the file counts them.
    more: further cells of the table, by the title of their column.
    """

    name: str
    method: str = ""
    picture: str = ""
    macs_ratio: float | None = None
    time_ratio: float | None = None
    quality: Mapping[str, float] = field(default_factory=dict)
    cache_bytes: float | None = None
    macs: float | None = None
    more: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Image:
    """A sample of a run.

    name: its label or prompt.
    png: the PNG file's bytes.
    uncached: the same sample without a cache, as a PNG; None if it was not sampled.
    psnr: PSNR of the two in dB; None if it is not known or they are equal.
    ssim: SSIM of the two; None if it is not known.
    film: frames of a video in the place of ``png``; None for an image.
    uncached_film: the same frames without a cache.
    """

    name: str
    png: bytes
    uncached: bytes | None = None
    psnr: float | None = None
    ssim: float | None = None
    film: Sheet | None = None
    uncached_film: Sheet | None = None


@dataclass(frozen=True)
class Tile:
    """A picture of a strip.

    name: of its column.
    image: the image, or the frames of a video.
    difference: its amplified difference to the first picture of the strip; None for that one.
    caption: its quality in a few words.
    """

    name: str
    image: Sheet
    difference: Sheet | None
    caption: str


@dataclass(frozen=True)
class Strip:
    """The pictures of one prompt and seed, one a column. name: of the prompt and the seed."""

    name: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Gallery:
    """The pictures of a comparison of methods. gain: factor of the differences."""

    strips: tuple[Strip, ...]
    gain: int


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows; empty fields are left out of the page.

    kind: a name of `kinds.KINDS`.
    title: the page's heading.
    plan: the plan, drawn cell by cell.
    statistics: statistics, drawn as curves and shades.
    rows: plans, caches or patterns to compare.
    better: by metric of the rows, "higher" or "lower".
    images: the samples.
    gallery: pictures of several columns; None for none.
    errors: by plan, the names of sites and the error of every estimate, [site][step]; None where it is not known.
    left_out: rows or images beyond the limits of a page.
    figures: of an evaluation, each (name, value, interval, samples, resamples).
    costs: cost by name, as text.
    facts: provenance, by heading and name.
    notes: sentences on how to read the figures.
    command: the command that made the result.
    """

    kind: str
    title: str
    plan: Plan | None = None
    statistics: Statistics | None = None
    rows: tuple[Row, ...] = ()
    better: Mapping[str, str] = field(default_factory=dict)
    images: tuple[Image, ...] = ()
    gallery: Gallery | None = None
    errors: Mapping[str, ErrorTable] = field(default_factory=dict)
    left_out: int = 0
    figures: tuple[tuple[str, ...], ...] = ()
    costs: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    command: str = ""


def number(value: Any) -> float | None:
    """A number that can be drawn, or the median of a spread; None for anything else."""
    value = value.get("median") if isinstance(value, dict) else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e18 else None


def text(value: Any) -> str:
    """Any value of a document as text of bounded length."""
    if isinstance(value, str):
        words = value
    elif value is None:
        words = ""
    elif isinstance(value, float):
        words = f"{value:.6g}"
    else:
        words = json.dumps(value)
    return words if len(words) <= MAX_TEXT else words[: MAX_TEXT - 1] + "…"


def texts(value: Any) -> dict[str, str]:
    """The entries of an object as text, without the empty ones; an empty mapping for anything else."""
    if not isinstance(value, dict):
        return {}
    entries = {text(str(name)): text(entry) for name, entry in list(value.items())[:60]}
    return {name: words for name, words in entries.items() if words not in ("", "{}", "[]")}


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []
