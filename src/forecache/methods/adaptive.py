"""A pattern that a run corrects where its forecast errs more than it was calibrated to (ours)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from forecache.errors import PlanError
from forecache.methods.deciding import Steps, deciding
from forecache.methods.ingredients import statistics_of
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts import schedules
from forecache.parts.decide import Followed
from forecache.parts.grid import Action, Grid, Site
from forecache.parts.statistics import Statistics
from forecache.plan.method import Method


def _of_statistics(arguments: dict[str, Any]) -> dict[str, Any]:
    """The squares that statistics have in the place of these, so that a recipe holds numbers."""
    return arguments | {"stats": None, "squares": _squares(arguments["stats"], arguments["squares"])}


def _squares(stats: Statistics | None, squares: Sequence[float] | None) -> tuple[float, ...]:
    if squares is None and stats is None:
        raise PlanError(
            "adaptive compares a run with what was calibrated: give stats= (--stats), the statistics of "
            "forecache.calibrate."
        )
    if squares is not None:
        return tuple(map(float, squares))
    assert stats is not None
    return stats.known_signals().mean_squares()


@register(fixed_length=True, rewrite=_of_statistics)
def adaptive(
    pattern: str | Sequence[int],
    stats: Annotated[Statistics | str | os.PathLike[str] | None, Range(unless="squares")] = None,
    factor: Annotated[float, Range(least=1, slider=(1, 4, 0.1))] = 1.5,
    *,
    squares: Sequence[float] | None = None,
    max_gap: Steps = None,
    at_least: Steps = None,
    at_most: Steps = None,
    budget: Steps = None,
) -> Method:
    """Follows a pattern, and computes earlier where the forecast errs more than it was calibrated to (ours).

    Decides while it runs: at every computed step the model's output is compared with what the forecast makes of the
    outputs before it. This error over the calibrated one is the run's ratio. A step that the pattern skips is computed
    iff ratio * calibrated error > factor * the largest calibrated error of the pattern in this gap. At a ratio up to
    the factor the pattern is followed exactly. Without a budget steps are added, up to ``at_most``; with one, a step
    that is computed early takes the place of the pattern's next one.

    pattern: one entry a step, as of a tuned plan, such as #...#..#
    stats: statistics of this model, scheduler and number of steps, from `forecache.calibrate`
    factor: the largest ratio that changes nothing
    squares: what the statistics know, in their place: `Signals.mean_squares`
    max_gap: most steps skipped in a row
    at_least: fewest computed steps of a run
    at_most: most computed steps of a run
    budget: exact number of computed steps of a run
    """
    signs = {1: "#", 0: "."}
    text = "".join(sign if isinstance(sign, str) else signs.get(sign, "?") for sign in pattern)
    known = None if stats is None else statistics_of(stats)
    decider = Followed(text, _squares(known, squares), factor, moves=budget is not None)
    method = deciding("adaptive", decider, 1, 0, max_gap, at_least, at_most, budget)
    listed = schedules.by_step(text)

    def schedule(step: int, site: Site, grid: Grid) -> Action:
        listed(step, site, grid)  # raises for a run of another length
        return method.schedule(step, site, grid)

    return replace(method, schedule=schedule)
