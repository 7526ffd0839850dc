"""Memory and MACs of one method at every level of a model, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from forecache.errors import ForecacheError
from forecache.models.find import at_level, find, grid, transformers
from forecache.models.layout import Level
from forecache.models.levels import AskedSites
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
            plan = method_at(level).plan(grid(target, num_steps, level=level, group=group))
            total = cost(plan)
        except ForecacheError as error:
            yield LevelCost(level, group, reason=str(error))
            continue
        full, sites = total.macs_uncached // num_steps, len(plan.grid.sites)
        yield LevelCost(level, group, sites, total.cache_bytes, total.macs, min(total.step_macs), full)


def _group(target: Any) -> int:
    """Blocks of a group, where blocks make `GROUPS` of them."""
    model = find((transformers(target) or [target])[0])
    return -(-len(at_level(model, AskedSites(level="blocks")).sites) // GROUPS)
