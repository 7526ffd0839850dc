"""A worker thread that owns the model, its bounded queue, and the generations that take turns on it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from model import Generation, Picture

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
    """The client has gone; its generation was closed between two steps."""


class Generate(Protocol):
    """A function that begins a generation, which makes one step at a time."""

    def __call__(self, plan: str, labels: Sequence[int], steps: int, guidance: float, seed: int) -> Generation: ...


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


@dataclass(eq=False)
class Turn:
    """A job that has begun.

    seconds: time of the model so far.
    """

    job: Job
    generation: Generation
    seconds: float = 0.0


class Worker:
    """Runs jobs in a thread of its own: up to ``together`` at once, which take turns step by step; others wait.

    Jobs begin in the order of their submission. With ``together`` = 1 they run one after the other.

    places: jobs that may wait beside the running ones.
    closing: whether further jobs are refused; set by `close`, or earlier by a signal handler.
    """

    def __init__(self, generate: Generate, places: int, together: int = 1) -> None:
        self._generate, self._places, self._together = generate, places, together
        self._waiting: deque[Job] = deque()
        self._turns: deque[Turn] = deque()
        self._change = threading.Condition()
        self._typical_seconds = 1.0
        self._ended = False
        self.closing = False
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

    @property
    def busy(self) -> bool:
        """Whether jobs are running."""
        return bool(self._turns)

    def close(self) -> None:
        """Finish every accepted job, then end the thread."""
        with self._change:
            self.closing = self._ended = True
            self._change.notify()
        self.thread.join()

    def _work(self) -> None:
        while self._begin():
            for turn in list(self._turns):
                if self._advance(turn):
                    self._turns.remove(turn)

    def _begin(self) -> bool:
        """Begin as many jobs as may run; whether there are any. Waits for one unless the worker is closed."""
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._turns or self._ended)
            while self._waiting and len(self._turns) < self._together:
                job = self._waiting.popleft()
                if job.result.set_running_or_notify_cancel():
                    generation = self._generate(job.plan, job.labels, job.steps, job.guidance, job.seed)
                    self._turns.append(Turn(job, generation))
            return bool(self._turns) or not self._ended

    def _advance(self, turn: Turn) -> bool:
        """Make one step of a job, unless its client has left; whether it is over."""
        job, started = turn.job, perf_counter()
        try:
            if job.stopped.is_set():
                turn.generation.close()
                raise StoppedError
            next(turn.generation)
        except StopIteration as finished:
            turn.seconds += perf_counter() - started
            self._typical_seconds = 0.8 * self._typical_seconds + 0.2 * turn.seconds
            job.result.set_result(Done(finished.value, turn.seconds))
            return True
        except StoppedError as error:
            job.result.set_exception(error)
            return True
        except Exception as error:
            LOGGER.exception("A request failed: plan %s, %d steps.", job.plan, job.steps)
            job.result.set_exception(error)
            return True
        turn.seconds += perf_counter() - started
        return False
