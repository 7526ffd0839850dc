"""A worker thread that owns the model, and its bounded queue."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from model import Picture

LOGGER = logging.getLogger("forecache.serve")


class FullError(Exception):
    """The queue is full. retry_after: seconds until it probably has room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The queue is full: try again in {retry_after} s.")
        self.retry_after = retry_after


class ClosedError(Exception):
    """The server is shutting down: it finishes the accepted requests and accepts no more."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down: use another one.")


class StoppedError(Exception):
    """The client has gone; raised between two steps to end its generation."""


class Generate(Protocol):
    """A function that samples an image. It calls on_step after every step; on_step may raise to end the generation."""

    def __call__(
        self, plan: str, labels: Sequence[int], steps: int, guidance: float, seed: int, on_step: Callable[[], None]
    ) -> Picture: ...


@dataclass(frozen=True)
class Done:
    """A finished job.

    picture: its image.
    seconds: time of the model.
    """

    picture: Picture
    seconds: float


@dataclass(eq=False)
class Job:
    """A request in the queue or running.

    plan, labels, steps, guidance, seed: what to sample.
    result: a `Done`, or the error that the model raised; cancelled if the client left while the job waited.
    stopped: set when the client has left.
    """

    plan: str
    labels: tuple[int, ...]
    steps: int
    guidance: float
    seed: int
    result: Future[Done] = field(default_factory=Future)
    stopped: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Runs jobs one after the other, in the order of their submission, in a thread of its own.

    places: jobs that may wait beside the running one.
    busy: whether a job is running.
    closing: whether further jobs are refused; set by `close`, or earlier by a signal handler.
    """

    def __init__(self, generate: Generate, places: int) -> None:
        self._generate, self._places = generate, places
        self._waiting: deque[Job] = deque()
        self._change = threading.Condition()
        self._typical_seconds = 1.0
        self._ended = False
        self.busy = self.closing = False
        self.thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> None:
        """Append a job to the queue. Raises FullError or ClosedError."""
        with self._change:
            if self.closing:
                raise ClosedError
            if len(self._waiting) >= self._places:
                raise FullError(max(1, round(self._typical_seconds * (len(self._waiting) + 1))))
            self._waiting.append(job)
            self._change.notify()

    def withdraw(self, job: Job) -> None:
        """Remove a job from the queue, or stop it after the step in progress, because its client has left."""
        job.stopped.set()
        with self._change:
            if job in self._waiting:
                self._waiting.remove(job)
                job.result.cancel()

    @property
    def waiting(self) -> int:
        """The number of waiting jobs."""
        return len(self._waiting)

    def close(self) -> None:
        """Finish every accepted job, then end the thread."""
        with self._change:
            self.closing = self._ended = True
            self._change.notify()
        self.thread.join()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._run(job)

    def _next(self) -> Job | None:
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._ended)
            return self._waiting.popleft() if self._waiting else None

    def _run(self, job: Job) -> None:
        if not job.result.set_running_or_notify_cancel():
            return

        def on_step() -> None:
            if job.stopped.is_set():
                raise StoppedError

        self.busy, started = True, perf_counter()
        try:
            picture = self._generate(job.plan, job.labels, job.steps, job.guidance, job.seed, on_step)
        except StoppedError as error:
            job.result.set_exception(error)
        except Exception as error:
            LOGGER.exception("A request failed: plan %s, %d steps.", job.plan, job.steps)
            job.result.set_exception(error)
        else:
            seconds = perf_counter() - started
            self._typical_seconds = 0.8 * self._typical_seconds + 0.2 * seconds
            job.result.set_result(Done(picture, seconds))
        finally:
            self.busy = False
