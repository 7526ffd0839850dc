"""Applying a plan, a method or what is best on record to a model: for a block, or until further notice."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from forecache.errors import PlanError, RunError
from forecache.io.text import short
from forecache.models.find import find, grid_of, layout_for, optimized, transformers
from forecache.models.layout import Layout, Level
from forecache.models.levels import AskedSites
from forecache.models.rounded import is_known
from forecache.models.span import Of
from forecache.parts.responses import check_linear
from forecache.plan.method import Method
from forecache.plan.plan import Plan
from forecache.plan.stored import PlanPlace
from forecache.runtime.asked import Asked, WithSampler
from forecache.runtime.counting import parts_of_run
from forecache.runtime.guards import OPEN, Guards
from forecache.runtime.host import Host
from forecache.runtime.pipelines import host_of, rescheduled, scheduler_of
from forecache.runtime.plan_source import may_look_back
from forecache.runtime.ranks import ranks_of
from forecache.runtime.requests import RequestsHost
from forecache.runtime.run import PartOfRun
from forecache.runtime.session import Session
from forecache.runtime.storage import CacheOptions


def apply(
    target: Any,
    plan: Plan | Method | WithSampler | None = None,
    *,
    speedup: float | None = None,
    plans: PlanPlace | Iterable[PlanPlace] | None = None,
    num_steps: int | None = None,
    sites: Sequence[str] | None = None,
    level: Level | None = None,
    group: int | None = None,
    of: Of = "residual",
    blocks: Sequence[str] | str | None = None,
    lanes: Sequence[str] = (),
    resample: bool = False,
    guards: Guards = OPEN,
    cache_dtype: torch.dtype | None = None,
    cache_device: str | torch.device | None = None,
    max_cache_bytes: int | None = None,
    timed: bool = False,
    only_requests: bool = False,
    per_sample: bool = False,
    process_group: Any = None,
) -> Session:
    """A session in which ``target`` samples with fewer computed features: ``with forecache.apply(pipe) as session:``

    target: a diffusers pipeline, a diffusers transformer, the wrapper that torch.compile gave for one, or any module
        that has the plan's sites. On a pipeline the plan affects the calls of that pipeline alone; another pipeline
        with the same transformer samples as before. A pipeline of two transformers, such as Wan 2.2, gets one schedule
        for both, and the first step of the second transformer is computed. For a sampling loop of your own, give the
        transformer, or an object with its ``transformer`` and ``scheduler``.
    plan: a plan, which is for one number of model calls; or a method, which is planned anew for the number that a run
        makes, when the scheduler announces it; None, the default, takes what is best on record for ``speedup``. The
        result of `forecache.tune` stands for its first plan. A plan that brings a scheduler (`Plan.sampler`) has it put
        in the place of the pipeline's own inside the block.
    speedup: times fewer MACs, 1.3 to 5, without a plan or method. None, the default, is 2, and runs of fewer than six
        calls compute everything.
    plans: where to look for a plan that was made for this very model, scheduler and number of calls and comes near to
        ``speedup``: a folder of plan files, a plan file, a hub repository, a list of plans, or a list of these. The
        plans that ship with the library are looked through as well.
    num_steps: model calls of a run that no scheduler announces, for a method or speedup in a loop of your own.
    sites: paths of the modules to cache, as `forecache.grid` takes them, for a method or speedup on a model of no known
        family.
    level, group, of, blocks: what sites are, as `forecache.grid` takes them, for a method or speedup; by default the
        finest that the model's family knows.
    lanes: names of the model calls of one step, such as ("cond", "uncond"), for a pipeline that makes several calls one
        after the other at the same timestep without diffusers' ``cache_context``; each gets a cache of its own.
    resample: whether a generation whose scheduler announces another number of steps gets the plan `resampled` to it,
        with a warning in the log; False, the default, raises an error.
    guards: what is refused, and when estimates fall back to reuse; nothing by default.
    cache_dtype: dtype of kept features, such as torch.bfloat16 for a float32 model: half the bytes, rounded; or
        torch.float8_e4m3fn, a quarter and four bytes a token for its scale, rounded to 3 bits. None, the default, keeps
        each in its own.
    cache_device: device of kept features, such as "cpu" beside a GPU that is full; each is brought back while the one
        before it is used. None, the default, keeps each on its own.
    max_cache_bytes: largest number of bytes that a generation may keep; one that needs more is refused before its first
        model call. Of two transformers that are called at every step, as in Ideogram 4, each may keep half. None, the
        default, is no limit.
    timed: whether `Session.stats` gives the seconds of the last generation, for which a GPU is waited for after every
        model call; False by default.
    only_requests: whether the calls of ``session.requests`` alone follow the plan, and all others run as they are, for
        engines that sample several requests in turn. False by default.
    per_sample: whether every sample of a batch decides for itself, with a plan that decides while it runs, so that an
        image does not depend on its batch. Samples that do the same at a step share a model call, the halves of a
        guidance pair are one sample. False, the default, decides once for the batch.
    process_group: the processes of torch.distributed that sample equal parts of one request, such as the halves of its
        tokens or of a guidance pair: a plan that decides while it runs measures over all of them, and they decide
        alike. None, the default, is the group of diffusers' context parallelism where the model has that, else this
        process alone.

    Raises PlanMismatchError for a plan of another model, and AlreadyAppliedError for a second session on the model.
    Inside the block, StepCountError is raised for a run that is longer or shorter than the plan, PlanError or
    StatisticsError for a run that the method has no plan for, and CacheBudgetError for one over the budget.
    """
    plan = plan.plan if isinstance(plan, WithSampler) else plan
    asked = Asked(plan, speedup, plans, num_steps, AskedSites(sites, level, group, of, blocks), resample)
    asked.check(target)
    _check_options(lanes, cache_dtype, max_cache_bytes)
    source, grid = asked.source(target, guards)
    pipe = target if callable(target) and not isinstance(target, nn.Module) else None
    models = transformers(target)
    parts: list[PartOfRun | None] = [None]
    if len(models) > 1:
        parts = parts_of_run(target)
        if parts[0] is None and max_cache_bytes is not None:
            max_cache_bytes //= len(models)
    else:
        models = [target]
    if per_sample:
        check_per_sample(cache_dtype, cache_device, guards, process_group, list(map(optimized, models)))
    scheduler = scheduler_of(target)
    if source.sampler is not None:
        if only_requests:
            raise PlanError(
                f"The plan brings a {source.sampler.name}, and other calls than those of requests would sample by it: "
                "set the scheduler of your loop yourself, and apply dataclasses.replace(plan, sampler=None)."
            )
        scheduler = source.sampler.instead_of(scheduler)
    if isinstance(plan, Plan | Method) and may_look_back(source):
        check_linear(scheduler)
        if only_requests:
            raise PlanError(
                "Hindsight moves the sample in the step of a pipeline's scheduler, and requests have schedulers of "
                "their host: leave hindsight out."
            )
    options = CacheOptions(
        cache_dtype, _device(cache_device), max_cache_bytes, guards.max_error, guards.drift, per_sample, process_group
    )
    layouts: list[Layout] = []
    hosts: list[Host] = []
    for model, part in zip(models, parts, strict=True):
        layout = layout_for(find(model), grid)
        ranks_of(process_group, layout.model)  # refuses what is no group
        if isinstance(plan, Plan):
            guards.check(plan, functools.partial(grid_of, target, layout, plan.num_steps))
        layouts.append(layout)
        host = host_of(layout.model, pipe, scheduler, tuple(lanes), part)
        hosts.append(RequestsHost(host) if only_requests else host)
    around = functools.partial(rescheduled, target, scheduler) if source.sampler is not None else nullcontext
    wrappers = [optimized(model) for model in models]
    return Session(source, layouts, hosts, options, wrappers=wrappers, timed=timed, around=around)


def check_per_sample(
    cache_dtype: object, cache_device: object, guards: Guards, process_group: object, compiled: Sequence[object]
) -> None:
    """Raises PlanError for what samples that decide each for itself cannot go with."""
    odd = {
        "cache_dtype=": cache_dtype is not None,
        "cache_device=": cache_device is not None,
        "Guards(max_drift=)": guards.max_drift is not None,
        "process_group=": process_group is not None,
        "torch.compile": any(wrapper is not None for wrapper in compiled),
    }
    if found := [name for name, is_given in odd.items() if is_given]:
        raise PlanError(
            f"per_sample=True does not go with {found[0]}, which is of whole batches here: leave out one of them."
        )


def _check_options(lanes: object, cache_dtype: object, max_cache_bytes: int | None) -> None:
    """Raises PlanError for what are no names of lanes, no dtype of features or no number of bytes."""
    if isinstance(lanes, str) or not isinstance(lanes, Sequence) or not all(isinstance(name, str) for name in lanes):
        raise PlanError(
            f'lanes= names the model calls of one step, as a list such as ["cond", "uncond"]; {short(lanes)} was given.'
        )
    if len(set(lanes)) != len(lanes):
        raise PlanError(f"The names of lanes must differ, because each has its own cache; {short(lanes)} was given.")
    if cache_dtype is not None and not (isinstance(cache_dtype, torch.dtype) and cache_dtype.is_floating_point):
        raise PlanError(f"Features are kept in a floating point dtype, such as torch.bfloat16, not {cache_dtype!r}.")
    if isinstance(cache_dtype, torch.dtype) and not is_known(cache_dtype):
        raise PlanError(
            f"torch cannot round features to {cache_dtype} and back here: keep them in torch.bfloat16 or "
            "torch.float8_e4m3fn."
        )
    if max_cache_bytes is not None and max_cache_bytes < 0:
        raise PlanError(f"max_cache_bytes is a number of bytes; {max_cache_bytes!r} was given.")


_ENABLED: dict[int, tuple[Any, Session]] = {}
"""Every enabled target with its session, by the target's id; the target is held, so that the id stays its own."""


def enable(target: Any, plan: Plan | Method | WithSampler | None = None, **options: Any) -> Session:
    """Let ``target`` sample with fewer computed features until `disable`: ``forecache.enable(pipe)`` is enough.

    plan: a plan, a method or the result of `forecache.tune`, as for `apply`; by default what is best on record for
        twice the speed.
    options: those of `apply`, ``speedup=`` and ``plans=`` among them.

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
