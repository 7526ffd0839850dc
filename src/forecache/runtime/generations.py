"""Generations: which step of which generation a model call is, and when a new generation starts.

Every thread has lanes of its own, and every lane one generation at a time, with a cache that belongs to it alone.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from forecache.errors import RunError, StepCountError
from forecache.models.arguments import Arguments
from forecache.models.layout import Layout
from forecache.runtime import calls
from forecache.runtime.cache import FeatureCache
from forecache.runtime.calls import CallSignature, LastSample
from forecache.runtime.executable import Executable, Executables
from forecache.runtime.executor import StepExecutor
from forecache.runtime.host import Host
from forecache.runtime.stats import Counters
from forecache.runtime.storage import CacheMeter
from forecache.runtime.tokens import TokenChooser

UNNAMED = "default"
"""The lane of calls that nothing names."""


@dataclass(eq=False)
class Lane:
    """One generation in one lane: its progress, and what it keeps.

    executable: the steps of the generation.
    num_steps: model calls of the generation.
    executor: runs them.
    cache: the kept features.
    signature: signature of its calls; None where no argument is a tensor.
    announced: timesteps of its calls, announced by the scheduler; None if none announced them.
    steps_of_run: (total, indices): the number of steps of the whole run, and which of them this model is called for.
    cache_bytes: peak memory of the generation, in bytes, where there is a budget; else 0.
    first_timestep, timestep: timesteps of the first and the last call, negated where time rises; None if unknown.
    step: number of the next step.
    computed: the steps so far at which every site was computed.
    last_sample: sample of the last call; None before the first.
    """

    executable: Executable
    num_steps: int
    executor: StepExecutor
    cache: FeatureCache
    signature: CallSignature | None
    announced: list[float] | None
    steps_of_run: tuple[int, range]
    cache_bytes: int
    first_timestep: float | None
    timestep: float | None = None
    step: int = 0
    computed: list[int] = field(default_factory=list)
    last_sample: LastSample | None = None

    @property
    def is_done(self) -> bool:
        return self.step == self.num_steps

    @property
    def is_short(self) -> bool:
        """Whether it stopped in the middle, and no scheduler announced how long it should have been."""
        return 0 < self.step < self.num_steps and self.announced is None

    def clear(self) -> None:
        """Drop the kept features, scores and ages."""
        self.cache.clear()
        self.executor.chooser.clear()


@dataclass(eq=False)
class ThreadState:
    """The lanes of one thread.

    lanes: by name.
    lane: name of the lane that model calls belong to now.
    timesteps: announced by the scheduler; None if none announced them.
    announced_to: lanes that have consumed the announcement.
    unnamed_turn: timestep of the last call that nothing named, and the number of calls at it before.
    meter: counts the bytes of all lanes.
    thread: the thread.
    """

    lanes: dict[str, Lane] = field(default_factory=dict)
    lane: str = UNNAMED
    timesteps: list[float] | None = None
    announced_to: set[str] = field(default_factory=set)
    unnamed_turn: tuple[float | None, int] = (None, -1)
    meter: CacheMeter = field(default_factory=CacheMeter)
    thread: threading.Thread = field(default_factory=threading.current_thread)

    def drop(self) -> None:
        """Drop every lane."""
        for lane in self.lanes.values():
            lane.clear()
        self.lanes.clear()
        self.unnamed_turn = (None, -1)

    def announce(self, timesteps: list[float] | None) -> None:
        """Start a new generation; timesteps is None if no scheduler announced them."""
        self.drop()
        self.timesteps = timesteps
        self.announced_to.clear()


class Local(threading.local):
    """Thread-local state of a session on one model.

    state: lanes of the thread; None before its first call.
    executor: executor of the model call in progress; None outside of one.
    lane: lane of the model call in progress.
    compiler: compiles the steps of the call in progress; None where they run eagerly.
    pipeline_calls: calls of the session's pipeline in progress, one inside another.
    """

    state: ThreadState | None = None
    executor: StepExecutor | None = None
    lane: Lane | None = None
    compiler: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    pipeline_calls: int = 0


class Generations:
    """The lanes of a session on one model, over all threads.

    layout: layout of the model.
    executables: what a generation runs, by its number of calls.
    local: thread-local state.
    counters: counts generations.
    host: the objects around the model.
    threads: the state of every thread that has called the model and is alive.
    stopped: a lane that stopped too early in a thread that has ended or was dropped; None for none.
    """

    def __init__(self, layout: Layout, executables: Executables, local: Local, counters: Counters, host: Host) -> None:
        self.local = local
        self.threads: list[ThreadState] = []
        self.stopped: Lane | None = None
        self.scheduler = host.scheduler
        self._layout, self._executables, self._counters = layout, executables, counters
        self._names, self._part = host.lanes, host.part
        self._lock = threading.Lock()
        self._find_timestep = calls.timestep_finder(layout.model.forward)

    def state(self) -> ThreadState:
        """The state of this thread."""
        state = self.local.state
        if state is None:
            state = self.local.state = ThreadState()
            with self._lock:
                ended = [other for other in self.threads if not other.thread.is_alive()]
                self.threads = [other for other in self.threads if other not in ended] + [state]
                for other in ended:
                    self.drop(other)
        return state

    def drop(self, state: ThreadState) -> None:
        """Drop the lanes of a thread, and remember one that stopped too early."""
        self.stopped = next((lane for lane in state.lanes.values() if lane.is_short), self.stopped)
        state.drop()

    def begin(self, arguments: Arguments) -> Lane:
        """The lane of this model call, at the step that the call is; a new generation starts with an empty cache."""
        state = self.state()
        value = self._find_timestep(arguments)
        signature = calls.signature_of(arguments)
        name = self._unnamed_lane(state, value) if self._names and state.lane == UNNAMED else state.lane
        lane = state.lanes.get(name)
        if lane is None or _is_read(lane, value):
            timestep = calls.as_number(value, self._layout.rising)
        else:
            timestep = lane.timestep
        if lane is not None and not self._goes_on(lane, signature, timestep):
            if lane.is_short:
                state.drop()
                raise too_short(lane)
            lane.clear()
            lane = self._rest_of_run(state, name, signature, timestep, arguments) if self._is_cut(lane) else None
        if lane is None:
            lane = self._new_generation(state, name, signature, timestep, arguments)
        sample = LastSample(arguments, value)
        is_again = timestep is not None and timestep == lane.timestep and sample.is_same(lane.last_sample)
        if is_again and timestep is not None and _is_read(lane, value):
            state.drop()
            raise StepCountError(
                f"The model is called several times a step, at timestep {abs(timestep):g} with the same sample again, "
                "as for guidance, and such calls would reuse each other's features: name the calls with "
                "session.lane(name), or with apply(..., lanes=[...])."
            )
        lane.timestep, lane.last_sample = timestep, sample
        return lane

    def _unnamed_lane(self, state: ThreadState, value: Any) -> str:
        """The lane of a call that nothing named: the calls at one timestep take the names in turn."""
        before, turn = state.unnamed_turn
        if state.timesteps is not None and state.lanes and not calls.is_at_hand(value):  # no GPU is waited for
            turn = (turn + 1) % len(self._names)
            state.unnamed_turn = before, turn
            return self._names[turn]
        timestep = calls.as_number(value, self._layout.rising)
        turn = turn + 1 if timestep == before else 0
        if turn == len(self._names) and self._starts_a_step(state, timestep):
            turn = 0
        state.unnamed_turn = timestep, turn
        if turn >= len(self._names):
            raise RunError(
                f"The model is called {turn + 1} times at timestep {timestep}, and lanes names {len(self._names)} "
                f"calls of a step ({', '.join(self._names)}): give as many names as there are calls."
            )
        return self._names[turn]

    def _starts_a_step(self, state: ThreadState, timestep: float | None) -> bool:
        """Whether a call at the timestep of the last step, all of whose calls were made, starts another step.

        Timesteps that differ when they are announced may be equal when the model is called, rounded to bfloat16.
        """
        if all(lane.is_done for lane in state.lanes.values()):
            return True
        lane = state.lanes.get(self._names[0])
        if lane is None or timestep is None or lane.announced is None or lane.is_done:
            return False
        return abs(lane.announced[lane.step] - abs(timestep)) <= abs(timestep) / 100

    def _goes_on(self, lane: Lane, signature: CallSignature | None, timestep: float | None) -> bool:
        """Whether a call belongs to the lane's generation; StepCountError if it is one too many."""
        if lane.signature != signature:
            return False
        if timestep is None or lane.timestep is None or lane.first_timestep is None:
            return not lane.is_done
        # a pipeline's calls are of the run that it announced, and some samplers go up on their way
        announced = None if lane.is_done or lane.announced is None else lane.announced[lane.step]
        if announced is not None and (self.local.pipeline_calls or timestep == announced):
            return True
        if timestep > lane.timestep or (lane.is_done and timestep == lane.first_timestep):
            return False
        if lane.is_done:
            raise StepCountError(
                f"The plan has {lane.num_steps} steps, and this run makes one more model call (timestep "
                f"{timestep:g}): make the plan for this run's number of calls, "
                "method.plan(forecache.grid(model, num_steps=...)). If the model is called several times a step, "
                "name the calls with session.lane(name), or with apply(..., lanes=[...])."
            )
        return True

    def _is_cut(self, lane: Lane) -> bool:
        """Whether a pipeline's run goes on with other inputs, as where guidance ends, and half of the batch with it."""
        return lane.announced is not None and 0 < lane.step < lane.num_steps and self.local.pipeline_calls > 0

    def _rest_of_run(
        self,
        state: ThreadState,
        name: str,
        signature: CallSignature | None,
        timestep: float | None,
        arguments: Arguments,
    ) -> Lane:
        """A lane for the steps of a run that are left. Nothing from before is read, so its first step is computed."""
        lane = state.lanes[name]
        assert lane.announced is not None
        total, indices = lane.steps_of_run
        left = total, indices[lane.step :]
        run = self._executables.of(*left), lane.announced[lane.step :], left
        return self._lane(state, name, signature, timestep, arguments, run)

    def _new_generation(
        self,
        state: ThreadState,
        name: str,
        signature: CallSignature | None,
        timestep: float | None,
        arguments: Arguments,
    ) -> Lane:
        run = self._announced_run(state, name, timestep)
        lane = self._lane(state, name, signature, timestep, arguments, run)
        if name == next(iter(state.lanes)):
            self._counters.add_generation()
        return lane

    def _lane(
        self,
        state: ThreadState,
        name: str,
        signature: CallSignature | None,
        timestep: float | None,
        arguments: Arguments,
        run: tuple[Executable, list[float] | None, tuple[int, range]],
    ) -> Lane:
        executable, announced, steps_of_run = run
        others = [lane for other, lane in state.lanes.items() if other != name and not lane.is_done]
        cache_bytes = executable.check_budget(arguments, beside=sum(lane.cache_bytes for lane in others))
        executable.refresh()
        options = executable.options
        cache = FeatureCache(executable.num_slots, executable.constants, options, state.meter)
        chooser = TokenChooser(self._layout, state.meter, cache.random)
        executor = StepExecutor(self._layout, cache, chooser, executable.gates, options.max_error)
        num_steps = executable.num_steps
        lane = Lane(executable, num_steps, executor, cache, signature, announced, steps_of_run, cache_bytes, timestep)
        state.lanes[name] = lane
        return lane

    def _announced_run(
        self, state: ThreadState, name: str, timestep: float | None
    ) -> tuple[Executable, list[float] | None, tuple[int, range]]:
        """The executable of the generation that starts with this call, its announced timesteps, and its steps."""
        timesteps = state.timesteps
        if timesteps is None or name in state.announced_to:
            return self._executables.own, None, (0, range(0))
        state.announced_to.add(name)  # the scheduler announced one generation
        steps_of_run = len(timesteps), range(len(timesteps))
        if self._part is not None:
            steps_of_run = len(timesteps), self._part(timesteps)
        # a model that is given t / 1000 starts at 1, which may be the scheduler's last timestep
        elif timestep is not None and timestep in timesteps[:-1]:
            first = getattr(self.scheduler, "begin_index", None)  # a second-order sampler has every timestep twice
            is_first = first is not None and first < len(timesteps) and timesteps[first] == timestep
            timesteps = timesteps[first if is_first else timesteps.index(timestep) :]  # image-to-image
            steps_of_run = len(timesteps), range(len(timesteps))
        indices = steps_of_run[1]
        return self._executables.of(*steps_of_run), timesteps[indices.start : indices.stop], steps_of_run

    def watched(self, set_timesteps: Callable[..., Any], is_ours: Callable[[], bool]) -> Callable[..., Any]:
        """The scheduler's set_timesteps, which every pipeline calls when a generation starts."""

        @functools.wraps(set_timesteps)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = set_timesteps(*args, **kwargs)
            if is_ours():
                self.state().announce([float(timestep) for timestep in self.scheduler.timesteps])
            return result

        return call


def _is_read(lane: Lane, value: Any) -> bool:
    """Whether the timestep of a call is read as a number.

    Reading it may wait for a GPU. There is no need where a scheduler has announced how long the generation is.
    """
    return lane.announced is None or lane.is_done or calls.is_at_hand(value)


def too_short(lane: Lane) -> StepCountError:
    return StepCountError(
        f"The last run made {lane.step} model calls, the plan has {lane.num_steps} steps: make the plan with "
        f"forecache.grid(model, num_steps={lane.step}). If the run was stopped on purpose, call session.new_run()."
    )
