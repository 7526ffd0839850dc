"""Courses: a plan resolved on a model, and the one for a generation of another length where that is asked for."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from forecache._errors import StepCountError
from forecache.adapters import Layout
from forecache.graphs import Graphs, Place, graphs
from forecache.placed import Placed
from forecache.plan import Plan
from forecache.program import Budget, Program
from forecache.resample import resampled

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
    """The courses of a session, by number of model calls: that of its plan, and with ``resample`` any other.

    local: what carries the current past to a model's blocks. max_error: of estimates, see `Guards`.
    """

    def __init__(
        self, layout: Layout, plan: Plan, local: Any, keeping: Keeping, max_error: float | None, resample: bool
    ) -> None:
        self._layout, self._local, self._keeping = layout, local, keeping
        self._max_error, self._resample = max_error, resample
        layout.check_tokens(plan.rows)
        self.own = self._course(plan)
        self._others: dict[int, Course] = {}

    def of(self, calls: int) -> Course:
        """The course of a generation with so many model calls; StepCountError where that is not the plan's number."""
        own = self.own.plan
        if calls == own.num_steps:
            return self.own
        if not self._resample:
            raise StepCountError(
                f"The plan has {own.num_steps} steps, but the pipeline is going to call the model "
                f"{calls} times: make the plan with forecache.grid(pipe, num_steps={calls}), "
                f"sample with num_inference_steps={own.num_steps}, or apply it with resample=True."
            )
        if calls not in self._others:
            plan = resampled(own, calls)
            LOGGER.warning("A plan of %d steps was resampled to %d: measure its quality.", own.num_steps, calls)
            self._others[calls] = self._course(plan)
        return self._others[calls]

    def _course(self, plan: Plan) -> Course:
        keeping = self._keeping
        program = Program(self._layout, plan, guarded=self._max_error is not None)
        placed = Placed(plan.constants, keeping.dtype, keeping.device, self._max_error)
        place = Place(self._local, self._layout, program.gates, keeping.dtype, self._max_error)
        budget = Budget(keeping.max_bytes, keeping.dtype) if keeping.max_bytes is not None else None
        return Course(plan, program, placed, place, graphs(self._layout, program.guarded), budget)
