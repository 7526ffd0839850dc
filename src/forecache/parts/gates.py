"""Gates: the skipped cells in which the forecast applies; in the others the last computed feature is reused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from forecache.errors import PlanError
from forecache.parts.grid import Action, Gate, Grid, Schedule, Site


@runtime_checkable
class Drawn(Protocol):
    """A gate with a picture, which a plan keeps and `Plan.show` draws."""

    def show(self, grid: Grid) -> str:
        """A few lines, one sign a step; empty if the gate has no picture on this grid."""
        ...


def always(step: int, site: Site, grid: Grid) -> bool:
    """The forecast applies in every skipped cell."""
    return True


@dataclass(frozen=True)
class on_steps:  # noqa: N801 - reads as the function it is
    """A gate that is open at listed steps (GOC's published lists).

    steps: the steps, within the run. A method raises PlanError for one of them that is computed.
    """

    steps: tuple[int, ...]

    def __call__(self, step: int, site: Site, grid: Grid) -> bool:
        if outside := [listed for listed in self.steps if not 0 <= listed < grid.num_steps]:
            raise PlanError(f"Steps {outside} lie outside a run of {grid.num_steps} steps (0 to {grid.num_steps - 1}).")
        return step in self.steps


@dataclass(frozen=True)
class _Both:
    """A gate that is open where both of its parts are.

    condition: a gate without steps of its own and without a picture.
    gate: the gate whose listed steps and picture are passed on.
    """

    condition: Gate
    gate: Gate

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that the inner gate lists, if it lists any."""
        return getattr(self.gate, "steps", ())

    def __call__(self, step: int, site: Site, grid: Grid) -> bool:
        return self.condition(step, site, grid) and self.gate(step, site, grid)

    def show(self, grid: Grid) -> str:
        """The picture of the inner gate, if it has one."""
        return self.gate.show(grid) if isinstance(self.gate, Drawn) else ""


def where(condition: Callable[[Site], bool], gate: Gate = always) -> Gate:
    """``gate``, at the sites for which ``condition`` holds; closed at the others."""
    return _Both(lambda step, site, grid: condition(site), gate)


def at_depth(low: int, high: int, gate: Gate = always) -> Gate:
    """``gate``, in blocks ``low`` to ``high - 1``; closed in the others."""
    return where(lambda site: low <= site.depth < high, gate)


def whole_blocks(schedule: Schedule, gate: Gate = always) -> Gate:
    """``gate``, where ``schedule`` skips every site of the block (GOC on Learning-to-Cache, arXiv 2503.05156)."""

    def skipped(step: int, site: Site, grid: Grid) -> bool:
        block = (other for other in grid.sites if other.depth == site.depth)
        return all(schedule(step, other, grid) in (Action.SKIP, Action.DECIDE) for other in block)

    return _Both(skipped, gate)


Counted = Literal["branches", "blocks"]
Position = Literal["growing", "printed"]


class Measured(Protocol):
    """The statistics that `god` needs."""

    def check(self, grid: Grid) -> None:
        """Raises StatisticsError if the statistics are of another model, scheduler or number of steps."""
        ...

    @property
    def inverse_shares(self) -> Sequence[float]:
        """N of every step: the share of sites, 0 to 1, whose gradient points the wrong way there."""
        ...

    @property
    def inverse_counts(self) -> Sequence[int]:
        """N of every step as a count: blocks with a site whose gradient points the wrong way there."""
        ...

    @property
    def mean_changes(self) -> Sequence[float]:
        """The relative change of every step since the one before, mean over sites."""
        ...


@dataclass(frozen=True)
class god:  # noqa: N801 - reads as the function it is
    """Gradient Optimization Determination: the forecast applies where B < threshold (GOC, arXiv 2503.05156, Eq. 8).

    B(step) = gamma * step / (num_steps - 1) + (1 - gamma) * N(step), with N the share of sites at which the averages
    say that the gradient points the wrong way. Late steps, and steps with many such sites, are reused instead.

    stats: averages of the model without a cache.
    gamma: weight of the position against N, 0 to 1. The paper does not print its value; `proposed` finds one.
    threshold: B from which on the gate is closed. The paper does not print its value; `proposed` finds one. Its
        published lists of steps are `forecache.methods.goc_paper_steps`.
    counted: N as the share of ``branches`` [default, ours], or as the number of ``blocks`` (the paper's N(t)).
    position: ``growing`` [default], from 0 at the first step to 1 at the last, which is what the paper's text says of
        it. ``printed`` would be sign and denominator as its Eq. 8 prints them; it raises PlanError, because the body of
        the paper was not available to us.
    """

    stats: Measured
    gamma: float
    threshold: float
    counted: Counted = "branches"
    position: Position = "growing"

    def __post_init__(self) -> None:
        if self.position != "growing":
            raise PlanError(
                f"position={self.position!r} was asked for; only 'growing' is implemented. The paper's text says that "
                "errors near the end do the harm, which is position = step / (steps - 1). How its Eq. 8 prints sign "
                "and denominator was not available to us: for another position give goc() a gate of your own, "
                "gate=lambda step, site, grid: ..."
            )
        if not 0 <= self.gamma <= 1:
            raise PlanError(f"gamma weighs the position against N, from 0 to 1; {self.gamma!r} was asked for.")

    def __call__(self, step: int, site: Site, grid: Grid) -> bool:
        self.stats.check(grid)
        return self.score(step, grid) < self.threshold

    def score(self, step: int, grid: Grid) -> float:
        """B of a step."""
        return self.score_of(step, grid.num_steps)

    def score_of(self, step: int, num_steps: int) -> float:
        """B of a step of a run of so many."""
        position = step / max(1, num_steps - 1)
        return self.gamma * position + (1 - self.gamma) * self._inverse[step]

    @property
    def _inverse(self) -> Sequence[float]:
        return self.stats.inverse_shares if self.counted == "branches" else self.stats.inverse_counts

    def show(self, grid: Grid) -> str:
        """N and B as bars from 0 to 1, and whether the gate is open (~) or closed (.), one sign a step."""
        self.stats.check(grid)
        scores = [self.score(step, grid) for step in range(grid.num_steps)]
        opened = "".join("~" if score < self.threshold else "." for score in scores)
        counts = "" if self.counted == "branches" else ", N counts blocks"
        scale = max(1.0, *self._inverse)
        return (
            f"gate god(gamma={self.gamma:g}, threshold={self.threshold:g}{counts}): ~ where B is below the threshold\n"
            f"  N     {bars([value / scale for value in self._inverse])}\n"
            f"  B     {bars([score / scale for score in scores])}\n  open  {opened}"
        )


GROWTH, MAJORITY, RECENT = 1.5, 0.5, 4
"""Ours: how much faster than over the RECENT steps before features change at the end of a run, where gradients are not
trusted; the share of inverse branches from which on most corrections do harm."""


def proposed(stats: Measured, gamma: float | None = None) -> god:
    """The gate with gamma and threshold that statistics propose (ours; the paper's rule has no printed values).

    Two limits fix the line B = threshold. A step of which no gradient is inverse closes from the first step of the
    run's end on: the last steps, as long as features change there over 1.5 times as much as on average over the four
    steps before. A step at the very start closes where half of the branches are inverse. In between the two trade
    linearly: gamma = n / (p + n) and threshold = n p / (p + n), for the limits p of the position and n = 0.5 of N.

    gamma: taken as it is, if given; the threshold then keeps the limit of the position.
    """
    last = _end(stats.mean_changes)
    limit = (last - 0.5) / max(1, len(stats.mean_changes) - 1)
    if gamma is None:
        return god(stats, MAJORITY / (limit + MAJORITY), MAJORITY * limit / (limit + MAJORITY))
    return god(stats, gamma, gamma * limit if gamma else MAJORITY)


def _end(changes: Sequence[float]) -> int:
    """The first step of the run's end, in which every step changes faster than the ones before; its length if none."""
    first = len(changes)
    while first - 1 > RECENT:
        recent = changes[first - 1 - RECENT : first - 1]
        if changes[first - 1] <= GROWTH * sum(recent) / RECENT:
            break
        first -= 1
    return first


def thresholds(
    stats: Measured, gamma: float, opened: Sequence[int], closed: Sequence[int]
) -> tuple[float, float] | None:
    """The thresholds, above the first and up to the second, at which `god` opens and closes just these steps.

    None if there are none at this gamma: GOC's list of corrected steps, which has 19 and not 17 of 20, needs
    N(17) - N(19) > gamma / (1 - gamma) * 2 / 19.
    """
    gate = god(stats, gamma, 0.0)
    steps = len(stats.inverse_shares)

    def score(step: int) -> float:
        return gate.score_of(step, steps)

    low, high = max(map(score, opened)), min(map(score, closed), default=math.inf)
    return (low, high) if low < high else None


def bars(values: Sequence[float]) -> str:
    """Numbers from 0 to 1 as bars of eight heights."""
    return "".join("▁▂▃▄▅▆▇█"[min(7, max(0, int(value * 8)))] for value in values)
