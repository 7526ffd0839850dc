"""FORA: computes every n-th step and reuses in between (arXiv 2407.01425)."""

from __future__ import annotations

from typing import Literal

from forecache.errors import PlanError
from forecache.parts import schedules
from forecache.plan.method import Method

PAPER_STEPS = 20
"""The GOC and EOC papers sample DDIM-20; their lists of steps are for runs of this length."""


def fora(interval: int, *, anchor: Literal["start", "end"] = "start") -> Method:
    """Compute one step in ``interval``, reuse in between (FORA, arXiv 2407.01425).

    anchor: ``start`` (ours) is the phase of the GOC and EOC papers, which call it FORA 50 % at interval 2;
    ``end`` is FORA's released code: the phase is fixed at the last step, which is always computed.
    """
    end = ", anchor='end'" if anchor == "end" else ""
    return Method(f"fora(interval={interval}{end})", schedules.every(interval, anchor=anchor))


def fora_paper(level: Literal[25, 50, 75]) -> Method:
    """FORA at the caching levels of the GOC and EOC papers (DDIM-20): the percentage of skipped cells.

    50: skipped {1, 3, ..., 19}. 25: skipped {1, 3, 5, 7, 9}. 75: computed {0, 4, 8, 12, 16}. Runs of 20 steps only.
    """
    skips = {25: [1, 3, 5, 7, 9], 50: list(range(1, 20, 2)), 75: [s for s in range(20) if s % 4]}
    if level not in skips:
        raise PlanError(f"The papers' caching levels are 25, 50 and 75; {level!r} was asked for.")
    by_step = schedules.by_step([step not in skips[level] for step in range(PAPER_STEPS)])
    return Method(f"fora_paper({level})", by_step)
