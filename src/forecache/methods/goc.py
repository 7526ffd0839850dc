"""GOC: reuse plus a share of the last change (arXiv 2503.05156)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from forecache.errors import PlanError
from forecache.methods.ingredients import statistics_of
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts import gates
from forecache.parts.forecasts import Gaps, Gradient, History
from forecache.parts.grid import Gate
from forecache.parts.statistics import Statistics
from forecache.plan.method import Method

GAMMA = 0.5
"""Of the gate by statistics, where its threshold alone is given; the paper does not print its own."""


def _gate_by_its_parameters(arguments: dict[str, Any]) -> dict[str, Any]:
    """The paper's gate as the statistics, gamma and threshold that it consists of."""
    gate = arguments["gate"]
    if isinstance(gate, gates.god):
        by_statistics = {"stats": gate.stats, "gamma": gate.gamma, "threshold": gate.threshold, "inverse": gate.counted}
        return arguments | {"gate": None} | by_statistics
    return arguments


@register(rewrite=_gate_by_its_parameters)
def goc(
    base: Method,
    eta: Annotated[float, Range(usual=0.8, slider=(0, 2, 0.05))],
    *,
    steps: Sequence[int] | None = None,
    stats: Annotated[Statistics | str | os.PathLike[str] | None, Range(unless="steps")] = None,
    gamma: Annotated[float | None, Range(least=0, most=1, needs="stats")] = None,
    threshold: Annotated[float | None, Range(needs="stats")] = None,
    inverse: Annotated[gates.Counted, Range(needs="stats")] = "branches",
    history: History = "emitted",
    gaps: Gaps = "divided",
    whole_blocks: bool = True,
    gate: Gate | None = None,
) -> Method:
    """Reuse plus eta times the last change of the feature (GOC, arXiv 2503.05156).

    The paper's eta are 1.2 on FORA 50 %, 1.9 (1.7 in its Table 3) on FORA 25 %, 1.0 on L2C 22 %. With the emitted
    queue an error grows by the factor eta from gap to gap at N = 2, so try eta <= 1 first; in longer gaps eta is
    divided by the number of skipped steps (ours; ``gaps="paper"`` goes on as the paper's queue would). Which skipped
    steps are corrected is said by ``steps``, by ``stats`` or by ``gate``, one of the three; by default it is all of
    them.

    base: schedule, with plain reuse
    eta: share of the last change; above 1 errors grow
    steps: skipped steps to correct; the others are reused
    stats: statistics of the paper's gate, `gates.god`, which corrects steps whose B is below the threshold
    gamma: of the gate, weight of a step's position against inverse gradients, 0 to 1; by default what the statistics
        propose (`gates.proposed`, ours), and 0.5 beside a threshold
    threshold: of the gate, the B below which a step is corrected; by default what the statistics propose
    inverse: of the gate, inverse gradients as a share of ``branches`` (ours) or a number of ``blocks`` (the paper's)
    history: ``emitted`` is the paper's queue, ``computed`` the other reading (see `forecasts.Gradient`)
    gaps: in gaps of several steps, ``divided`` is ours and ``paper`` the queue that goes on with estimates, eta whole
    whole_blocks: correct a block only where all its branches are skipped, as the paper does on Learning-to-Cache
    gate: a gate of your own, (step, site, grid) -> bool
    """
    if (steps, stats, gate).count(None) < 2:
        raise PlanError("goc() takes the steps to correct, or statistics of its gate, or a gate: leave the others out.")
    if stats is None and (gamma, threshold, inverse) != (None, None, "branches"):
        raise PlanError("gamma, threshold and inverse belong to the gate by statistics: give stats to goc(), too.")
    if steps is not None:
        gate = gates.on_steps(tuple(steps))
    elif stats is not None:
        gate = gate_of(statistics_of(stats), gamma, threshold, inverse)
    gate = gate or gates.always
    if whole_blocks:
        gate = gates.whole_blocks(base.schedule, gate)
    return base.with_forecast("goc", Gradient(eta, history, gaps=gaps), gate)


def gate_of(
    stats: Statistics, gamma: float | None, threshold: float | None, inverse: gates.Counted = "branches"
) -> gates.god:
    """The gate by statistics with the values that are given; they propose the others."""
    if threshold is not None:
        return gates.god(stats, GAMMA if gamma is None else gamma, threshold, inverse)
    if inverse == "blocks":
        raise PlanError(
            "A threshold is proposed for N as a share of branches: give one for counted blocks, or leave inverse out."
        )
    return gates.proposed(stats, gamma)


def goc_paper_steps(level: Literal[25, 50]) -> tuple[int, ...]:
    """The steps that GOC corrects on FORA at a caching level, DDIM-20: the authors' lists, counted from 0.

    They start at 3, the second skipped step. The paper's text says k > 3: counted from 1 that is the same step, counted
    from 0 it would leave 3 out. The list of 50 % leaves out 17, and the paper does not say why.
    """
    steps = {25: (3, 5, 7, 9), 50: (3, 5, 7, 9, 11, 13, 15, 19)}
    if level not in steps:
        raise PlanError(f"The GOC paper lists steps for the levels 25 and 50; {level!r} was asked for.")
    return steps[level]
