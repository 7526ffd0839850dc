"""Putting a plan on a model or a pipeline: for a block, or until further notice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from forecache.errors import PlanError, RunError
from forecache.models.find import find, grid_of, layout_for, optimized, transformers
from forecache.plan.plan import Plan
from forecache.runtime.executable import Keeping
from forecache.runtime.guards import OPEN, Guards
from forecache.runtime.host import Ends, scheduler_of
from forecache.runtime.session import Session
from forecache.runtime.sessions import Sessions, parts


def apply(
    target: Any,
    plan: Plan,
    *,
    lanes: Sequence[str] = (),
    resample: bool = False,
    guards: Guards = OPEN,
    cache_dtype: torch.dtype | None = None,
    cache_device: str | torch.device | None = None,
    max_cache_bytes: int | None = None,
) -> Session | Sessions:
    """A session in which ``target`` samples by ``plan``: ``with forecache.apply(pipe, plan) as session: ...``

    target: a diffusers pipeline, a diffusers transformer, what torch.compile gave for one, or any module that has the
    plan's sites. On a pipeline the plan is for that pipeline's calls, and for no other's that has the same transformer;
    A pipeline of two transformers, as Wan 2.2, gets one schedule; the second one's first step is computed.
    For a sampling loop of your own give the transformer, or an object with its ``transformer`` and ``scheduler``.
    lanes: names of the calls of one step, such as ("cond", "uncond"), for a pipeline that makes several, one after the
    other at the same timestep, and does not open diffusers' ``cache_context`` for them; each has a history of its own.
    resample: a generation whose scheduler announces another number of steps gets the plan `resampled` to it, with a
    line in the log; without, it is an error. guards: what is refused, and when estimates fall back to reuse.
    cache_dtype: keep features in this dtype, such as torch.bfloat16 for a float32 model; half the bytes, rounded.
    cache_device: keep them there, such as "cpu" beside a GPU that is full; they are brought back one ahead of their
    use. max_cache_bytes: a generation whose plan needs more is refused before its first model call.

    Raises PlanMismatchError for a plan of another model, AlreadyAppliedError for a second session on the model;
    in the block, StepCountError for a run that is longer or shorter than the plan, CacheBudgetError for one over the
    budget.
    """
    _check(plan, cache_dtype, max_cache_bytes)
    keeping = Keeping(cache_dtype, _device(cache_device), max_cache_bytes)

    def session(model: Any, part: Callable[[Sequence[float]], range] | None = None) -> Session:
        layout = layout_for(find(model), plan.grid)
        guards.check(plan, lambda: grid_of(target, layout, plan.num_steps))
        ends = Ends(pipe, scheduler_of(target), optimized(model), tuple(lanes), part)
        return Session(layout, plan, ends, keeping, max_error=guards.max_error, resample=resample)

    pipe = target if callable(target) and not isinstance(target, nn.Module) else None
    if len(models := transformers(target)) > 1:
        made = [session(*each) for each in zip(models, parts(target), strict=True)]
        return Sessions(plan, made)
    return session(target)


def _check(plan: object, cache_dtype: object, max_cache_bytes: int | None) -> None:
    """Raises PlanError for what is no plan, no dtype of features and no number of bytes."""
    if not isinstance(plan, Plan):
        raise PlanError(
            f"A plan is applied, not a {type(plan).__name__}: forecache.Plan.load(path) reads one from a file, and "
            "method.plan(forecache.grid(pipe, num_steps)) makes one of a method."
        )
    if cache_dtype is not None and not (isinstance(cache_dtype, torch.dtype) and cache_dtype.is_floating_point):
        raise PlanError(f"Features are kept in a floating point dtype, such as torch.bfloat16, not {cache_dtype!r}.")
    if max_cache_bytes is not None and max_cache_bytes < 0:
        raise PlanError(f"max_cache_bytes is a number of bytes; {max_cache_bytes!r} was given.")


_ENABLED: dict[int, tuple[Any, Session | Sessions]] = {}
"""What `enable` was called for, by its id; it is held, so that the id stays its own."""


def enable(target: Any, plan: Plan, **how: Any) -> Session | Sessions:
    """From now on ``target`` samples by ``plan``, until `disable`: for servers, where a block has no place.

    ``how`` is that of `apply`; the session tells the ``stats``. After ``disable(target)`` the model is as it was.
    Raises AlreadyAppliedError if it is enabled already: to change the plan, disable it first.
    """
    session = apply(target, plan, **how).__enter__()
    _ENABLED[id(target)] = target, session
    return session


def disable(target: Any) -> None:
    """Undo `enable`; what is kept is dropped. Raises RunError if ``target`` is not enabled."""
    _, session = _ENABLED.pop(id(target), (None, None))
    if session is None:
        raise RunError(
            f"This {type(target).__name__} is not enabled, so there is nothing to disable: give what forecache.enable "
            "was given; a `with forecache.apply(...)` block ends by itself."
        )
    session.close()


def _device(name: str | torch.device | None) -> torch.device | None:
    """The device of this name, as tensors that lie there have it; PlanError where there is none."""
    if name is None:
        return None
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise PlanError(f"Features cannot be kept on the device {str(name)!r}: {str(error).splitlines()[0]}") from error
