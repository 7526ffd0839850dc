"""Generations: which step of which generation a model call is, and when a new one starts.

Every thread has lanes of its own, and every lane one generation at a time with a history that belongs to it alone.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from forecache.errors import RunError, StepCountError
from forecache.models.arguments import Arguments
from forecache.models.layout import Layout
from forecache.runtime import calls
from forecache.runtime.cache import History
from forecache.runtime.calls import Inputs, Seen
from forecache.runtime.executable import Course, Courses
from forecache.runtime.executor import Past
from forecache.runtime.host import Ends
from forecache.runtime.stats import Tally
from forecache.runtime.tokens import Meter

UNNAMED = "default"
"""The lane of calls that nobody named."""


@dataclass(eq=False)
class Lane:
    """One generation in one lane: how far it is, and what it keeps.

    announced: the timesteps of its calls, where a scheduler has told them. of: the steps of the run that these are,
    and how many that has. seen: what the last call was given. need: bytes, where there is a budget.
    """

    course: Course
    history: History
    inputs: Inputs | None
    announced: list[float] | None
    step: int = 0
    first_timestep: float | None = None
    timestep: float | None = None
    seen: Seen | None = None
    of: tuple[int, range] = (0, range(0))
    need: int = 0

    @property
    def num_steps(self) -> int:
        """How many calls it has."""
        return self.course.plan.num_steps


@dataclass(eq=False)
class Running:
    """The state of one thread: its lanes.

    timesteps: that a scheduler has set; told: the lanes that know them. turn: the timestep of the last call, and how
    many calls were at it before.
    """

    lanes: dict[str, Lane] = field(default_factory=dict)
    lane: str = UNNAMED
    timesteps: list[float] | None = None
    told: set[str] = field(default_factory=set)
    turn: tuple[float | None, int] = (None, -1)
    meter: Meter = field(default_factory=Meter)
    thread: threading.Thread = field(default_factory=threading.current_thread)

    def drop(self) -> None:
        """Let go of every lane."""
        for lane in self.lanes.values():
            lane.history.clear()
        self.lanes.clear()
        self.turn = (None, -1)

    def announce(self, timesteps: list[float] | None) -> None:
        """A new generation has these timesteps, or ones that nobody told."""
        self.drop()
        self.timesteps = timesteps
        self.told.clear()


class Local(threading.local):
    """What a thread has of its own.

    current: the past of the model call that runs now. compiler: what it runs under. calling: how many calls of the
    session's pipeline it is in.
    """

    running: Running | None = None
    current: Past | None = None
    lane: Lane | None = None
    compiler: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    calling: int = 0


class Generations:
    """The lanes of a session over all threads.

    courses: what a generation does, by its number of calls. ends: of the model.
    """

    def __init__(self, layout: Layout, courses: Courses, local: Local, tally: Tally, ends: Ends) -> None:
        self.local = local
        self.threads: list[Running] = []
        self.stopped: Lane | None = None
        self._layout, self._courses, self._tally = layout, courses, tally
        self.scheduler, self._names, self._part = ends.scheduler, ends.lanes, ends.part
        self._lock = threading.Lock()
        self._timestep = calls.timestep_of(layout.model.forward)

    def running(self) -> Running:
        """The state of this thread."""
        running = self.local.running
        if running is None:
            running = self.local.running = Running()
            with self._lock:
                self.threads = [each for each in self.threads if each.thread.is_alive() or not self.drop(each)]
                self.threads.append(running)
        return running

    def drop(self, run: Running) -> bool:
        """Let go of a thread's lanes, and remember one that stopped too early."""
        short = [lane for lane in run.lanes.values() if self.is_short(lane)]
        self.stopped = next(iter(short), self.stopped)
        run.drop()
        return True

    def begin(self, run: Running, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Lane:
        """The lane of this call, at the step that the call is; a new generation starts with an empty history."""
        value = self._timestep(args, kwargs)
        inputs = calls.inputs(args, kwargs)
        name = self._turn(run, value) if self._names and run.lane == UNNAMED else run.lane
        lane = run.lanes.get(name)
        timestep = self._expected(lane, value) if lane is not None else calls.number(value, self._layout.rising)
        if lane is not None and not self._goes_on(lane, inputs, timestep):
            if self.is_short(lane):
                run.drop()
                raise self.too_short(lane)
            lane.history.clear()
            lane = self._rest(run, name, inputs, timestep, Arguments(args, kwargs)) if self._is_cut(lane) else None
        if lane is None:
            lane = self._start(run, name, inputs, timestep, Arguments(args, kwargs))
        seen = Seen(args, kwargs, value)
        if timestep is not None and timestep == lane.timestep and seen.again(lane.seen) and self._is_read(lane, value):
            run.drop()
            raise StepCountError(
                f"The model is called several times a step, at timestep {abs(timestep):g} with the same sample again, "
                "as for guidance, and such calls would reuse each other's features: name the calls with "
                "session.lane(name), or with apply(..., lanes=[...])."
            )
        lane.timestep, lane.seen = timestep, seen
        return lane

    def _turn(self, run: Running, value: Any) -> str:
        """The lane of a call that nobody named: calls at one timestep take the names in turn."""
        if run.timesteps is not None and run.lanes and not calls.is_at_hand(value):  # no GPU is waited for
            run.turn = run.turn[0], (run.turn[1] + 1) % len(self._names)
            return self._names[run.turn[1]]
        number = calls.number(value, self._layout.rising)
        turn = run.turn[1] + 1 if number == run.turn[0] else 0
        if turn == len(self._names) and self._is_next(run, number):
            turn = 0
        run.turn = number, turn
        if turn >= len(self._names):
            raise RunError(
                f"The model is called {turn + 1} times at timestep {number}, and lanes names {len(self._names)} calls "
                f"of a step ({', '.join(self._names)}): give as many names as there are calls."
            )
        return self._names[turn]

    def _is_next(self, run: Running, number: float | None) -> bool:
        """Whether all named calls were made, and the next one at the same time is of another step or generation.

        Timesteps that a scheduler told may be the same when the model is called, rounded to bfloat16.
        """
        if all(lane.step == lane.num_steps for lane in run.lanes.values()):
            return True
        lane = run.lanes.get(self._names[0])
        if lane is None or number is None or lane.announced is None or lane.step == lane.num_steps:
            return False
        return abs(lane.announced[lane.step] - abs(number)) <= abs(number) / 100

    def _start(
        self, run: Running, name: str, inputs: Inputs | None, timestep: float | None, arguments: Arguments
    ) -> Lane:
        announced, course, of = self._announced(run, name, timestep)
        lane = self._lane(run, name, inputs, timestep, arguments, (course, announced, of))
        if name == next(iter(run.lanes)):
            self._tally.start()
        return lane

    def _is_cut(self, lane: Lane) -> bool:
        """Whether a pipeline's run goes on with other inputs, as where guidance ends, and half of the batch with it."""
        return lane.announced is not None and 0 < lane.step < lane.num_steps and self.local.calling > 0

    def _rest(
        self, run: Running, name: str, inputs: Inputs | None, timestep: float | None, arguments: Arguments
    ) -> Lane:
        """The steps of a run that are left, with nothing from before: the first is computed."""
        lane = run.lanes[name]
        assert lane.announced is not None
        count, part = lane.of
        of = count, part[lane.step :]
        rest = self._courses.of(*of), lane.announced[lane.step :], of
        return self._lane(run, name, inputs, timestep, arguments, rest)

    def _lane(
        self,
        run: Running,
        name: str,
        inputs: Inputs | None,
        timestep: float | None,
        arguments: Arguments,
        plan: tuple[Course, list[float] | None, tuple[int, range]],
    ) -> Lane:
        course, announced, of = plan
        need = 0
        if course.budget is not None:
            others = [each for each in run.lanes.values() if each is not run.lanes.get(name)]
            beside = sum(each.need for each in others if each.step < each.num_steps)
            need = course.budget.check(self._layout.model, course.program, course.plan.grid, arguments, beside)
        course.program.refresh()
        history = History(self._layout, course.program, run.meter, course.placed)
        lane = Lane(course, history, inputs, announced, first_timestep=timestep, of=of, need=need)
        run.lanes[name] = lane
        return lane

    def _expected(self, lane: Lane, value: Any) -> float | None:
        """The call's timestep as a number; the lane's last one where reading it would wait for a GPU without need.

        There is no need where set_timesteps has told how long the generation is.
        """
        return calls.number(value, self._layout.rising) if self._is_read(lane, value) else lane.timestep

    def _is_read(self, lane: Lane, value: Any) -> bool:
        return lane.announced is None or lane.step >= lane.num_steps or calls.is_at_hand(value)

    def _goes_on(self, lane: Lane, inputs: Inputs | None, timestep: float | None) -> bool:
        if lane.inputs != inputs:
            return False
        done = lane.step == lane.num_steps
        if timestep is None or lane.timestep is None or lane.first_timestep is None:
            return not done
        if not done and lane.announced is not None and (self.local.calling or timestep == lane.announced[lane.step]):
            return True  # also where a sampler goes up on its way; a pipeline's calls are of the run that it announced
        if timestep > lane.timestep or (done and timestep == lane.first_timestep):
            return False
        if done:
            raise StepCountError(
                f"The plan has {lane.num_steps} steps, and this run makes one more model call (timestep "
                f"{timestep:g}): make the plan for this run's number of calls, "
                "method.plan(forecache.grid(model, num_steps=...)). If the model is called several times a step, "
                "name the calls with session.lane(name), or with apply(..., lanes=[...])."
            )
        return True

    def _announced(
        self, run: Running, name: str, timestep: float | None
    ) -> tuple[list[float] | None, Course, tuple[int, range]]:
        """What the generation does that starts with this call, and its timesteps, if a watched scheduler told them."""
        timesteps = run.timesteps
        if timesteps is None or name in run.told:
            return None, self._courses.own, (0, range(0))
        run.told.add(name)  # the scheduler spoke of one generation
        of = len(timesteps), range(len(timesteps))
        if self._part is not None:
            of = len(timesteps), self._part(timesteps)
        # a model that is told t / 1000 starts at 1, which may be the scheduler's last timestep
        elif timestep is not None and timestep in timesteps[:-1]:
            first = getattr(self.scheduler, "begin_index", None)  # a second-order sampler has every timestep twice
            at_first = first is not None and first < len(timesteps) and timesteps[first] == timestep
            timesteps = timesteps[first if at_first else timesteps.index(timestep) :]  # image-to-image
            of = len(timesteps), range(len(timesteps))
        return timesteps[of[1].start : of[1].stop], self._courses.of(*of), of

    def is_short(self, lane: Lane) -> bool:
        """Stopped in the middle, and nobody told how long it should have been."""
        return 0 < lane.step < lane.num_steps and lane.announced is None

    def too_short(self, lane: Lane) -> StepCountError:
        return StepCountError(
            f"The last run made {lane.step} model calls, the plan has {lane.num_steps} steps: make the plan with "
            f"forecache.grid(model, num_steps={lane.step}). If the run was stopped on purpose, call session.new_run()."
        )

    def watch(self, set_timesteps: Callable[..., Any], is_ours: Callable[[], bool]) -> Callable[..., Any]:
        """The scheduler's set_timesteps, which every pipeline calls when a generation starts."""

        @functools.wraps(set_timesteps)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = set_timesteps(*args, **kwargs)
            if is_ours():
                self.running().announce([float(each) for each in self.scheduler.timesteps])
            return result

        return watched
