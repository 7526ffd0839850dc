"""What the calls of a model come through: a pipeline, its scheduler, what a compiler gave."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Ends:
    """What the calls of a model come through, besides the model itself; None for what is not there.

    pipe: a pipeline, if the plan is for its calls alone. scheduler: which tells the timesteps of a generation.
    optimized: what torch.compile gave for the model. lanes: names of the calls of a step that nobody else names.
    part: of the timesteps of a run, those that this model is called at, where another model makes the others.
    """

    pipe: Any = None
    scheduler: Any = None
    optimized: nn.Module | None = None
    lanes: tuple[str, ...] = ()
    part: Callable[[Sequence[float]], range] | None = None


def scheduler_of(target: Any) -> Any:
    """The scheduler of a pipeline, if it can tell timesteps."""
    scheduler = getattr(target, "scheduler", None)
    return scheduler if callable(getattr(scheduler, "set_timesteps", None)) else None


@contextmanager
def calls_of(pipe: Any, during: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Inside the block, every call of this pipeline, and of no other, runs inside ``during()``.

    A call is looked up on the class, so the pipeline is of a subclass of its own for as long; its class is not touched.
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
