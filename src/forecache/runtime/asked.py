"""What a session is asked for: a plan, a method, or a speedup; and the sentences about what it cannot be."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Protocol, runtime_checkable

from torch import nn

from forecache.errors import PlanError
from forecache.io.text import short
from forecache.methods import recommended, registry
from forecache.models.find import grid_at
from forecache.models.fingerprint import describe_scheduler
from forecache.models.levels import AskedSites
from forecache.parts.grid import Grid
from forecache.plan import stored
from forecache.plan.method import Method
from forecache.plan.plan import Plan
from forecache.plan.stored import PlanPlace
from forecache.runtime.guards import Guards
from forecache.runtime.plan_source import Chosen, Fixed, Planned, PlanSource, Stretched


@runtime_checkable
class WithSampler(Protocol):
    """A plan with the sampler that it is for, such as the result of `forecache.tune`."""

    @property
    def plan(self) -> Plan:
        """The plan."""
        ...

    @property
    def scheduler(self) -> Any:
        """Its scheduler."""
        ...

    @property
    def num_steps(self) -> int:
        """The number of steps to call the pipeline with."""
        ...


@dataclass(frozen=True)
class Asked:
    """The part of `forecache.apply`'s arguments that says by which plan a run is made; see there."""

    plan: Plan | Method | None
    speedup: float | None
    plans: PlanPlace | Iterable[PlanPlace] | None
    num_steps: int | None
    sites: AskedSites
    resample: bool

    def check(self, target: object) -> None:
        """Raises PlanError for arguments that do not go together, or that are something else."""
        if isinstance(target, Plan | Method):
            raise PlanError(f"The pipeline comes first and the {_kind(target)} second: forecache.apply(pipe, plan).")
        if self.plan is not None and not isinstance(self.plan, Plan | Method):
            raise PlanError(_not_a_plan(self.plan))
        if self.speedup is not None:
            check_speedup(self.speedup)
        given = {
            "speedup": self.speedup, "plans": self.plans, "num_steps": self.num_steps,
            "sites": self.sites.patterns, "level": self.sites.level,
        }  # fmt: skip
        odd = [name for name, value in given.items() if value is not None]
        if self.plan is not None and (choosing := [name for name in odd if name in ("speedup", "plans")]):
            raise PlanError(
                f"{choosing[0]}= chooses a method, and a {_kind(self.plan)} was given as well: leave one of them out."
            )
        if isinstance(self.plan, Plan) and odd:
            raise PlanError(f"A plan has its own {'steps' if odd[0] == 'num_steps' else 'sites'}: leave out {odd[0]}=.")
        if self.resample and not isinstance(self.plan, Plan):
            raise PlanError("resample= is for a plan; a method is planned for every number of calls: leave it out.")

    def source(self, target: Any, guards: Guards) -> tuple[PlanSource, Grid]:
        """Where the plans of runs come from, and a grid with the sites of these plans."""
        if isinstance(self.plan, Plan):
            return Stretched(self.plan) if self.resample else Fixed(self.plan), self.plan.grid
        ends = self.plan.ends(self.sites.level) if isinstance(self.plan, Method) else (0, 0)
        own = grid_at(target, 1, replace(self.sites, ends=ends))

        def of_run(num_steps: int) -> Grid:
            return replace(own, num_steps=num_steps, scheduler=describe_scheduler(getattr(target, "scheduler", None)))

        def check(plan: Plan) -> None:
            guards.check(plan, lambda: of_run(plan.num_steps))

        how: tuple[Callable[[int], Grid], Callable[[Plan], None], int | None] = of_run, check, self.num_steps
        if self.plan is not None:
            return Planned(self.plan, *how), own
        given = () if self.plans is None else stored.at(self.plans)
        return Chosen(self.speedup, given, *how), own


def check_speedup(speedup: object) -> None:
    """Raises PlanError for what is no speedup on record."""
    least, most = recommended.SPEEDUPS
    is_number = isinstance(speedup, Real) and not isinstance(speedup, bool) and math.isfinite(speedup)
    if not is_number or not least <= speedup <= most:  # type: ignore[operator]
        raise PlanError(
            f"speedup= is the times fewer MACs, a number from {least:g} to {most:g}, for which recipes are on record; "
            f"{short(speedup)} was asked for. For less, apply nothing; for more, sample fewer steps."
        )


def _kind(value: object) -> str:
    return "plan" if isinstance(value, Plan) else "method"


def _not_a_plan(value: Any) -> str:
    """The sentence about something that is given where a plan or a method goes."""
    known = "forecache.Plan.load(path) reads a plan from a file, and forecache.fora(2) is a method."
    if isinstance(value, Real) and not isinstance(value, bool):
        return (
            f"{value} is no plan and no method. If it is the speedup, name it: forecache.enable(pipe, "
            f"speedup={value}); if it is a number of steps, forecache.apply(pipe, method, num_steps={value})."
        )
    if isinstance(value, str | os.PathLike):
        return (
            f"{short(value)} is no plan: forecache.Plan.load reads one from a file, and forecache.enable(pipe, plans="
            f"{short(value)}) looks for one in a folder or hub repository."
        )
    entry = registry.methods().get(getattr(value, "__name__", ""))
    if entry is not None and entry.function is value:
        needed = ", ".join(parameter.name for parameter in entry.parameters if parameter.required)
        return f"{entry.name} makes a method when it is called, and it was not: forecache.{entry.name}({needed})."
    if isinstance(value, type):
        return f"{value.__name__} is a class, and a plan or a method of it is needed: {known}"
    if isinstance(getattr(value, "plan", None), Plan):
        return f"A {type(value).__name__} is no plan, it has one: give its .plan."
    if isinstance(value, nn.Module) or hasattr(value, "transformer"):
        return (
            f"A plan or a method goes second, and a {type(value).__name__} was given: forecache.apply(pipe, plan). "
            + known
        )
    return f"A plan or a method is applied, not a {type(value).__name__}: {known}"
