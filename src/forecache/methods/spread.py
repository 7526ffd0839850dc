"""A share of the steps computed, spread over a run of any length, reuse in between."""

from __future__ import annotations

from typing import Annotated

from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts import schedules
from forecache.plan.method import Method


@register
def spread(
    speedup: Annotated[float, Range(least=1, usual=2.0, slider=(1, 10, 0.1))],
    *,
    first: Annotated[int, Range(least=1)] = 1,
    last: bool = False,
    bend: Annotated[float, Range(least=-0.9, most=0.9, slider=(-0.9, 0.9, 0.1))] = 0.0,
) -> Method:
    """One step in ``speedup`` computed, a number that need not be whole, reuse in between (ours).

    A run of n steps computes n / speedup of them, rounded up, so that any number of steps has a schedule. At a whole
    number that divides n it is `fora`.

    speedup: steps of the run for each computed one
    first: steps computed at the start
    last: compute the last step
    bend: over 0 computed steps lie closer together at the start of the run, below 0 at its end; 0 spreads them evenly
    """
    return Method("spread", schedules.spread(speedup, first=first, last=last, bend=bend))
