"""Figures of a tuning: its best plans, and how well its surrogate predicted them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forecache.fit.tuning import Tuned
from forecache.parts import patterns
from forecache.report.figures import pyplot, save_figure


def draw_tuned(tuned: Tuned, path: Path) -> None:
    """Quality against computed steps, the surrogate's predictions, and the gains that it learned."""
    plt = pyplot()
    figure, (front, expected, gains) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    steps = len(tuned.surrogate.gains)
    front.plot(
        [trial.computed for trial in tuned.trials],
        [trial.psnr for trial in tuned.trials],
        ".",
        color="0.7",
        label="searched, first noise",
    )
    for rows, style, name in (
        (tuned.even, "s--", "even steps, all noise"),
        (tuned.best, "o-", "tuned, all noise"),
    ):
        ordered = sorted(rows, key=lambda trial: trial.computed)
        front.plot([trial.computed for trial in ordered], [trial.psnr for trial in ordered], style, label=name)
    front.set(
        xlabel=f"computed steps of {steps}",
        ylabel=f"PSNR to {'converged' if tuned.fine is not None else 'uncached'}, dB",
    )
    counts = [trial.computed for trial in (*tuned.trials, *tuned.even, *tuned.best)]
    front.set_xlim(min(counts) - 1, max(counts) + 1)
    front.locator_params(axis="x", integer=True)
    front.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize="small", frameon=False)  # covers no point
    _expected(expected, tuned.predicted, [trial.own for trial in tuned.trials])
    for index, trial in enumerate(tuned.best):
        marks = patterns.computed(trial.pattern)
        gains.plot(marks, [-0.06 * (index + 1)] * len(marks), "|", markersize=8, color=f"C{index}")
    gains.plot(tuned.surrogate.gains / tuned.surrogate.gains.max())
    gains.set(xlabel="step (0 is the noisiest); marks: computed", ylabel="influence of an error on the image")
    for axis in (front, expected, gains):
        axis.grid(alpha=0.3)
    save_figure(figure, path, dpi=130)
    plt.close(figure)


def draw_expected(expected: Sequence[float], measured: Sequence[float], path: Path) -> None:
    """PSNR that a surrogate expects of schedules against the measured PSNR, in dB; its scale is arbitrary."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
    _expected(axis, expected, measured)
    axis.grid(alpha=0.3)
    save_figure(figure, path, dpi=130)
    plt.close(figure)


def _expected(axis: Any, expected: Sequence[float], measured: Sequence[float]) -> None:
    axis.plot(expected, measured, ".")
    ends = [min(measured), max(measured)]
    axis.plot(ends, ends, color="0.5", linewidth=1)
    axis.set(xlabel="expected by the surrogate, dB", ylabel="measured, to uncached, dB")
