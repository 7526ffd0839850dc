"""Gates: the skipped cells in which the forecast applies; in the others the last computed feature is reused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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
        return all(schedule(step, other, grid) is Action.SKIP for other in block)

    return _Both(skipped, gate)


class Measured(Protocol):
    """The statistics that `god` needs."""

    def check(self, grid: Grid) -> None:
        """Raises StatisticsError if the statistics are of another model, scheduler or number of steps."""
        ...

    @property
    def inverse_shares(self) -> Sequence[float]:
        """N of every step: the share of sites, 0 to 1, whose gradient points the wrong way there."""
        ...


@dataclass(frozen=True)
class god:  # noqa: N801 - reads as the function it is
    """Gradient Optimization Determination: the forecast applies where B < threshold (GOC, arXiv 2503.05156, Eq. 8).

    B(step) = gamma * step / (num_steps - 1) + (1 - gamma) * N(step), with N the share of sites at which the averages
    say that the gradient points the wrong way. Late steps, and steps with many such sites, are reused instead.

    stats: averages of the model without a cache.
    gamma: weight of the position against N, 0 to 1 [0.5, ours: the paper does not print its value].
    threshold: B from which on the gate is closed [0.6, ours: the paper does not print its value]. Its published lists
        of steps are `forecache.methods.goc_paper_steps`.
    """

    stats: Measured
    gamma: float = 0.5
    threshold: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise PlanError(f"gamma weighs the position against N, from 0 to 1; {self.gamma!r} was asked for.")

    def __call__(self, step: int, site: Site, grid: Grid) -> bool:
        self.stats.check(grid)
        return self.score(step, grid) < self.threshold

    def score(self, step: int, grid: Grid) -> float:
        """B of a step."""
        position = step / max(1, grid.num_steps - 1)
        return self.gamma * position + (1 - self.gamma) * self.stats.inverse_shares[step]

    def show(self, grid: Grid) -> str:
        """N and B as bars from 0 to 1, and whether the gate is open (~) or closed (.), one sign a step."""
        self.stats.check(grid)
        scores = [self.score(step, grid) for step in range(grid.num_steps)]
        opened = "".join("~" if score < self.threshold else "." for score in scores)
        return (
            f"gate god(gamma={self.gamma:g}, threshold={self.threshold:g}): ~ where B is below the threshold\n"
            f"  N     {bars(self.stats.inverse_shares)}\n  B     {bars(scores)}\n  open  {opened}"
        )


def bars(values: Sequence[float]) -> str:
    """Numbers from 0 to 1 as bars of eight heights."""
    return "".join("▁▂▃▄▅▆▇█"[min(7, max(0, int(value * 8)))] for value in values)
