"""MagCache: a schedule from measured ratios of the residual's magnitude (arXiv 2506.09045)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

from forecache.errors import PlanError
from forecache.methods.ingredients import statistics_of
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts.grid import Action, Grid, Schedule, Site
from forecache.parts.statistics import Statistics
from forecache.plan.method import Method


def _of_statistics(arguments: dict[str, Any]) -> dict[str, Any]:
    """The ratios that statistics have in the place of these, so that a recipe holds numbers."""
    return arguments | {"stats": None, "ratios": _ratios(arguments["stats"], arguments["ratios"])}


def _ratios(stats: Statistics | None, ratios: Sequence[float] | None) -> tuple[float, ...]:
    if ratios is None and stats is None:
        raise PlanError(
            "magcache skips by ratios that are measured before: give stats= (--stats), the statistics of "
            "forecache.calibrate, or ratios=."
        )
    if ratios is not None:
        return tuple(map(float, ratios))
    assert stats is not None
    return stats.known_signals().magnitude_ratios()


@register(rewrite=_of_statistics)
def magcache(
    ratios: Sequence[float] | None = None,
    threshold: Annotated[float, Range(least=0, slider=(0, 1, 0.01))] = 0.06,
    *,
    stats: Annotated[Statistics | str | os.PathLike[str] | None, Range(unless="ratios")] = None,
    max_gap: Annotated[int, Range(least=0)] = 3,
    retention: Annotated[float, Range(least=0, most=1, slider=(0, 1, 0.05))] = 0.2,
) -> Method:
    """Skips while the calibrated magnitude of the residual has changed little (MagCache, arXiv 2506.09045).

    R *= g_t and E += |1 - R|; a step is skipped while E <= threshold. Everything is known before the run, so that the
    plan is static. As published, by the rule and the defaults of diffusers; ratios of another number of steps are
    stretched to the run's, the nearest ones.

    ratios: g_t of every step: the mean ratio of what the blocks add to a token to what they added at the step before;
        by default those of stats
    threshold: of the accumulated error E; 0 computes every step
    stats: statistics of `forecache.calibrate`, which measures the ratios
    max_gap: most steps skipped in a row
    retention: share of the run, from its start, in which every step is computed
    """
    values = _ratios(None if stats is None else statistics_of(stats), ratios)
    if not values or min(values) <= 0:
        raise PlanError(f"Ratios of magnitudes are over 0, one a step; {values[:4]} were given.")
    return Method("magcache", by_ratios(values, threshold, max_gap, retention))


def by_ratios(ratios: Sequence[float], threshold: float, max_gap: int, retention: float) -> Schedule:
    """The schedule of `magcache`."""

    def schedule(step: int, site: Site, grid: Grid) -> Action:
        return Action.SKIP if step in skipped(ratios, grid.num_steps, threshold, max_gap, retention) else Action.COMPUTE

    return schedule


def skipped(ratios: Sequence[float], num_steps: int, threshold: float, max_gap: int, retention: float) -> set[int]:
    """The steps of a run that MagCache skips."""
    start = int(retention * num_steps + 0.5)
    steps: set[int] = set()
    ratio, error, run = 1.0, 0.0, 0
    for step, own in enumerate(stretched(ratios, num_steps)):
        if step < start:
            continue
        ratio, run = ratio * own, run + 1
        error += abs(1 - ratio)
        if step and threshold and error <= threshold and run <= max_gap:
            steps.add(step)
        else:
            ratio, error, run = 1.0, 0.0, 0
    return steps


def stretched(ratios: Sequence[float], num_steps: int) -> list[float]:
    """Ratios for another number of steps: the nearest ones."""
    if num_steps == 1:
        return [ratios[-1]]
    scale = (len(ratios) - 1) / (num_steps - 1)
    return [ratios[round(step * scale)] for step in range(num_steps)]
