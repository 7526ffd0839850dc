"""Pictures of a tuning: what it found, and whether its model of the error knew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forecache.fit.tuning import Tuned
from forecache.parts import patterns
from forecache.report.figures import pyplot


def draw_tuned(tuned: Tuned, path: Path) -> None:
    """What tuning found: quality against computed steps, what the surrogate had expected, and the gains it learned."""
    plt = pyplot()
    figure, (front, expected, gains) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    steps = len(tuned.surrogate.gains)
    front.plot(
        [each.computed for each in tuned.trials],
        [each.psnr for each in tuned.trials],
        ".",
        color="0.7",
        label="searched, first noise",
    )
    for rows, style, name in (
        (tuned.even, "s--", "even steps, all noise"),
        (tuned.best, "o-", "tuned, all noise"),
    ):
        ordered = sorted(rows, key=lambda each: each.computed)
        front.plot([each.computed for each in ordered], [each.psnr for each in ordered], style, label=name)
    front.set(xlabel=f"computed of {steps} steps", ylabel="PSNR to uncached, dB")
    counts = [each.computed for each in (*tuned.trials, *tuned.even, *tuned.best)]
    front.set_xlim(min(counts) - 1, max(counts) + 1)
    front.locator_params(axis="x", integer=True)
    front.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize="small", frameon=False)  # on no point
    _expected(expected, tuned.predicted, [each.psnr for each in tuned.trials])
    for place, trial in enumerate(tuned.best):
        marks = patterns.computed(trial.pattern)
        gains.plot(marks, [-0.06 * (place + 1)] * len(marks), "|", markersize=8, color=f"C{place}")
    gains.plot(tuned.surrogate.gains / tuned.surrogate.gains.max())
    gains.set(xlabel="step (0 is the noisiest); marks: computed", ylabel="what an error matters for the image")
    for axis in (front, expected, gains):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_expected(expected: Sequence[float], measured: Sequence[float], path: Path) -> None:
    """What a surrogate expects of schedules against what was measured, in dB; its scale is arbitrary."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
    _expected(axis, expected, measured)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _expected(axis: Any, expected: Sequence[float], measured: Sequence[float]) -> None:
    axis.plot(expected, measured, ".")
    ends = [min(measured), max(measured)]
    axis.plot(ends, ends, color="0.5", linewidth=1)
    axis.set(xlabel="expected by the surrogate, dB", ylabel="measured, dB")
