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
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from torch import nn

from forecache.errors import RunError, StepCountError
from forecache.io.text import short
from forecache.runtime.calls import Told
from forecache.runtime.host import Host, Mount, Runs, removed
from forecache.runtime.lanes import UNNAMED
from forecache.runtime.run import PartOfRun, Run
from forecache.runtime.stats import Counters


@dataclass(eq=False)
class _Request:
    """A request in progress; it is the key of its run, so that nothing is left of one before with the same name.

    num_steps: model calls of its run, in each lane.
    is_called: whether a model call of it is in progress.
    is_over: whether it was aborted during that call.
    """

    num_steps: int
    is_called: bool = False
    is_over: bool = False


class Requests:
    """The requests of a session that have begun and are not over; any number of them, on any threads.

    Each has histories of its own. The calls of one request come one after the other; those of different requests may
    come in any order. What a request leaves is nothing, however it ends.
    """

    def __init__(self, runs: Sequence[Runs]) -> None:
        """The requests of a session.

        runs: of its models.
        """
        self._runs = runs
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
        known = [_run(steps, tuple(timesteps), runs.part) for runs in self._runs]
        with self._lock:
            if key in self._requests:
                raise RunError(
                    f"The request {short(key)} is in progress: end or abort it, or begin one of another key."
                )
            request = self._requests[key] = _Request(steps)
            for runs, run in zip(self._runs, known, strict=True):
                runs.begin(request, run)

    @contextmanager
    def call(
        self, key: Hashable, lane: str = UNNAMED, step: int | None = None, sigma: float | None = None
    ) -> Iterator[None]:
        """One model call of a request, which this thread makes in the block.

        lane: name of the call among those of one step, such as "cond" and "uncond"; each lane has a history of its own.
        step: number of the step that the call is, from 0; by default the one after the last call of the lane. Where
            steps are left out, the next call is computed.
        sigma: noise level of the sample, for rules that ask for it where no scheduler says it; in flow matching the
            share of noise.

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
                for runs in self._runs:
                    stack.enter_context(runs.inside(request))
                    stack.enter_context(runs.call(lane, Told(step, sigma=sigma)))
                yield
        finally:
            with self._lock:
                request.is_called = False
                if request.is_over:
                    self._abort(request)

    def end(self, key: Hashable) -> None:
        """End a request that has made its calls, and drop its histories.

        Raises RunError for a request that has not begun, and StepCountError where no lane has come to the last step:
        then the request is over all the same. One that is stopped on purpose is aborted.
        """
        with self._lock:
            request = self._of(key)
            made = max(runs.reached(request) for runs in self._runs)
            self._close(key)
        if made < request.num_steps:
            raise StepCountError(
                f"The request {short(key)} ended after {made} of {request.num_steps} model calls: begin it with the "
                "number of calls that it makes, or abort it if it was stopped on purpose."
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
            return sum(runs.held_bytes(request) for request in self._requests.values() for runs in self._runs)

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
            self._abort(request)

    def _abort(self, request: _Request) -> None:
        for runs in self._runs:
            runs.abort(request)


def _run(num_steps: int, timesteps: tuple[float, ...], part: PartOfRun | None) -> Run:
    """The calls of one model in a request; StepCountError where two take turns and nothing says where."""
    if part is not None and not timesteps:
        raise StepCountError(
            f"Two transformers take turns in this run of {num_steps} model calls, and its timesteps say where: "
            "requests.begin(key, timesteps=[...])."
        )
    indices = range(num_steps) if part is None else part(timesteps)
    return Run(num_steps, indices, timesteps[indices.start : indices.stop])


@dataclass(frozen=True)
class RequestsHost:
    """Requests alone: the calls of all others run as they are.

    around: the host that the model would have without requests; what it hears inside a request counts there.
    """

    around: Host
    lanes: tuple[str, ...] = ()
    is_shared: bool = True

    @property
    def part(self) -> PartOfRun | None:
        return self.around.part

    def allows(self, other: Host) -> bool:
        return True

    def mounts(self, model: nn.Module, runs: Runs) -> Iterable[Mount]:
        return self.around.mounts(model, runs)

    def opened(self, runs: Runs, renew: Callable[[bool], None]) -> AbstractContextManager[object]:
        return nullcontext()

    def noise(self, timestep: float | None, sigma: float | None) -> float | None:
        return self.around.noise(timestep, sigma)

    def complaint(self, model: nn.Module, is_in_place: bool, counters: Counters) -> str | None:
        return None if is_in_place else removed(model)
