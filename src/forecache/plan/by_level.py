"""Memory and MACs of one method at every level of a model, side by side, and the finest level that fits a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from forecache.errors import CacheBudgetError, ForecacheError, PlanError
from forecache.io.text import mib
from forecache.models.find import at_level, find, grid, grid_at, transformers
from forecache.models.layout import Level
from forecache.models.levels import FINEST, AskedSites
from forecache.parts.grid import Site
from forecache.plan.cost import Cost
from forecache.plan.method import Method
from forecache.plan.plan import Plan

GROUPS = 4
"""Groups of about equal size that stand for level "groups"."""


@dataclass(frozen=True)
class LevelCost:
    """The cost of a method at one level; without figures where the method or the model has not this level.

    level: what sites are.
    group: blocks of a site, at level "groups".
    sites: number of sites.
    cache_bytes: peak memory of the features kept for later steps.
    macs: MACs of the whole run.
    cheapest_step_macs: MACs of the step that computes least: a skipped one, where the method skips whole steps.
    full_step_macs: MACs of a step that computes everything.
    reason: the sentence that says why there are no figures.
    """

    level: str
    group: int | None = None
    sites: int | None = None
    cache_bytes: int | None = None
    macs: int | None = None
    cheapest_step_macs: int | None = None
    full_step_macs: int | None = None
    reason: str | None = None


def costs_by_level(
    method_at: Callable[[Level], Method], target: Any, num_steps: int, cost: Callable[[Plan], Cost]
) -> Iterator[LevelCost]:
    """The cost of a method on a model by branches, blocks, groups of blocks, and the stack.

    method_at: level -> the method; measured data that it takes are of one level
    target: a pipeline or a transformer
    cost: plan -> its cost, with the batch and the size that are meant
    """
    levels: tuple[Level, ...] = ("branches", "blocks", "groups", "stack")
    for level in levels:
        group = None
        try:
            group = _group(target) if level == "groups" else None
            own = method_at(level)
            plan = own.plan(grid(target, num_steps, level=level, group=group, ends=own.ends(level)))
            total = cost(plan)
        except ForecacheError as error:
            yield LevelCost(level, group, reason=str(error))
            continue
        full, sites = total.macs_uncached // num_steps, len(plan.grid.sites)
        yield LevelCost(level, group, sites, total.cache_bytes, total.macs, min((total.least or total).step_macs), full)


def plan_within(
    method: Method | Callable[[Level | None], Method],
    target: Any,
    num_steps: int,
    max_cache_bytes: int,
    *,
    cost: Callable[[Plan], Cost] | None = None,
) -> Plan:
    """The plan of a method at the finest level whose features fit into a budget; its provenance says which, and why.

    Levels are tried from fine to coarse: the finest that the model is known by, blocks, groups of 2, 4, 8, ... blocks,
    and the stack.

    method: the method, or level -> the method, where it takes measured data, which are of one level
    target: a pipeline or a transformer
    num_steps: model calls of a run
    max_cache_bytes: the most bytes that the features may take at their peak, for the batch of ``cost``
    cost: plan -> its cost, with the batch and the size that are meant; by default that of one image

    Raises CacheBudgetError, with the least that would fit, if no level does, and the first error if the method has no
    plan at any level.
    """
    if isinstance(max_cache_bytes, bool) or not isinstance(max_cache_bytes, int) or max_cache_bytes < 0:
        raise PlanError(f"max_cache_bytes is a whole number of bytes from 0 on; {max_cache_bytes!r} was given.")
    cost_of = cost or (lambda plan: plan.cost(target))
    over: list[tuple[str, int]] = []
    errors: list[ForecacheError] = []
    tried: set[tuple[Site, ...]] = set()
    for asked in _from_fine_to_coarse(target):
        try:
            own = method if isinstance(method, Method) else method(asked.level)
            plan = own.plan(grid_at(target, num_steps, replace(asked, ends=own.ends(asked.level))))
            if plan.grid.sites in tried:
                continue
            tried.add(plan.grid.sites)
            need = cost_of(plan).cache_bytes
        except ForecacheError as error:
            errors.append(error)
            continue
        name = _named(asked, plan)
        if need <= max_cache_bytes:
            finer = f", where {over[-1][0]} would keep {mib(over[-1][1], 2)}" if over else ""
            says = f"{name} keeps {mib(need, 2)} of the {mib(max_cache_bytes, 2)} allowed{finer}"
            return plan.with_recipe(plan.recipe, {"level": says})
        over.append((name, need))
    if not over:
        raise errors[0]
    name, least = min(over, key=lambda pair: pair[1])
    raise CacheBudgetError(
        f"No level fits into {mib(max_cache_bytes, 2)} ({max_cache_bytes:,} bytes): the least is {mib(least, 2)} "
        f"({least:,} bytes) with {name}. Allow that much, sample fewer images at a time, keep features in a smaller "
        "dtype (cache_dtype=torch.bfloat16), or take a forecast with a shorter history."
    )


def _from_fine_to_coarse(target: Any) -> Iterator[AskedSites]:
    """What to ask for, one level after the other."""
    yield FINEST
    yield AskedSites(level="blocks")
    try:
        blocks = _blocks(target)
    except ForecacheError:  # a model without them, whose finest level may still be known
        return
    group = 2
    while group < blocks:
        yield AskedSites(level="groups", group=group)
        group *= 2
    yield AskedSites(level="stack")


def _named(asked: AskedSites, plan: Plan) -> str:
    """A level in words: ``level groups of 4 (7 sites)``."""
    sites = len(plan.grid.sites)
    return f"level {asked.words or 'finest'} ({sites} site{'s' * (sites != 1)})"


def _blocks(target: Any) -> int:
    """The number of blocks of a model."""
    model = find((transformers(target) or [target])[0])
    return len(at_level(model, AskedSites(level="blocks")).sites)


def _group(target: Any) -> int:
    """Blocks of a group, where blocks make `GROUPS` of them."""
    return -(-_blocks(target) // GROUPS)
