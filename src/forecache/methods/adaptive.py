"""A pattern that a run corrects where it changes faster than what was calibrated (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from forecache.methods.deciding import Steps, deciding
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts import schedules
from forecache.parts.decide import Followed
from forecache.parts.grid import Action, Grid, Site
from forecache.plan.method import Method


@register(fixed_length=True)
def adaptive(
    pattern: str | Sequence[int],
    changes: Annotated[Sequence[float], Range(usual=())],
    factor: Annotated[float, Range(least=0.1, slider=(0.5, 4, 0.1))] = 1.5,
    *,
    max_gap: Steps = None,
    at_least: Steps = None,
    at_most: Steps = None,
    budget: Steps = None,
) -> Method:
    """Follows a pattern, and computes more where a run changes faster than it was calibrated (ours).

    Decides while it runs: the change of the model's output between the last two computed steps, over the calibrated
    one, is the run's ratio. A step that the pattern skips is skipped while ratio * calibrated change <= factor * the
    largest calibrated change that the pattern skips. At a ratio up to the factor the pattern is followed exactly.
    Without a bound steps are added; with a budget those that are added early are missing at the end.

    pattern: one entry a step, as of a tuned plan, such as #...#..#
    changes: calibrated changes of the output between all pairs of steps, `forecache.fit.Rules.changes`
    factor: the largest ratio that changes nothing
    max_gap: most steps skipped in a row
    at_least: fewest computed steps of a run
    at_most: most computed steps of a run
    budget: exact number of computed steps of a run
    """
    signs = {1: "#", 0: "."}
    text = "".join(sign if isinstance(sign, str) else signs.get(sign, "?") for sign in pattern)
    decider = Followed(text, tuple(map(float, changes)), factor)
    method = deciding("adaptive", decider, 1, 0, max_gap, at_least, at_most, budget)
    listed = schedules.by_step(text)

    def schedule(step: int, site: Site, grid: Grid) -> Action:
        listed(step, site, grid)  # raises for a run of another length
        return method.schedule(step, site, grid)

    return replace(method, schedule=schedule)
