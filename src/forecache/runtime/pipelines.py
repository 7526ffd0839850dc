"""diffusers as a host: its pipelines, schedulers and ``cache_context``. It is not imported here.

A pipeline says which calls of a model are its own, its scheduler announces the timesteps of a run, and
``cache_context`` of the transformer names the lane of a call. In diffusers 0.42 it may tell the step, the number of
steps, the timestep and the sigma as well. Each of the three may be absent, or another's that looks like it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, is_dataclass
from typing import Any

from torch import Tensor, nn

from forecache.errors import RunError
from forecache.models.find import find, transformers
from forecache.runtime import counting
from forecache.runtime.calls import Told
from forecache.runtime.host import Host, Mount, Runs, removed
from forecache.runtime.loop import LoopHost, share_of_noise
from forecache.runtime.payback import PayingScheduler
from forecache.runtime.run import PartOfRun, Run
from forecache.runtime.stats import Counters


@dataclass(eq=False)
class PipelineHost:
    """The objects of diffusers around a transformer.

    model: the transformer.
    pipe: the pipeline whose calls alone follow the plan; None where every call of the model does.
    scheduler: the scheduler that announces the timesteps of a run; None for none. A pipeline may get another one.
    """

    model: nn.Module
    pipe: Any = None
    scheduler: Any = None
    lanes: tuple[str, ...] = ()
    part: PartOfRun | None = None

    @property
    def is_shared(self) -> bool:
        return self.pipe is not None

    def allows(self, other: Host) -> bool:
        return self.pipe is not None and not (isinstance(other, PipelineHost) and other.pipe is self.pipe)

    def mounts(self, model: nn.Module, runs: Runs) -> Iterator[Mount]:
        if self.scheduler is not None:
            yield Mount(self.scheduler, "set_timesteps", self._announcing(self.scheduler.set_timesteps, runs))
            if runs.may_look_back:
                paying = PayingScheduler(runs.state, runs.is_ours)
                yield Mount(self.scheduler, "step", paying.step_of(self.scheduler, self.scheduler.step))
        if callable(cache_context := getattr(model, "cache_context", None)):
            yield Mount(model, "cache_context", _naming_lanes(cache_context, runs))

    def opened(self, runs: Runs, renew: Callable[[bool], None]) -> AbstractContextManager[object]:
        if self.pipe is None:
            return nullcontext()
        return calls_of(self.pipe, functools.partial(self._call, runs, renew))

    def noise(self, timestep: float | None, sigma: float | None) -> float | None:
        if sigma is None:
            return noise_at(self.scheduler, timestep)
        return share_of_noise(sigma) if _is_flow(self.scheduler) else sigma / (1 + sigma)

    def complaint(self, model: nn.Module, is_in_place: bool, counters: Counters) -> str | None:
        if self.pipe is None:
            return None if is_in_place else removed(model)
        if counters.calls or not counters.calls_elsewhere:
            return None
        return (
            f"The plan is on a {type(self.pipe).__name__}, and its transformer was called {counters.calls_elsewhere} "
            "times in this block, but never by that pipeline, so the plan did nothing: call the pipeline, or apply the "
            "plan to the transformer itself, forecache.apply(pipe.transformer, plan), for a loop of your own."
        )

    @contextmanager
    def _call(self, runs: Runs, renew: Callable[[bool], None]) -> Iterator[None]:
        """One call of the pipeline, which shares no features with the calls before and after it."""
        renew(self._has_changed())
        runs.begin()
        try:
            with runs.inside():
                yield
        except BaseException:
            runs.abort()
            raise
        runs.end()

    def _has_changed(self) -> bool:
        """Whether the pipeline got another scheduler since; RunError if it got another transformer."""
        if all(find(transformer) is not self.model for transformer in transformers(self.pipe)):
            raise RunError(
                f"The transformer of this {type(self.pipe).__name__} is another one than when the plan was applied, so "
                "the plan would do nothing: leave the block or call forecache.disable, and apply the plan again."
            )
        before, self.scheduler = self.scheduler, scheduler_of(self.pipe)
        return self.scheduler is not before

    def _announcing(self, set_timesteps: Callable[..., Any], runs: Runs) -> Callable[..., Any]:
        """The scheduler's set_timesteps, which every pipeline calls when a generation starts."""

        @functools.wraps(set_timesteps)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = set_timesteps(*args, **kwargs)
            if runs.is_ours():
                announcement = counting.announced(self.scheduler, self.pipe)
                runs.begin(known=functools.partial(self._run, announcement))
            return result

        return call

    def _run(self, announcement: counting.Announcement, timestep: float | None) -> Run:
        return counting.run_of(announcement, timestep, self.scheduler, self.pipe, self.part)


def host_of(
    model: nn.Module,
    pipe: Any = None,
    scheduler: Any = None,
    lanes: tuple[str, ...] = (),
    part: PartOfRun | None = None,
) -> Host:
    """The host of a model: diffusers where one of its objects is there, else a loop."""
    if pipe is None and scheduler is None and not callable(getattr(model, "cache_context", None)):
        return LoopHost(lanes, part)
    return PipelineHost(model, pipe, scheduler, lanes, part)


def scheduler_of(target: Any) -> Any:
    """The scheduler of a pipeline, if it announces timesteps; else None."""
    scheduler = getattr(target, "scheduler", None)
    return scheduler if callable(getattr(scheduler, "set_timesteps", None)) else None


def _naming_lanes(cache_context: Callable[..., Any], runs: Runs) -> Callable[..., Any]:
    """diffusers' cache_context, in which pipelines name the calls of a step, as the name of a lane, too."""

    @functools.wraps(cache_context)
    @contextmanager
    def named(name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with cache_context(name, *args, **kwargs) as value:
            if runs.is_ours():
                with runs.call(name, _told(**kwargs)):
                    yield value
            else:
                yield value

    return named


def _told(
    step_index: Any = None, num_inference_steps: Any = None, timestep: Any = None, sigma: Any = None, **_: Any
) -> Told:
    """What a pipeline tells of a call in the fields of diffusers' ``CacheContext``; of other types, as if not told."""
    step, num_steps = (value if isinstance(value, int) else None for value in (step_index, num_inference_steps))
    is_told = step is not None and num_steps is not None
    return Told(
        step if is_told else None,
        num_steps if is_told else None,
        timestep if isinstance(timestep, int | float | Tensor) else None,
        sigma if isinstance(sigma, int | float | Tensor) else None,
    )


def noise_at(scheduler: Any, timestep: float | None) -> float | None:
    """The share of noise at a timestep, b / (a + b) of a sample a x + b noise; None where no scheduler says it."""
    if scheduler is None or timestep is None:
        return None
    if _is_flow(scheduler):
        return min(1.0, max(0.0, timestep / int(getattr(scheduler.config, "num_train_timesteps", 1000))))
    alphas = scheduler.alphas_cumprod
    signal = float(alphas[min(max(round(timestep), 0), len(alphas) - 1)])
    a, b = math.sqrt(signal), math.sqrt(1 - signal)
    return b / (a + b)


def _is_flow(scheduler: Any) -> bool:
    """Whether samples are (1 - sigma) x + sigma noise, as in flow matching; some schedulers have a setting for it."""
    config = getattr(scheduler, "config", None)
    is_set = getattr(config, "use_flow_sigmas", False) or getattr(config, "prediction_type", "") == "flow_prediction"
    return bool(is_set) or getattr(scheduler, "alphas_cumprod", None) is None


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
