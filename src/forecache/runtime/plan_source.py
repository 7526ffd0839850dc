"""Plan sources: where the plan of a run comes from, once its number of model calls is known.

Fixed        one plan, strict: a run of another length is refused
Stretched    one plan, resampled to a run of another length
Planned      a method, planned anew for every number of calls
Chosen       by a speedup: a plan that was made for this very run if one is at hand, else the recipe on record
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from forecache.errors import PlanError, StatisticsError, StepCountError
from forecache.methods import recommended
from forecache.methods.replan import can_resample, resampled
from forecache.parts import schedules
from forecache.parts.grid import Grid
from forecache.plan import stored
from forecache.plan.method import Method
from forecache.plan.plan import Plan
from forecache.plan.sampler import Sampler
from forecache.plan.stored import StoredPlan

LOGGER = logging.getLogger("forecache")

FEWEST_CALLS = 6
"""The shortest run in which something is skipped where no speedup was asked for."""

COMPUTED = Method("every step computed", schedules.every(1))
"""The method of runs that are too short to gain."""


class PlanSource(Protocol):
    """Where the plan of a run comes from."""

    @property
    def own(self) -> Plan | None:
        """The plan of a run whose number of model calls nothing announces; None where it has to be announced."""
        ...

    @property
    def choice(self) -> str:
        """What the run that began last runs by, and why, in one sentence; empty where nothing was chosen."""
        ...

    @property
    def method(self) -> Method | None:
        """The method of the run that began last; None for a plan that was given or found."""
        ...

    @property
    def sampler(self) -> Sampler | None:
        """The scheduler that every run is to have instead of the pipeline's own; None for the pipeline's own."""
        ...

    def takes(self, num_steps: int) -> bool:
        """Whether there is a plan of a run of ``num_steps`` model calls."""
        ...

    def plan(self, num_steps: int) -> Plan:
        """The plan of a run of ``num_steps`` model calls, the same object for equal runs."""
        ...


def may_look_back(source: PlanSource) -> bool:
    """Whether a plan of this source may correct the sample in hindsight."""
    if source.own is not None:
        return bool(source.own.looks)
    return source.method is None or source.method.hindsight is not None


@dataclass(frozen=True)
class Fixed:
    """One plan; StepCountError for a run of another length."""

    own: Plan

    choice = ""
    method = None

    @property
    def sampler(self) -> Sampler | None:
        return self.own.sampler

    def takes(self, num_steps: int) -> bool:
        return num_steps == self.own.num_steps

    def plan(self, num_steps: int) -> Plan:
        if num_steps != self.own.num_steps and self.own.sampler is not None:
            raise StepCountError(
                f"The plan is for {self.own.sampler.num_steps} steps of {self.own.sampler.name}, and the pipeline is "
                f"going to call the model {num_steps} times: give it num_inference_steps={self.own.sampler.num_steps}."
            )
        if num_steps != self.own.num_steps:
            again = ", or apply it with resample=True" if can_resample(self.own) else ""
            raise StepCountError(
                f"The plan has {self.own.num_steps} steps, but the pipeline is going to call the model "
                f"{num_steps} times: make the plan with forecache.grid(pipe, num_steps={num_steps}){again}."
            )
        return self.own


class _ByLength(ABC):
    """A source that makes the plan of every length once.

    grid: the grid of a run, from its number of model calls; its scheduler is that of the moment.
    check: refuses a plan.
    num_steps: model calls of a run that nothing announces; None where it has to be announced.
    """

    sampler: Sampler | None = None

    def __init__(self, grid: Callable[[int], Grid], check: Callable[[Plan], None], num_steps: int | None) -> None:
        self.method: Method | None = None
        self.choice = ""
        self._grid, self._check, self._num_steps = grid, check, num_steps
        self._plans: dict[tuple[int, str], tuple[Plan, Method | None, str]] = {}
        self._lock = threading.Lock()

    @property
    def own(self) -> Plan | None:
        return None if self._num_steps is None else self.plan(self._num_steps)

    def takes(self, num_steps: int) -> bool:
        return num_steps > 0

    def plan(self, num_steps: int) -> Plan:
        grid = self._grid(num_steps)
        with self._lock:
            key = num_steps, grid.scheduler
            if key not in self._plans:
                self._plans[key] = self._planned(grid)
            plan, self.method, self.choice = self._plans[key]
            return plan

    @abstractmethod
    def _planned(self, grid: Grid) -> tuple[Plan, Method | None, str]:
        """The plan of a run, the method that made it, and the choice."""


class Stretched(_ByLength):
    """One plan, resampled to runs of another length, with a warning in the log."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(lambda num_steps: replace(plan.grid, num_steps=num_steps), lambda plan: None, plan.num_steps)
        self._own, self.sampler = plan, plan.sampler

    def _planned(self, grid: Grid) -> tuple[Plan, Method | None, str]:
        own, num_steps = self._own, grid.num_steps
        if num_steps == own.num_steps:
            return own, None, ""
        plan = resampled(own, num_steps)
        LOGGER.warning("A plan of %d steps was resampled to %d: measure its quality.", own.num_steps, num_steps)
        return plan, None, ""


class Planned(_ByLength):
    """A method, planned anew for every number of model calls.

    Raises PlanError or StatisticsError, with the number of calls, where the method has no plan for it.
    """

    def __init__(
        self, method: Method, grid: Callable[[int], Grid], check: Callable[[Plan], None], num_steps: int | None = None
    ) -> None:
        super().__init__(grid, check, num_steps)
        self.method = self._method = method

    def _planned(self, grid: Grid) -> tuple[Plan, Method | None, str]:
        plan = planned(self._method, grid)
        self._check(plan)
        return plan, self._method, ""


class Chosen(_ByLength):
    """The plan of a speedup: one that was made for this very run if it is at hand, else the recipe on record.

    speedup: times fewer MACs; None for the default, with which short runs compute everything.
    given: plans to look through before those that ship with the library.
    """

    def __init__(
        self,
        speedup: float | None,
        given: Sequence[StoredPlan],
        grid: Callable[[int], Grid],
        check: Callable[[Plan], None],
        num_steps: int | None = None,
    ) -> None:
        super().__init__(grid, check, num_steps)
        self._speedup, self._given = speedup, given

    def _planned(self, grid: Grid) -> tuple[Plan, Method | None, str]:
        plan, method, why = chosen(grid, self._speedup, self._given)
        self._check(plan)
        LOGGER.info("%s", why)
        return plan, method, why


def chosen(
    grid: Grid, speedup: float | None = None, given: Sequence[StoredPlan] = ()
) -> tuple[Plan, Method | None, str]:
    """The plan of a run for a speedup, the method that made it (None for a plan that was found), and why, in one line.

    speedup: times fewer MACs, see `forecache.methods.recommended.SPEEDUPS`; None for the default
    given: plans to look through before those that ship with the library
    """
    wanted = recommended.DEFAULT if speedup is None else speedup
    run = f"{grid.model or 'the model'}, {grid.num_steps} model call{'' if grid.num_steps == 1 else 's'}"
    if speedup is None and grid.num_steps < FEWEST_CALLS:
        why = f"everything is computed, because fewer than {FEWEST_CALLS} calls gain too little; ask for a speedup="
        return planned(COMPUTED, grid), COMPUTED, f"{run}: {why}"
    asked = f"{wanted:g}x fewer MACs"
    for entries in (given, stored.shipped()):
        if (match := stored.fitting(entries, grid, wanted)) is not None:
            entry, plan = match
            name = plan.provenance.get("method", "a plan")
            counts = f"{plan.computed_share:.0%} of the features computed"
            return plan, None, f"{run}: {name} of {entry.origin}, made for this run, near {asked} ({counts})"
    recipe = recommended.entry(wanted, grid.num_steps)
    method = recipe.method(wanted)
    plan = planned(method, grid)
    none = "no plan in plans= is for this run; " if given else ""
    counts = f"{sum(cell.computed for cell in plan.rows[0])} of {grid.num_steps} computed"
    return plan, method, f"{run}: {method.name} ({counts}); {none}{recipe.reason(asked)}"


def planned(method: Method, grid: Grid) -> Plan:
    """The plan of a method for a run; an error says which run has none."""
    try:
        return method.plan(grid)
    except (PlanError, StatisticsError) as error:
        raise type(error)(f"{method.name} has no plan for this run of {grid.num_steps} model calls: {error}") from error
