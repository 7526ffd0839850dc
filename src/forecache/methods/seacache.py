"""SeaCache: skip while the input changes little where it is signal (arXiv 2602.18993)."""

from __future__ import annotations

from typing import Annotated

from forecache.methods.deciding import First, Last, Steps, deciding
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts.decide import FilteredInput
from forecache.plan.method import Method


@register
def seacache(
    threshold: Annotated[float, Range(least=0, usual=0.25, slider=(0, 2, 0.01))],
    power: Annotated[float, Range(least=0.1, slider=(1, 4, 0.5))] = 2.0,
    *,
    first: First = 1,
    last: Last = 1,
    max_gap: Steps = 2,
    at_least: Steps = None,
    at_most: Steps = None,
    budget: Steps = None,
) -> Method:
    """Skips while the accumulated change of the input's signal, without noise, is small (SeaCache, arXiv 2602.18993).

    Decides while it runs, before the model is called. By diffusers' form of the rule, which filters the model's input;
    the paper's code filters the modulated input of the first block.

    threshold: of the accumulated relative change of the filtered input; 0 computes every step
    power: of the signal's spectrum: 2 for images, 3 for videos
    first: steps computed at the start
    last: steps computed at the end
    max_gap: most steps skipped in a row
    at_least: fewest computed steps of a run
    at_most: most computed steps of a run
    budget: exact number of computed steps of a run
    """
    return deciding("seacache", FilteredInput(threshold, power), first, last, max_gap, at_least, at_most, budget)
