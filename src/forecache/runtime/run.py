"""Runs: the calls of one model in one run, and the sentences about runs that are too short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from forecache.errors import StepCountError
from forecache.parts.grid import Cell, Grid, Site
from forecache.plan.plan import Plan

PartOfRun = Callable[[Sequence[float]], range]
"""From the timesteps of a whole run, the steps at which one of its models is called."""

EXACT = 1e-6
"""Largest difference of fractions of timesteps that rounding to float32 explains."""

FEW_STEPS = 4
"""Plans of no more steps are for distilled models, which differ most from step to step."""


@dataclass(frozen=True)
class Run:
    """The calls of one model in one run.

    total: number of model calls of the whole run, of all models that take turns in it.
    indices: which of these calls are the model's own.
    timesteps: the scheduler's timesteps of the model's own calls; () where it did not announce them.
    scale: number of the scheduler's timesteps in training, by which some models are given fractions of them.
    """

    total: int
    indices: range
    timesteps: tuple[float, ...] = ()
    scale: float = 1000

    @property
    def num_calls(self) -> int:
        """Number of the model's own calls."""
        return len(self.indices)

    def timestep(self, step: int) -> float | None:
        """The scheduler's timestep of one of the model's own calls; None if it is unknown."""
        return self.timesteps[step] if step < len(self.timesteps) else None

    def expects(self, step: int, timestep: float) -> bool:
        """Whether a model is given this timestep at a step: the scheduler's, or a fraction that falls or rises."""
        announced = self.timestep(step)
        if announced is None:
            return False
        fraction = announced / self.scale
        return timestep == announced or min(abs(timestep - fraction), abs(timestep - 1 + fraction)) < EXACT

    def rest(self, step: int) -> Run:
        """The run without the model's own calls before ``step``."""
        return replace(self, indices=self.indices[step:], timesteps=self.timesteps[step:])


Announced = Callable[[float | None], Run]
"""From the timestep of the first call of a model, None if it is unknown, the model's calls in a run."""


def one_call(sites: Sequence[Site]) -> Plan:
    """The plan of a run of one call, which has nothing to reuse: everything is computed."""
    return Plan(Grid(1, tuple(sites)), tuple((Cell(),) for _ in sites))


def too_short(calls: int, num_steps: int) -> StepCountError:
    """The error for a run that ended before its plan: ``calls`` of ``num_steps``."""
    if calls == 1:
        return StepCountError(
            f"The last run made 1 model call, the plan has {num_steps} steps. A run of one call can reuse nothing: "
            "make it outside of this block. If the run was stopped on purpose, call session.new_run()."
        )
    return StepCountError(
        f"The last run made {calls} model calls, the plan has {num_steps} steps: make the plan with "
        f"forecache.grid(model, num_steps={calls}). If the run was stopped on purpose, call session.new_run()."
    )


def few_steps(plan: Plan) -> str | None:
    """A sentence about a plan that skips one of very few steps; None for any other plan."""
    if plan.num_steps > FEW_STEPS or plan.computed_share == 1:
        return None
    return (
        f"A plan of {plan.num_steps} steps skips some of them. The steps of distilled models differ most, and each is "
        "a large part of the run: compare images with and without the plan before you keep it."
    )
