"""Applying a plan to a model or a pipeline: for a block, or until further notice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from forecache.errors import PlanError, RunError
from forecache.models.find import find, grid_of, layout_for, optimized, transformers
from forecache.models.layout import Layout
from forecache.plan.plan import Plan
from forecache.runtime.counting import PartOfRun, parts_of_run
from forecache.runtime.guards import OPEN, Guards
from forecache.runtime.host import Host, scheduler_of
from forecache.runtime.session import Session
from forecache.runtime.storage import CacheOptions


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
) -> Session:
    """A session in which ``target`` samples by ``plan``: ``with forecache.apply(pipe, plan) as session: ...``

    target: a diffusers pipeline, a diffusers transformer, the wrapper that torch.compile gave for one, or any module
        that has the plan's sites. On a pipeline the plan affects the calls of that pipeline alone; another pipeline
        with the same transformer samples as before. A pipeline of two transformers, such as Wan 2.2, gets one schedule
        for both, and the first step of the second transformer is computed. For a sampling loop of your own, give the
        transformer, or an object with its ``transformer`` and ``scheduler``.
    plan: the plan; its grid has the sites of ``target``.
    lanes: names of the model calls of one step, such as ("cond", "uncond"), for a pipeline that makes several calls one
        after the other at the same timestep without diffusers' ``cache_context``; each gets a cache of its own.
    resample: whether a generation whose scheduler announces another number of steps gets the plan `resampled` to it,
        with a warning in the log; False, the default, raises an error.
    guards: what is refused, and when estimates fall back to reuse; nothing by default.
    cache_dtype: dtype of kept features, such as torch.bfloat16 for a float32 model: half the bytes, rounded. None, the
        default, keeps each in its own.
    cache_device: device of kept features, such as "cpu" beside a GPU that is full; each is brought back while the one
        before it is used. None, the default, keeps each on its own.
    max_cache_bytes: largest number of bytes that a generation may keep; one that needs more is refused before its first
        model call. None, the default, is no limit.

    Raises PlanMismatchError for a plan of another model, and AlreadyAppliedError for a second session on the model.
    Inside the block, StepCountError is raised for a run that is longer or shorter than the plan, and CacheBudgetError
    for one over the budget.
    """
    _check(plan, cache_dtype, max_cache_bytes)
    options = CacheOptions(cache_dtype, _device(cache_device), max_cache_bytes, guards.max_error)
    pipe = target if callable(target) and not isinstance(target, nn.Module) else None
    models = transformers(target)
    parts: list[PartOfRun | None] = [None]
    if len(models) > 1:
        parts = [*parts_of_run(target)]
    else:
        models = [target]
    layouts: list[Layout] = []
    hosts: list[Host] = []
    for model, part in zip(models, parts, strict=True):
        layout = layout_for(find(model), plan.grid)
        _check_guards(guards, plan, target, layout)
        layouts.append(layout)
        hosts.append(Host(pipe, scheduler_of(target), optimized(model), tuple(lanes), part))
    return Session(plan, layouts, hosts, options, resample=resample)


def _check_guards(guards: Guards, plan: Plan, target: Any, layout: Layout) -> None:
    guards.check(plan, lambda: grid_of(target, layout, plan.num_steps))


def _check(plan: object, cache_dtype: object, max_cache_bytes: int | None) -> None:
    """Raises PlanError for what is no plan, no dtype of features or no number of bytes."""
    if not isinstance(plan, Plan):
        raise PlanError(
            f"A plan is applied, not a {type(plan).__name__}: forecache.Plan.load(path) reads one from a file, and "
            "method.plan(forecache.grid(pipe, num_steps)) makes one from a method."
        )
    if cache_dtype is not None and not (isinstance(cache_dtype, torch.dtype) and cache_dtype.is_floating_point):
        raise PlanError(f"Features are kept in a floating point dtype, such as torch.bfloat16, not {cache_dtype!r}.")
    if max_cache_bytes is not None and max_cache_bytes < 0:
        raise PlanError(f"max_cache_bytes is a number of bytes; {max_cache_bytes!r} was given.")


_ENABLED: dict[int, tuple[Any, Session]] = {}
"""Every enabled target with its session, by the target's id; the target is held, so that the id stays its own."""


def enable(target: Any, plan: Plan, **options: Any) -> Session:
    """Let ``target`` sample by ``plan`` until `disable`: for servers, where a block has no place.

    options: those of `apply`.

    Raises AlreadyAppliedError if the target is enabled already: to change the plan, disable it first.
    """
    session = apply(target, plan, **options).__enter__()
    _ENABLED[id(target)] = target, session
    return session


def disable(target: Any) -> None:
    """Undo `enable`: restore the model and drop all features. Raises RunError if ``target`` is not enabled."""
    _, session = _ENABLED.pop(id(target), (None, None))
    if session is None:
        raise RunError(
            f"This {type(target).__name__} is not enabled, so there is nothing to disable: give what forecache.enable "
            "was given; a `with forecache.apply(...)` block ends by itself."
        )
    session.close()


def _device(name: str | torch.device | None) -> torch.device | None:
    """The device of this name, with its index; PlanError if there is none."""
    if name is None:
        return None
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise PlanError(f"Features cannot be kept on the device {str(name)!r}: {str(error).splitlines()[0]}") from error
