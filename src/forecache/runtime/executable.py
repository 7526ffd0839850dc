"""Courses: a plan resolved on a model, and the one for a generation of another length where that is asked for."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from forecache.errors import StepCountError
from forecache.models.layout import Layout
from forecache.plan.plan import Plan
from forecache.plan.resample import piece, resampled
from forecache.runtime.constants import Placed
from forecache.runtime.graphs import Graphs, Place, graphs
from forecache.runtime.program import Budget, Program

LOGGER = logging.getLogger("forecache")


@dataclass(frozen=True)
class Keeping:
    """How and where features are kept, and how many bytes of them at the most; None as they are, without a limit."""

    dtype: torch.dtype | None = None
    device: torch.device | None = None
    max_bytes: int | None = None


@dataclass(frozen=True, eq=False)
class Course:
    """All that a generation of a plan's length does, known before it starts."""

    plan: Plan
    program: Program
    placed: Placed
    place: Place
    graphs: Graphs
    budget: Budget | None


class Courses:
    """The courses of a session, by number of steps and the part of them that its model makes.

    That of its plan as a whole comes first; with ``resample`` there are others for any number of steps.

    local: what carries the current past to a model's blocks. max_error: of estimates, see `Guards`.
    """

    def __init__(
        self, layout: Layout, plan: Plan, local: Any, keeping: Keeping, max_error: float | None, resample: bool
    ) -> None:
        self._layout, self._local, self._keeping = layout, local, keeping
        self._max_error, self._resample = max_error, resample
        layout.check_tokens(plan.rows)
        self.own = self._course(plan)
        self._others: dict[tuple[int, range], Course] = {}

    def of(self, calls: int, part: range) -> Course:
        """The course of the steps ``part`` of a run of so many; StepCountError where that is not the plan's number."""
        if (calls, part) == (self.own.plan.num_steps, range(calls)):
            return self.own
        if (calls, part) not in self._others:
            self._others[calls, part] = self._course(piece(self._plan(calls), part))
        return self._others[calls, part]

    def clear(self) -> None:
        """Let go of the weights that were copied for gates."""
        for course in (self.own, *self._others.values()):
            course.program.clear()

    def _plan(self, calls: int) -> Plan:
        own = self.own.plan
        if calls == own.num_steps:
            return own
        if not self._resample:
            raise StepCountError(
                f"The plan has {own.num_steps} steps, but the pipeline is going to call the model "
                f"{calls} times: make the plan with forecache.grid(pipe, num_steps={calls}), "
                f"sample with num_inference_steps={own.num_steps}, or apply it with resample=True."
            )
        LOGGER.warning("A plan of %d steps was resampled to %d: measure its quality.", own.num_steps, calls)
        return resampled(own, calls)

    def _course(self, plan: Plan) -> Course:
        keeping = self._keeping
        program = Program(self._layout, plan, guarded=self._max_error is not None)
        placed = Placed(plan.constants, keeping.dtype, keeping.device, self._max_error)
        place = Place(self._local, self._layout, program.gates, keeping.dtype, self._max_error)
        budget = Budget(keeping.max_bytes, keeping.dtype) if keeping.max_bytes is not None else None
        return Course(plan, program, placed, place, graphs(self._layout, program.guarded), budget)
