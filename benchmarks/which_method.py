"""The picture of docs/measured/methods.md: PSNR against MACs of everything that was measured on digits at 20 steps.

    python benchmarks/which_method.py                a few seconds

Measures nothing: reads benchmarks/results/quality-{intervals,corrections,l2c}.json, draws docs/images/which-method.png.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import common
import matplotlib.pyplot as plt

FAMILIES = {
    "reuse": ("FORA", "SmoothCache", "L2C", "random router"),
    "GOC": ("GOC", "GC"),
    "Taylor": ("Taylor",),
    "feedback": ("Feedback",),
    "EOC": ("EOC", "per channel"),
    "some tokens": ("ToCa",),
}
MARKS = {
    "feedback": ("#7a6a00", "P"),
    "reuse": ("#5c6270", "o"),
    "GOC": ("#c2570c", "s"),
    "Taylor": ("#1f5fbf", "^"),
    "EOC": ("#a02c7d", "D"),
    "some tokens": ("#1b7f5c", "v"),
}
"""Colour and marker of each family; the first is drawn on top."""

NAMED = {
    *("FORA, N = 2", "GOC 0.8, N = 2", "Taylor 1, N = 2", "FORA, N = 3", "GOC 0.8, N = 3", "Taylor 2, N = 3"),
    *("FORA, N = 4", "Feedback 2, 0.5, N = 4", "SmoothCache 0.2", "SmoothCache 0.5", "SmoothCache 0.5, Taylor 1"),
    *("ToCa 25 %, N = 4", "L2C 22 %", "L2C 22 % + GOC 1.0", "L2C 39 %", "L2C 39 %, GOC 1.0", "FORA 75 % + GOC 0.8"),
    "FORA 22 %, first odd calls",
}
"""The points that are labelled; labels on all of them would overlap."""


class Point(NamedTuple):
    """A plan.

    name: of the plan.
    fewer: times fewer MACs.
    decibels: mean PSNR over the seeds, in dB.
    """

    name: str
    fewer: float
    decibels: float


def points() -> list[Point]:
    """Every plan that was measured, once."""
    by_name: dict[str, Point] = {}
    for table in ("intervals", "corrections", "l2c"):
        seeds: Sequence[Mapping[str, Any]] = list(common.load(f"quality-{table}")["seeds"].values())
        for name in seeds[0]:
            if name != "no cache":
                rows = [seed[name] for seed in seeds]
                by_name.setdefault(
                    name, Point(name, rows[0]["macs_ratio"], statistics.fmean(row["psnr"] for row in rows))
                )
    return list(by_name.values())


def family(name: str) -> str:
    """The family of a plan: its correction if it has one."""
    order = ("EOC", "GOC", "feedback", "Taylor", "some tokens", "reuse")
    return next(family for family in order if any(word in name for word in FAMILIES[family]))


def main(words: Sequence[str]) -> None:
    common.parser(__doc__).parse_args(words)
    plt.switch_backend("Agg")
    figure, axis = plt.subplots(figsize=(8, 5.2), layout="constrained")
    plans = points()
    for name, (colour, mark) in reversed(MARKS.items()):
        members = [point for point in plans if family(point.name) == name]
        places = [point.fewer for point in members], [point.decibels for point in members]
        axis.scatter(*places, c=colour, marker=mark, s=26, label=name)
    for point in plans:
        if point.name in NAMED:
            axis.annotate(point.name, (point.fewer, point.decibels), (5, 3), textcoords="offset points", fontsize=7)
    axis.set_xlim(right=4.5)
    axis.set_xlabel("times fewer MACs")
    axis.set_ylabel("PSNR to the uncached samples, dB")
    axis.set_title("digits, DDIM-20: to the right and up is better", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(common.IMAGES / "which-method.png", dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
