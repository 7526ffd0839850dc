"""What methods that decide while they run have in common: the parameters of their bounds, and the base itself."""

from __future__ import annotations

from typing import Annotated

from forecache.errors import PlanError
from forecache.methods.parameters import Range
from forecache.parts import schedules
from forecache.parts.bounds import Bounds
from forecache.parts.decide import Decider
from forecache.plan.method import Method

Steps = Annotated[int | None, Range(least=0)]
First = Annotated[int, Range(least=1)]
Last = Annotated[int, Range(least=0)]


def deciding(
    name: str,
    decider: Decider,
    first: int,
    last: int,
    max_gap: int | None,
    at_least: int | None,
    at_most: int | None,
    budget: int | None,
) -> Method:
    """A base that decides while it runs, with plain reuse. PlanError for bounds that contradict one another."""
    if budget is not None:
        if (at_least, at_most) != (None, None):
            raise PlanError("A budget is exact, so it takes no bounds: leave at_least and at_most out, or the budget.")
        at_least = at_most = budget
    bounds = Bounds(first, last, max_gap, at_least, at_most)
    sees = decider.sees
    return Method(name, schedules.undecided(bounds, sees.head, sees.tail), decider=decider, bounds=bounds)
