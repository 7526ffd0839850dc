"""TeaCache: skip while the accumulated change of the modulated input is small (arXiv 2411.19108)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from forecache.methods.deciding import First, Last, Steps, deciding
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts.decide import ModulatedInput
from forecache.plan.method import Method


@register
def teacache(
    threshold: Annotated[float, Range(least=0, usual=0.25, slider=(0, 2, 0.01))],
    coefficients: Sequence[float] = (1.0, 0.0),
    *,
    first: First = 1,
    last: Last = 1,
    max_gap: Steps = None,
    at_least: Steps = None,
    at_most: Steps = None,
    budget: Steps = None,
) -> Method:
    """Skips while the accumulated change of the first block's modulated input is small (TeaCache, arXiv 2411.19108).

    Decides while it runs: A += p(mean|m_t - m_t-1| / mean|m_t-1|), and a step is skipped while A < threshold. As
    published with the coefficients of a model.

    threshold: of the accumulated change A; 0 computes every step
    coefficients: of the polynomial p, the highest power first; 1,0 takes the change as it is
    first: steps computed at the start
    last: steps computed at the end
    max_gap: most steps skipped in a row
    at_least: fewest computed steps of a run
    at_most: most computed steps of a run
    budget: exact number of computed steps of a run
    """
    return deciding(
        "teacache",
        ModulatedInput(threshold, tuple(map(float, coefficients))),
        first,
        last,
        max_gap,
        at_least,
        at_most,
        budget,
    )
