"""DiCache: skip while the first blocks change the stream as before (arXiv 2508.17356)."""

from __future__ import annotations

from typing import Annotated

from forecache.methods.deciding import First, Last, Steps, deciding
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts.decide import Probe
from forecache.plan.method import Method


@register
def dicache(
    threshold: Annotated[float, Range(least=0, usual=0.2, slider=(0, 2, 0.01))],
    depth: Annotated[int, Range(least=1, slider=(1, 8, 1))] = 1,
    *,
    first: First = 5,
    last: Last = 1,
    max_gap: Steps = None,
    at_least: Steps = None,
    at_most: Steps = None,
    budget: Steps = None,
) -> Method:
    """Skips while a probe of the first blocks changes as much as its input does (DiCache, arXiv 2508.17356).

    Decides while it runs: E += |change of the stream behind the probe - change in front of it|, and a step is skipped
    while E < threshold. The rule is published. Its own forecast, whose weight depends on the features, is not here:
    take `taylorseer` of order 1 or `goc` on it.

    threshold: of the accumulated difference E; 0 computes every step
    depth: first blocks that are the probe, and run at every step
    first: steps computed at the start
    last: steps computed at the end
    max_gap: most steps skipped in a row
    at_least: fewest computed steps of a run
    at_most: most computed steps of a run
    budget: exact number of computed steps of a run
    """
    return deciding("dicache", Probe(threshold, depth), first, last, max_gap, at_least, at_most, budget)
