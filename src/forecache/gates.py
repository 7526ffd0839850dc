"""Gates: in which skipped cells the forecast applies; elsewhere the last computed feature is reused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from forecache._core import Gate, Grid, Site
from forecache._errors import PlanError


def always(step: int, site: Site, grid: Grid) -> bool:
    """The forecast applies in every skipped cell."""
    return True


@dataclass(frozen=True)
class on_steps:  # noqa: N801 - reads as the function it is
    """The forecast applies at these steps (GOC's published lists). A listed step that is computed is an error."""

    steps: tuple[int, ...]

    def __call__(self, step: int, site: Site, grid: Grid) -> bool:
        outside = [each for each in self.steps if not 0 <= each < grid.num_steps]
        if outside:
            raise PlanError(f"Steps {outside} lie outside a run of {grid.num_steps} steps (0 to {grid.num_steps - 1}).")
        return step in self.steps


@dataclass(frozen=True)
class _Where:
    condition: Callable[[Site], bool]
    gate: Gate

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that the inner gate lists, if it does."""
        return getattr(self.gate, "steps", ())

    def __call__(self, step: int, site: Site, grid: Grid) -> bool:
        return self.condition(site) and self.gate(step, site, grid)


def where(condition: Callable[[Site], bool], gate: Gate = always) -> Gate:
    """``gate``, at the sites that ``condition`` holds for only."""
    return _Where(condition, gate)


def at_depth(low: int, high: int, gate: Gate = always) -> Gate:
    """``gate``, in blocks ``low`` to ``high - 1`` only."""
    return _Where(lambda site: low <= site.depth < high, gate)
