"""One thread that owns the model, and the bounded queue before it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from model import Made

LOGGER = logging.getLogger("forecache.serve")


class FullError(Exception):
    """The queue has no place left; ``retry_after``: seconds until it probably has."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The queue is full: ask again in {retry_after} s.")
        self.retry_after = retry_after


class ClosedError(Exception):
    """The server is shutting down: what it has taken it finishes, and it takes nothing more."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down: ask another one.")


class StoppedError(Exception):
    """A generation that nobody waits for any more; raised between two steps of it."""


class Generate(Protocol):
    """What makes an image; on_step is to be called after every step, and what it raises ends the generation."""

    def __call__(
        self, plan: str, labels: Sequence[int], steps: int, guidance: float, seed: int, on_step: Callable[[], None]
    ) -> Made: ...


@dataclass(frozen=True)
class Done:
    """What was made, and the seconds that the model worked on it."""

    made: Made
    seconds: float


@dataclass(eq=False)
class Job:
    """A request on its way. result: a `Done`, or the error that the model raised; cancelled if nobody waited for it."""

    plan: str
    labels: tuple[int, ...]
    steps: int
    guidance: float
    seed: int
    result: Future[Done] = field(default_factory=Future)
    stopped: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Runs jobs one after the other, in the order in which they came, in a thread of its own.

    places: how many jobs may wait beside the one that runs. busy: whether one runs. closing: set by `close`, or before
    it by a signal handler, it refuses further jobs.
    """

    def __init__(self, generate: Generate, places: int) -> None:
        self._generate, self._places = generate, places
        self._waiting: deque[Job] = deque()
        self._change = threading.Condition()
        self._usual = 1.0
        self._ended = False
        self.busy = self.closing = False
        self.thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue. Raises FullError, or ClosedError."""
        with self._change:
            if self.closing:
                raise ClosedError
            if len(self._waiting) >= self._places:
                raise FullError(max(1, round(self._usual * (len(self._waiting) + 1))))
            self._waiting.append(job)
            self._change.notify()

    def withdraw(self, job: Job) -> None:
        """Nobody waits for this job any more: it leaves the queue, or stops after the step that runs."""
        job.stopped.set()
        with self._change:
            if job in self._waiting:
                self._waiting.remove(job)
                job.result.cancel()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def close(self) -> None:
        """Finish every job that was taken, then end the thread."""
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
            made = self._generate(job.plan, job.labels, job.steps, job.guidance, job.seed, on_step)
        except StoppedError as error:
            job.result.set_exception(error)
        except Exception as error:
            LOGGER.exception("A request failed: plan %s, %d steps.", job.plan, job.steps)
            job.result.set_exception(error)
        else:
            seconds = perf_counter() - started
            self._usual = 0.8 * self._usual + 0.2 * seconds
            job.result.set_result(Done(made, seconds))
        finally:
            self.busy = False
