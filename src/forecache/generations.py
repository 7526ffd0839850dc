"""Generations: which step of which generation a model call is, and when a new one starts.

Every thread has lanes of its own, and every lane one generation at a time with a history that belongs to it alone.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from forecache import _modelcall
from forecache._errors import StepCountError
from forecache._modelcall import Inputs
from forecache.adapters import Arguments, Layout
from forecache.choosing import Meter
from forecache.history import History, Past
from forecache.placed import Placed
from forecache.plan import Plan
from forecache.program import Budget, Program


@dataclass
class Lane:
    """One generation in one lane: how far it is, and what it keeps.

    length_known: a scheduler has told how many calls it has.
    """

    history: History
    inputs: Inputs | None
    step: int = 0
    first_timestep: float | None = None
    timestep: float | None = None
    length_known: bool = False


@dataclass
class Running:
    """The state of one thread: its lanes, and what it has done."""

    lanes: dict[str, Lane] = field(default_factory=dict)
    lane: str = "default"
    timesteps: list[float] | None = None
    checked: set[str] = field(default_factory=set)
    meter: Meter = field(default_factory=Meter)
    generations: int = 0
    calls: int = 0
    computed: int = 0
    partial: int = 0

    def drop(self) -> None:
        """Let go of every lane."""
        for lane in self.lanes.values():
            lane.history.clear()
        self.lanes.clear()


class Local(threading.local):
    """What a thread has of its own. current: the past of the model call that runs now. compiler: what it runs under."""

    running: Running | None = None
    current: Past | None = None
    lane: Lane | None = None
    compiler: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None


class Generations:
    """The lanes of a session over all threads.

    layout, program, plan: of its model. scheduler: of its pipeline, if it has one. budget: of what a generation keeps.
    """

    def __init__(
        self, layout: Layout, plan: Plan, program: Program, placed: Placed, scheduler: Any, max_bytes: int | None
    ) -> None:
        self.plan = plan
        self.local = Local()
        self.threads: list[Running] = []
        self._layout, self._program, self._placed = layout, program, placed
        self._scheduler = scheduler
        self._budget = Budget(max_bytes, placed.cache_dtype) if max_bytes is not None else None
        self._timestep = _modelcall.timestep_of(layout.model.forward)

    def running(self) -> Running:
        """The state of this thread."""
        running = self.local.running
        if running is None:
            running = self.local.running = Running()
            self.threads.append(running)
        return running

    def begin(self, run: Running, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Lane:
        """The lane of this call, at the step that the call is; a new generation starts with an empty history."""
        value = self._timestep(args, kwargs)
        inputs = _modelcall.inputs(args, kwargs)
        lane = run.lanes.get(run.lane)
        timestep = self._expected(lane, value) if lane is not None else _modelcall.number(value, self._layout.rising)
        if lane is not None and not self._goes_on(lane, inputs, timestep):
            if self.is_short(lane):
                run.drop()
                raise self.too_short(lane)
            lane.history.clear()
            lane = None
        if lane is None:
            if self._budget is not None:
                self._budget.check(self._layout.model, self._program, self.plan.grid, Arguments(args, kwargs))
            self._program.refresh()
            history = History(self._layout, self._program, run.meter, self._placed)
            lane = run.lanes[run.lane] = Lane(history, inputs, first_timestep=timestep)
            lane.length_known = self._check_length(run, timestep)
            run.generations += run.lane == next(iter(run.lanes))
        lane.timestep = timestep
        return lane

    def _expected(self, lane: Lane, value: Any) -> float | None:
        """The call's timestep as a number; the lane's last one where reading it would wait for a GPU without need.

        There is no need where set_timesteps has told how long the generation is.
        """
        announced = lane.length_known and lane.step < self.plan.num_steps
        return (
            lane.timestep
            if announced and not _modelcall.is_at_hand(value)
            else _modelcall.number(value, self._layout.rising)
        )

    def _goes_on(self, lane: Lane, inputs: Inputs | None, timestep: float | None) -> bool:
        if lane.inputs != inputs:
            return False
        done = lane.step == self.plan.num_steps
        if timestep is None or lane.timestep is None or lane.first_timestep is None:
            return not done
        if timestep > lane.timestep or (done and timestep == lane.first_timestep):
            return False
        if done:
            raise StepCountError(
                f"The plan has {self.plan.num_steps} steps, and this run makes one more model call (timestep "
                f"{timestep:g}): make the plan for this run's number of calls, "
                "method.plan(forecache.grid(model, num_steps=...)). If the model is called several times a step, "
                "name the calls with session.lane(name)."
            )
        return True

    def _check_length(self, run: Running, timestep: float | None) -> bool:
        """Whether a watched scheduler has told the number of calls of this generation; an error if it is not ours."""
        timesteps = run.timesteps
        if timesteps is None or run.lane in run.checked:
            return False
        run.checked.add(run.lane)  # the scheduler spoke of one generation
        # a model that is told t / 1000 starts at 1, which may be the scheduler's last timestep
        if timestep is not None and timestep in timesteps[:-1]:
            timesteps = timesteps[timesteps.index(timestep) :]  # image-to-image starts in the middle
        if len(timesteps) != self.plan.num_steps:
            raise StepCountError(
                f"The plan has {self.plan.num_steps} steps, but the pipeline is going to call the model "
                f"{len(timesteps)} times: make the plan with forecache.grid(pipe, num_steps={len(timesteps)}), or "
                f"sample with num_inference_steps={self.plan.num_steps}."
            )
        return True

    def is_short(self, lane: Lane) -> bool:
        """Stopped in the middle, and nobody told how long it should have been."""
        return 0 < lane.step < self.plan.num_steps and not lane.length_known

    def too_short(self, lane: Lane) -> StepCountError:
        return StepCountError(
            f"The last run made {lane.step} model calls, the plan has {self.plan.num_steps} steps: make the plan with "
            f"forecache.grid(model, num_steps={lane.step}). If the run was stopped on purpose, call session.new_run()."
        )

    def watch(self, set_timesteps: Callable[..., Any]) -> Callable[..., Any]:
        """The scheduler's set_timesteps, which every pipeline calls when a generation starts."""

        @functools.wraps(set_timesteps)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = set_timesteps(*args, **kwargs)
            run = self.running()
            run.drop()
            run.timesteps = [float(each) for each in self._scheduler.timesteps]
            run.checked.clear()
            return result

        return watched
