"""Correction in hindsight (ours): what a computed step tells about the estimates of the gap before it. No tensors here.

At a computed step s after a gap the error of the forecast is known, because the step can be estimated as well. Features
follow a smooth curve and the forecast passes through the last computed ones, so the error grows from them as a
polynomial does that is zero there: the estimate of step u in the gap was off by the share

    (u - a) (u - b) / ((s - a) (s - b))

of the error at s, with a the newest computed step before the gap and b the one before it; for reuse, which passes
through one feature alone, by (u - a) / (s - a).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from forecache.errors import PlanError

MOST_POINTS = 2
"""Most computed features that the error polynomial is zero at: with more, shares of old features only add noise."""


@dataclass(frozen=True)
class Gap:
    """Consecutive skipped steps and the computed one after them.

    steps: the skipped steps, in order.
    after: the computed step after them.
    before: the computed steps before them, newest first, at least one.
    """

    steps: range
    after: int
    before: tuple[int, ...]


@dataclass(frozen=True)
class Hindsight:
    """How much of an error that a computed step has found is paid back.

    theta: share of it, 0 to 2; 0 pays nothing back.
    thetas: one share a gap that a computed step follows, in order; None, the default, is ``theta`` for all of them.
    """

    theta: float
    thetas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for theta in (self.theta, *(self.thetas or ())):
            if not 0 <= theta <= 2:
                raise PlanError(f"theta, the share of an error that is paid back, lies between 0 and 2; not {theta!r}.")

    def of_gaps(self, gaps: Sequence[Gap]) -> tuple[float, ...]:
        """The share of each gap. Raises PlanError for shares that are more or fewer than the gaps."""
        if self.thetas is None:
            return (self.theta,) * len(gaps)
        if len(self.thetas) != len(gaps):
            raise PlanError(
                f"{len(self.thetas)} thetas are given, and the schedule has {len(gaps)} gaps with a computed step "
                f"after them, which are at the steps {[gap.after for gap in gaps]}: give one theta for each of these."
            )
        return self.thetas


def gaps(computed: Sequence[bool]) -> list[Gap]:
    """The gaps of a run that a computed step follows; computed: whether each step is."""
    found: list[Gap] = []
    before: list[int] = []
    for step, is_computed in enumerate(computed):
        if is_computed:
            if before and before[0] < step - 1:
                found.append(Gap(range(before[0] + 1, step), step, tuple(before)))
            before.insert(0, step)
    return found


def shares(gap: Gap, points: int) -> tuple[float, ...]:
    """How far the estimate of every step of a gap was off, as a share of the error at the step after it.

    points: the computed features that the forecast passes through; at most `MOST_POINTS` count.
    """
    zeros = gap.before[: min(points, MOST_POINTS)]

    def size(step: int) -> int:
        return math.prod(step - zero for zero in zeros)

    return tuple(size(step) / size(gap.after) for step in gap.steps)
