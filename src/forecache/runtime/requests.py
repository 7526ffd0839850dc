"""Requests: runs that a host tells apart by keys of its own, with their histories outside of the model.

An engine that brings its own model and samples several requests step by step in turn says when a request begins and how
long its run is, which request and lane a model call belongs to, and when the request is over. That is all that the
runtime needs to know: no pipeline, no scheduler, no diffusers.

with forecache.apply(model, method, only_requests=True) as session:
    session.requests.begin("a", num_steps=20)
    with session.requests.call("a", lane="cond"):
        output = model(x, t, text)
    session.requests.end("a")
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from forecache.errors import RunError, StepCountError
from forecache.io.text import short
from forecache.runtime.generations import Generations
from forecache.runtime.lanes import UNNAMED, ThreadState


@dataclass(eq=False)
class _Request:
    """A request in progress.

    num_steps: model calls of its run, in each lane.
    states: its lanes, per model.
    is_called: whether a model call of it is in progress.
    is_over: whether it was aborted during that call.
    """

    num_steps: int
    states: list[ThreadState]
    is_called: bool = False
    is_over: bool = False


class Requests:
    """The requests of a session that have begun and are not over; any number of them, on any threads.

    Each has histories of its own. The calls of one request come one after the other; those of different requests may
    come in any order. What a request leaves is nothing, however it ends.
    """

    def __init__(self, generations: Sequence[Generations]) -> None:
        self._generations = generations
        self._requests: dict[Hashable, _Request] = {}
        self._lock = threading.Lock()

    def begin(self, key: Hashable, num_steps: int | None = None, *, timesteps: Sequence[float] = ()) -> None:
        """Begin a request.

        key: its name, which no other request in progress has.
        num_steps: model calls of its run in each lane; by default the number of ``timesteps``.
        timesteps: of these calls, as numbers; needed where two models take turns in a run.

        Raises RunError for a key that is in use, and StepCountError without a number of calls.
        """
        steps = len(timesteps) if num_steps is None else num_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1 or len(timesteps) not in (0, steps):
            raise StepCountError(
                f"A request begins with the number of its model calls, or a timestep for each: num_steps="
                f"{short(num_steps)} and {len(timesteps)} timesteps were given."
            )
        states = [generations.new_state(steps, tuple(timesteps)) for generations in self._generations]
        with self._lock:
            if key in self._requests:
                raise RunError(
                    f"The request {short(key)} is in progress: end or abort it, or begin one of another key."
                )
            self._requests[key] = _Request(steps, states)

    @contextmanager
    def call(self, key: Hashable, lane: str = UNNAMED, step: int | None = None) -> Iterator[None]:
        """One model call of a request, which this thread makes in the block.

        lane: name of the call among those of one step, such as "cond" and "uncond"; each lane has a history of its own.
        step: number of the step that the call is, from 0; by default the one after the last call of the lane. Where
            steps are left out, the next call is computed.

        Raises RunError for a request that has not begun, or is being called by another thread. The model call raises
        StepCountError for a step that the lane has made already.
        """
        with self._lock:
            request = self._of(key)
            if request.is_called:
                raise RunError(f"A model call of the request {short(key)} is in progress: its calls come one by one.")
            request.is_called = True
        try:
            with ExitStack() as stack:
                for generations, state in zip(self._generations, request.states, strict=True):
                    stack.enter_context(generations.inside(state, lane, step))
                yield
        finally:
            with self._lock:
                request.is_called = False
                if request.is_over:
                    _drop(request)

    def end(self, key: Hashable) -> None:
        """End a request that has made its calls, and drop its histories.

        Raises RunError for a request that has not begun, and StepCountError where no lane has come to the last step:
        then the request is over all the same. One that is stopped on purpose is aborted.
        """
        with self._lock:
            request = self._of(key)
            steps = [lane.run.indices.start + lane.step for state in request.states for lane in state.lanes.values()]
            self._close(key)
        if max(steps, default=0) < request.num_steps:
            raise StepCountError(
                f"The request {short(key)} ended after {max(steps, default=0)} of {request.num_steps} model calls: "
                "begin it with the number of calls that it makes, or abort it if it was stopped on purpose."
            )

    def abort(self, key: Hashable) -> None:
        """End a request wherever it is, and drop its histories: those of a call in progress when the call ends.

        A key that is not in use is no error, so that a host can abort whatever it is told to.
        """
        with self._lock:
            if key in self._requests:
                self._close(key)

    def clear(self) -> None:
        """Abort all requests."""
        with self._lock:
            for key in list(self._requests):
                self._close(key)

    @property
    def keys(self) -> list[Hashable]:
        """The keys of the requests in progress, in the order in which they began."""
        return list(self._requests)

    @property
    def held_bytes(self) -> int:
        """The bytes that all requests hold now."""
        with self._lock:
            return sum(state.meter.held for request in self._requests.values() for state in request.states)

    def _of(self, key: Hashable) -> _Request:
        if key not in self._requests:
            raise RunError(
                f"There is no request {short(key)} in progress: begin it before its first model call, "
                "requests.begin(key, num_steps=...)."
            )
        return self._requests[key]

    def _close(self, key: Hashable) -> None:
        request = self._requests.pop(key)
        request.is_over = True
        if not request.is_called:
            _drop(request)


def _drop(request: _Request) -> None:
    for state in request.states:
        state.drop()
