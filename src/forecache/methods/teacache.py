"""TeaCache: skip while the accumulated change of the modulated input is small (arXiv 2411.19108)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

from forecache.methods.deciding import First, Last, Steps, deciding
from forecache.methods.ingredients import statistics_of
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts.decide import ModulatedInput
from forecache.parts.statistics import Statistics
from forecache.plan.method import Method


def _of_statistics(arguments: dict[str, Any]) -> dict[str, Any]:
    """The coefficients that statistics fit in the place of these, so that a recipe holds numbers."""
    return arguments | {"stats": None, "coefficients": _fitted(arguments["stats"], arguments["coefficients"])}


def _fitted(stats: Statistics | None, coefficients: Sequence[float] | None) -> tuple[float, ...]:
    if coefficients is not None:
        return tuple(map(float, coefficients))
    return (1.0, 0.0) if stats is None else stats.known_signals().polynomial()[0]


@register(rewrite=_of_statistics)
def teacache(
    threshold: Annotated[float, Range(least=0, usual=0.25, slider=(0, 2, 0.01))],
    coefficients: Annotated[Sequence[float] | None, Range(usual=(1.0, 0.0))] = None,
    *,
    stats: Annotated[Statistics | str | os.PathLike[str] | None, Range(unless="coefficients")] = None,
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
    coefficients: of the polynomial p, the highest power first; by default those of stats, else 1,0, the change as it is
    stats: statistics of `forecache.calibrate`, which fit the polynomial
    first: steps computed at the start
    last: steps computed at the end
    max_gap: most steps skipped in a row
    at_least: fewest computed steps of a run
    at_most: most computed steps of a run
    budget: exact number of computed steps of a run
    """
    return deciding(
        "teacache",
        ModulatedInput(threshold, _fitted(None if stats is None else statistics_of(stats), coefficients)),
        first,
        last,
        max_gap,
        at_least,
        at_most,
        budget,
    )
