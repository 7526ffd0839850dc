"""FORA: every n-th step is computed, the others reuse (arXiv 2407.01425)."""

from __future__ import annotations

from typing import Annotated, Literal

from forecache.errors import PlanError
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts import schedules
from forecache.plan.method import Method

PAPER_STEPS = 20
"""The GOC and EOC papers sample DDIM-20; their lists of steps are for runs of this length."""


@register
def fora(
    interval: Annotated[int, Range(least=1, usual=2, slider=(1, 10, 1))],
    *,
    anchor: Literal["start", "end"] = "start",
) -> Method:
    """One step in ``interval`` computed, reuse in between (FORA, arXiv 2407.01425).

    interval: compute one step in so many
    anchor: end of the run that fixes the phase; ``start`` (ours) is that of the GOC and EOC papers, which call it
        FORA 50 % at interval 2, ``end`` is FORA's released code, which always computes the last step
    """
    return Method("fora", schedules.every(interval, anchor=anchor))


@register(fixed_length=True)
def fora_paper(level: Literal[25, 50, 75]) -> Method:
    """FORA at the caching levels of the GOC and EOC papers (DDIM-20), for runs of 20 steps.

    50: skipped {1, 3, ..., 19}. 25: skipped {1, 3, 5, 7, 9}. 75: computed {0, 4, 8, 12, 16}.

    level: percentage of skipped cells, 25, 50 or 75
    """
    skips = {25: [1, 3, 5, 7, 9], 50: list(range(1, 20, 2)), 75: [step for step in range(20) if step % 4]}
    if level not in skips:
        raise PlanError(f"The papers' caching levels are 25, 50 and 75; {level!r} was asked for.")
    computed = [step not in skips[level] for step in range(PAPER_STEPS)]
    return Method("fora_paper", schedules.by_step(computed, owner=f"fora_paper(level={level})"))
