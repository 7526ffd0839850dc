"""The objects around a transformer: its pipeline, its scheduler, its compiled wrapper."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, is_dataclass
from typing import Any

from torch import nn

from forecache.runtime.counting import PartOfRun


@dataclass(frozen=True)
class Host:
    """The objects around a transformer; each may be None.

    pipe: the pipeline whose calls alone follow the plan; None where every call of the model does.
    scheduler: the scheduler that announces the timesteps of a generation.
    optimized: the wrapper that torch.compile gave for the model.
    lanes: names of the model calls of one step, where nothing else names them; () by default.
    part: the steps of a run at which this model is called, where another model is called at the others.
    only_requests: whether the calls of requests alone follow the plan, and all others run as they are.
    """

    pipe: Any = None
    scheduler: Any = None
    optimized: nn.Module | None = None
    lanes: tuple[str, ...] = ()
    part: PartOfRun | None = None
    only_requests: bool = False

    @property
    def is_shared(self) -> bool:
        """Whether the model has calls that do not follow the plan."""
        return self.pipe is not None or self.only_requests


def scheduler_of(target: Any) -> Any:
    """The scheduler of a pipeline, if it announces timesteps; else None."""
    scheduler = getattr(target, "scheduler", None)
    return scheduler if callable(getattr(scheduler, "set_timesteps", None)) else None


@contextmanager
def rescheduled(target: Any, scheduler: Any) -> Iterator[None]:
    """The target with another scheduler in this block, and with its own after it.

    A scheduler that somebody else has set in the meantime is left where it is.
    """
    own = target.scheduler
    _set_scheduler(target, scheduler)
    try:
        yield
    finally:
        if target.scheduler is scheduler:
            _set_scheduler(target, own)


def _set_scheduler(target: Any, scheduler: Any) -> None:
    if is_dataclass(target):  # which may be frozen, as the bundled models are
        object.__setattr__(target, "scheduler", scheduler)
    else:
        target.scheduler = scheduler


@contextmanager
def calls_of(pipe: Any, during: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Run every call of this pipeline, and of no other, inside ``during()``, for as long as this block lasts.

    Python looks ``__call__`` up on the class. So the pipeline gets a subclass of its own for that time, and its class
    is not touched.
    """
    kind = type(pipe)

    @functools.wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not pipe:  # a copy of it
            return kind.__call__(self, *args, **kwargs)
        with during():
            return kind.__call__(self, *args, **kwargs)

    names = {
        "__call__": call,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    pipe.__class__ = type(kind.__name__, (kind,), names)
    try:
        yield
    finally:
        pipe.__class__ = kind
