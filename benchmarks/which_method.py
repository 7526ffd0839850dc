"""The picture of docs/which-method.md: closeness against MACs of everything that was measured on digits at 20 steps.

    python benchmarks/which_method.py

Measures nothing: reads benchmarks/results/quality-{intervals,corrections,l2c}.json, draws docs/images/which-method.png.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from digits import ROOT

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
"""What is first lies on top."""

NAMED = {
    *("FORA, N = 2", "GOC 0.8, N = 2", "Taylor 1, N = 2", "FORA, N = 3", "GOC 0.8, N = 3", "Taylor 2, N = 3"),
    *("FORA, N = 4", "Feedback 2, 0.5, N = 4", "SmoothCache 0.2", "SmoothCache 0.5", "SmoothCache 0.5, Taylor 1"),
    *("ToCa 25 %, N = 4", "L2C 22 %", "L2C 22 % + GOC 1.0", "L2C 39 %", "L2C 39 %, GOC 1.0", "FORA 75 % + GOC 0.8"),
    "FORA 22 %, first odd calls",
}
"""The points that say their name; with all of them it could not be read."""


class Point(NamedTuple):
    """A plan: times fewer MACs, mean PSNR over the seeds."""

    name: str
    fewer: float
    decibels: float


def points() -> list[Point]:
    """Every plan that was measured, once."""
    found: dict[str, Point] = {}
    for table in ("intervals", "corrections", "l2c"):
        document = json.loads((ROOT / f"benchmarks/results/quality-{table}.json").read_text())
        seeds: Sequence[Mapping[str, Any]] = list(document["seeds"].values())
        for name in seeds[0]:
            if name != "no cache":
                rows = [seed[name] for seed in seeds]
                found.setdefault(
                    name, Point(name, rows[0]["macs_ratio"], statistics.fmean(row["psnr_db"] for row in rows))
                )
    return list(found.values())


def family(name: str) -> str:
    """What a plan is called after: its correction where it has one."""
    order = ("EOC", "GOC", "feedback", "Taylor", "some tokens", "reuse")
    return next(each for each in order if any(word in name for word in FAMILIES[each]))


def main() -> None:
    plt.switch_backend("Agg")
    figure, axis = plt.subplots(figsize=(8, 5.2), layout="constrained")
    every = points()
    for name, (colour, mark) in reversed(MARKS.items()):
        mine = [point for point in every if family(point.name) == name]
        axis.scatter([p.fewer for p in mine], [p.decibels for p in mine], c=colour, marker=mark, s=26, label=name)
    for point in every:
        if point.name in NAMED:
            axis.annotate(point.name, (point.fewer, point.decibels), (5, 3), textcoords="offset points", fontsize=7)
    axis.set_xlim(right=4.5)
    axis.set_xlabel("times fewer MACs")
    axis.set_ylabel("PSNR to the uncached samples, dB")
    axis.set_title("digits, DDIM-20: to the right and up is better", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(ROOT / "docs/images/which-method.png", dpi=110)


if __name__ == "__main__":
    main()
