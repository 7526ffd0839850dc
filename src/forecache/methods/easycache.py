"""EasyCache: skip while the expected change of the model's output is small (arXiv 2507.02860)."""

from __future__ import annotations

from typing import Annotated

from forecache.methods.deciding import First, Last, Steps, deciding
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts.decide import TransformationRate
from forecache.plan.method import Method


@register
def easycache(
    threshold: Annotated[float, Range(least=0, usual=0.05, slider=(0, 1, 0.005))],
    *,
    first: First = 5,
    last: Last = 1,
    max_gap: Steps = None,
    at_least: Steps = None,
    at_most: Steps = None,
    budget: Steps = None,
) -> Method:
    """Skips while the expected change of the model's output, accumulated, is small (EasyCache, arXiv 2507.02860).

    Decides while it runs: E += k mean|x_t - x_t-1| / mean|v_c|, with k the rate |dv| / |dx| between the last two
    computed steps, and a step is skipped while E < threshold. The rule is published; its reuse of the output less the
    input is replaced by the estimates of the sites.

    threshold: of the accumulated change E; 0 computes every step
    first: steps computed at the start
    last: steps computed at the end
    max_gap: most steps skipped in a row
    at_least: fewest computed steps of a run
    at_most: most computed steps of a run
    budget: exact number of computed steps of a run
    """
    return deciding("easycache", TransformationRate(threshold), first, last, max_gap, at_least, at_most, budget)
