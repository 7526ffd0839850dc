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
from forecache.parts.forecasts import Gradient, History
from forecache.parts.grid import Gate
from forecache.parts.statistics import Statistics
from forecache.plan.method import Method

GAMMA, THRESHOLD = 0.5, 0.6
"""Of the gate by statistics; the paper does not print its own."""


def _gate_by_its_parameters(arguments: dict[str, Any]) -> dict[str, Any]:
    """The paper's gate as the statistics, gamma and threshold that it consists of."""
    gate = arguments["gate"]
    if isinstance(gate, gates.god):
        return arguments | {"gate": None, "stats": gate.stats, "gamma": gate.gamma, "threshold": gate.threshold}
    return arguments


@register(rewrite=_gate_by_its_parameters)
def goc(
    base: Method,
    eta: Annotated[float, Range(usual=0.8, slider=(0, 2, 0.05))],
    *,
    steps: Sequence[int] | None = None,
    stats: Statistics | str | os.PathLike[str] | None = None,
    gamma: Annotated[float, Range(least=0, most=1, needs="stats")] = GAMMA,
    threshold: Annotated[float, Range(needs="stats")] = THRESHOLD,
    history: History = "emitted",
    whole_blocks: bool = True,
    gate: Gate | None = None,
) -> Method:
    """Reuse plus eta times the last change of the feature (GOC, arXiv 2503.05156).

    The paper's eta are 1.2 on FORA 50 %, 1.9 (1.7 in its Table 3) on FORA 25 %, 1.0 on L2C 22 %. With the emitted
    queue an error grows by the factor eta from gap to gap at N = 2, so try eta <= 1 first; in longer gaps eta is
    divided by the number of skipped steps. Which skipped steps are corrected is said by ``steps``, by ``stats`` or by
    ``gate``, one of the three; by default it is all of them.

    base: schedule, with plain reuse
    eta: share of the last change; above 1 errors grow
    steps: skipped steps to correct; the others are reused
    stats: statistics of the paper's gate, `gates.god`, which corrects steps whose B is below the threshold
    gamma: of the gate, weight of a step's position against the share of inverse gradients, 0 to 1
    threshold: of the gate, the B below which a step is corrected
    history: ``emitted`` is the paper's queue, ``computed`` the other reading (see `forecasts.Gradient`)
    whole_blocks: correct a block only where all its branches are skipped, as the paper does on Learning-to-Cache
    gate: a gate of your own, (step, site, grid) -> bool
    """
    if (steps, stats, gate).count(None) < 2:
        raise PlanError("goc() takes the steps to correct, or statistics of its gate, or a gate: leave the others out.")
    if stats is None and (gamma, threshold) != (GAMMA, THRESHOLD):
        raise PlanError("gamma and threshold belong to the gate by statistics: give stats to goc(), too.")
    if steps is not None:
        gate = gates.on_steps(tuple(steps))
    elif stats is not None:
        gate = gates.god(statistics_of(stats), gamma, threshold)
    gate = gate or gates.always
    if whole_blocks:
        gate = gates.whole_blocks(base.schedule, gate)
    return base.with_forecast("goc", Gradient(eta, history), gate)


def goc_paper_steps(level: Literal[25, 50]) -> tuple[int, ...]:
    """The steps that the GOC paper corrects on FORA at a caching level, DDIM-20 (17 has an inverse gradient)."""
    steps = {25: (3, 5, 7, 9), 50: (3, 5, 7, 9, 11, 13, 15, 19)}
    if level not in steps:
        raise PlanError(f"The GOC paper lists steps for the levels 25 and 50; {level!r} was asked for.")
    return steps[level]
