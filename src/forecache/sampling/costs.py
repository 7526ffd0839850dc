"""The cost of images that were sampled, from the arguments of the calls that sampled them."""

from __future__ import annotations

from typing import Any

from torch import nn

from forecache.errors import InputError
from forecache.models.arguments import Arguments
from forecache.models.find import find, transformers
from forecache.plan.cost import Cost
from forecache.plan.plan import Plan
from forecache.runtime.stats import Stats
from forecache.sampling.sources import Source


def first_model(source: Source) -> nn.Module:
    """The transformer of a source; of two, which take turns in a run, the one that begins."""
    models = transformers(source.target)
    return find(models[0] if models else source.target)


def cost(source: Source, plan: Plan, call: Arguments | None) -> Cost | None:
    """The cost of a plan for one generation; None if the model's forward reads values.

    call: the arguments of its first model call, on the meta device
    """
    try:
        return plan.cost(first_model(source), inputs=call)
    except InputError:
        return None


def cost_document(cost: Cost) -> dict[str, Any]:
    """A plan's cost for a JSON file."""
    return {
        "macs": cost.macs,
        "macs_uncached": cost.macs_uncached,
        "macs_ratio": cost.speedup,
        "cache_bytes": cost.cache_bytes,
    }


def image_cost(
    source: Source, plan: Plan, call: Arguments | None, images: int, stats: Stats | None = None
) -> dict[str, Any]:
    """The MACs of one image, and the cache bytes of a generation, for a JSON file; empty where they are not known.

    call: the arguments of the first model call of a generation, on the meta device
    images: of the generation
    stats: counts of the plan's session, which know how often the model is called in a step; None for once
    """
    generation = cost(source, plan, call) if call is not None else None
    if generation is None:
        return {}
    lanes = max(1, stats.calls // (plan.num_steps * max(1, stats.generations))) if stats is not None else 1
    document = cost_document(generation)
    return document | {name: round(document[name] * lanes / images) for name in ("macs", "macs_uncached")}
