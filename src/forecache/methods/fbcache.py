"""FBCache and DBCache: skip while the first blocks do what they did at the last computed step."""

from __future__ import annotations

from typing import Annotated

from forecache.methods.deciding import First, Last, Steps, deciding
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts.decide import FirstBlocks
from forecache.plan.method import Method


@register
def fbcache(
    threshold: Annotated[float, Range(least=0, usual=0.12, slider=(0, 1, 0.01))],
    *,
    first: First = 1,
    last: Last = 0,
    max_gap: Steps = None,
    at_least: Steps = None,
    at_most: Steps = None,
    budget: Steps = None,
) -> Method:
    """Skips while the first block's residual is near that of the last computed step (FBCache of ParaAttention).

    Decides while it runs: the first block runs at every step, and the others go on from it where the step is computed.
    As published, by the rule of diffusers' FirstBlockCache; there, the two halves of guidance decide apart where they
    are two calls.

    threshold: largest mean|r - r_c| / mean|r_c| of the residuals r at which a step is skipped; 0 computes every step
    first: steps computed at the start
    last: steps computed at the end
    max_gap: most steps skipped in a row
    at_least: fewest computed steps of a run
    at_most: most computed steps of a run
    budget: exact number of computed steps of a run
    """
    return deciding("fbcache", FirstBlocks(threshold), first, last, max_gap, at_least, at_most, budget)


@register
def dbcache(
    threshold: Annotated[float, Range(least=0, usual=0.08, slider=(0, 1, 0.01))],
    *,
    head: Annotated[int, Range(least=1, slider=(1, 16, 1))] = 1,
    tail: Annotated[int, Range(least=0, slider=(0, 16, 1))] = 0,
    first: First = 8,
    last: Last = 0,
    max_gap: Steps = None,
    at_least: Steps = None,
    at_most: Steps = None,
    budget: Steps = None,
) -> Method:
    """Skips while the first blocks' residual is near that of the last computed step (DBCache of cache-dit).

    Decides while it runs: the first and the last blocks run at every step. As published, by the rule of cache-dit
    with eight steps of warm-up; its package takes head=8 (F8B0) by default.

    threshold: mean|r - r_c| / mean|r_c| of the residuals r up to which a step is skipped; 0 computes every step
    head: first blocks, whose residual is compared (Fn)
    tail: last blocks, which run at every step (Bn)
    first: steps computed at the start
    last: steps computed at the end
    max_gap: most steps skipped in a row
    at_least: fewest computed steps of a run
    at_most: most computed steps of a run
    budget: exact number of computed steps of a run
    """
    return deciding("dbcache", FirstBlocks(threshold, head, tail), first, last, max_gap, at_least, at_most, budget)
