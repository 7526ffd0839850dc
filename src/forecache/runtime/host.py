"""The interface between the runtime and its hosts, which make the calls of a model that follow a plan.

A host tells a model's `Runs` what it knows: that a run begins, under which key and with which calls; which calls are
its own, and the lane, step, timestep and noise level of each; that a run has ended or was aborted. It knows nothing of
plans and features. The runtime knows nothing of pipelines, schedulers or servers: all that it asks is `Host`.

The hosts here are diffusers' pipelines, schedulers and ``cache_context`` (`forecache.runtime.pipelines`), a loop of the
user's own (`forecache.runtime.loop`), and requests by keys (`forecache.runtime.requests`), on which engines are built.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from forecache.errors import StepCountError
from forecache.models.mount.replace import replaced
from forecache.models.regional import called_plainly
from forecache.runtime.calls import NOTHING, Told
from forecache.runtime.lanes import Local, ThreadState
from forecache.runtime.run import Announced, PartOfRun, Run, too_short
from forecache.runtime.stats import Counters

THREAD = object()
"""The key of the run that a thread samples without a key of its own, as in a pipeline or loop."""


@dataclass(frozen=True)
class Mount:
    """A function in the place of another.

    owner, name: where it is set
    function: the function
    retire: makes it pass calls on to what it replaced, for those who wrapped it; None where it needs nothing
    part: the site's or block's module whose forward it is; None for others
    """

    owner: object
    name: str
    function: Callable[..., Any]
    retire: Callable[[], None] | None = None
    part: nn.Module | None = None

    @contextmanager
    def put(self) -> Iterator[None]:
        """Put the function in its place in this block."""
        plainly = nullcontext() if self.part is None else called_plainly(self.part)
        with replaced(self.owner, self.name, self.function), plainly:
            yield


class Host(Protocol):
    """Whoever makes the calls of a model that follow the plan. What the runtime asks of it is this, and no more."""

    @property
    def lanes(self) -> tuple[str, ...]:
        """Names of the model calls of one step, in turn, where nothing else names them; () for none."""
        ...

    @property
    def part(self) -> PartOfRun | None:
        """The steps of a run at which this model is called, where another is called at the others; None for all."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether the model has calls of others, too: then only those inside `Runs.inside` follow the plan."""
        ...

    def allows(self, other: Host) -> bool:
        """Whether another host may have a session of its own on the same model at the same time."""
        ...

    def mounts(self, model: nn.Module, runs: Runs) -> Iterable[Mount]:
        """The functions that it puts in the place of others while a session is open, to hear of runs and lanes."""
        ...

    def opened(self, runs: Runs, renew: Callable[[bool], None]) -> AbstractContextManager[object]:
        """The block in which a session is open.

        renew: puts our functions in place again where others have removed or covered them, or, if it is given True,
            in any case, because what the host mounts has changed.
        """
        ...

    def noise(self, timestep: float | None, sigma: float | None) -> float | None:
        """The share of noise in a sample, from 0 to 1, for rules that ask for it; None where the host cannot say.

        timestep: of the call; sigma: the noise level that was told with it; None where they are unknown.
        """
        ...

    def complaint(self, model: nn.Module, is_in_place: bool, counters: Counters) -> str | None:
        """A sentence about a session that did nothing, or stopped doing it; None where all is well.

        is_in_place: whether our forward is still on the model where the session ends.
        counters: model calls that followed the plan, and those of others.
        """
        ...


def removed(model: nn.Module) -> str:
    """The complaint about a model whose own forward was put back while a session was open."""
    return (
        f"Something in this block has put the forward of {type(model).__name__} back, as CPU offload does after each "
        "image, so that the plan did nothing from then on: apply the plan to the pipeline."
    )


class Runs:
    """The runs of one model in progress: the one entry through which hosts tell of them.

    A run has a key: one of its host's, or THREAD, the default, for what a thread samples without one.

    local: thread-local state.
    part: the steps of a run at which the model is called, where another is called at the others; None for all.
    threads: the lanes of every thread that has called the model without a key and is alive.
    stopped: the error for a run that stopped too early while another one began, or whose thread has ended; None for
        none.
    is_open: whether the session is open.
    may_look_back: whether a plan may correct samples in hindsight, which a host does where its sampler takes a step.
    """

    def __init__(self, local: Local, host: Host, rising: bool, takes: Callable[[int], bool]) -> None:
        """Runs of a host.

        rising: whether the model's time goes up in a run.
        takes: whether there is a plan of a run of so many model calls.
        """
        self.local, self.part = local, host.part
        self.threads: list[ThreadState] = []
        self.stopped: StepCountError | None = None
        self.is_open = True
        self.may_look_back = False
        self._is_shared, self._rising, self._takes = host.is_shared, rising, takes
        self._keyed: dict[Hashable, ThreadState] = {}
        self._lock = threading.Lock()

    # ---- what hosts tell --------------------------------------------------------------------------------------------

    def begin(self, key: Hashable = THREAD, known: Run | Announced | None = None) -> None:
        """Begin a run; what the key had before is dropped.

        known: the run, whose calls follow one another or are told by their numbers; or a function that gives it from
            the timestep of the first call; or None, where nothing is known of it and the calls are counted.
        """
        if key is not THREAD:
            self._keyed.setdefault(key, ThreadState(self._rising, is_keyed=True)).begin(known)
        elif not (state := self.state()).is_keyed:  # a scheduler that is set in a request's call announces nothing new
            state.begin(known)

    @contextmanager
    def inside(self, key: Hashable = THREAD) -> Iterator[None]:
        """The block in which the model calls of this thread are a host's, and belong to the run of this key."""
        local, before = self.local, self.local.state
        if key is not THREAD:
            local.state = self._keyed[key]
        local.hosted += 1
        try:
            yield
        finally:
            local.hosted -= 1
            if key is not THREAD:
                local.state = before

    @contextmanager
    def call(self, lane: str, told: Told = NOTHING) -> Iterator[None]:
        """The block of the model call in this lane, of which a host tells more.

        The step is of use where the length of the run is known. What a scheduler announced counts more than the step
        and length that are told with a call. Where neither a key nor a scheduler gives a run, it is the told one: a
        step that the lane has made already, or another length, begins a new one. A plan of another length than the told
        one is that of a part of the run, of one of two transformers that share it: its calls are counted.
        """
        state = self.state()
        before = state.lane, state.told
        state.lane, state.told = lane, told
        begins = self._hear(state, told)
        try:
            yield
        finally:
            state.lane, state.told = before
            if told.step is not None:
                state.step = None  # of a block without a model call
            if begins:
                state.run = None

    def end(self, key: Hashable = THREAD) -> None:
        """End a run that has made its calls, and drop what it kept.

        Raises StepCountError for one that is shorter than its plan, where no host told its length.
        """
        short = next((lane for lane in self.state(key).lanes.values() if lane.is_short), None)
        self.abort(key)
        if short is not None:
            raise too_short(short.step, short.num_steps)

    def abort(self, key: Hashable = THREAD) -> None:
        """End a run wherever it is, and drop what it kept."""
        if key is not THREAD:
            self._keyed.pop(key).drop()
        elif not (state := self.state()).is_keyed:
            state.begin(None)

    def restart(self) -> None:
        """Drop what the run of this thread kept; it begins anew with the next call, as it was announced."""
        self.state().drop()

    # ---- what the runtime reads -------------------------------------------------------------------------------------

    def is_ours(self) -> bool:
        """Whether the model call in progress on this thread follows the plan."""
        return self.is_open and (not self._is_shared or self.local.hosted > 0)

    def state(self, key: Hashable = THREAD) -> ThreadState:
        """The lanes of a run; for THREAD, of the run to which this thread's calls belong."""
        if key is not THREAD:
            return self._keyed[key]
        state = self.local.state
        if state is None:
            state = self.local.state = ThreadState(self._rising)
            with self._lock:
                ended = [other for other in self.threads if not other.thread.is_alive()]
                self.threads = [other for other in self.threads if other not in ended] + [state]
                for other in ended:
                    self.drop(other)
        return state

    def reached(self, key: Hashable) -> int:
        """The number of calls of its whole run that the furthest lane of a key has behind it."""
        return max((lane.run.indices.start + lane.step for lane in self._keyed[key].lanes.values()), default=0)

    def held_bytes(self, key: Hashable) -> int:
        """The bytes that the run of a key holds now."""
        return self._keyed[key].meter.held

    def check_complete(self) -> None:
        """Raises StepCountError if the last run of this thread made fewer calls than its plan has steps."""
        for lane in self.state().lanes.values():
            if lane.is_short:
                raise too_short(lane.step, lane.num_steps)

    def drop(self, state: ThreadState) -> None:
        """Drop the lanes of a thread, and remember one that stopped too early."""
        for lane in state.lanes.values():
            if lane.is_short:
                self.stopped = too_short(lane.step, lane.num_steps)
            elif lane.is_done and lane.doubtful and not lane.is_announced:
                self.stopped = too_short(lane.doubtful, lane.num_steps)
        state.drop()

    def close(self) -> None:
        """Drop the lanes of all threads."""
        self.is_open = False
        for state in list(self.threads):
            self.drop(state)

    def _hear(self, state: ThreadState, told: Told) -> bool:
        """Take the step that is told; returns whether a run begins with it that lasts as long as the call."""
        step, num_steps = told.step, told.num_steps
        if step is None or state.announced is not None or (num_steps is not None and not self._takes(num_steps)):
            return False
        if state.run is not None:
            state.step = step
            return False
        if num_steps is None:
            return False
        lane = state.lanes.get(state.lane)
        if lane is not None and (step < lane.run.indices.start + lane.step or lane.run.total != num_steps):
            state.drop()
        state.run, state.step = Run(num_steps, range(num_steps)), step
        return True
