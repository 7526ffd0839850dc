"""GOC: reuse plus a share of the last change (arXiv 2503.05156)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from forecache.errors import PlanError
from forecache.parts import gates
from forecache.parts.forecasts import Gradient, History
from forecache.parts.grid import Gate
from forecache.plan.method import Method


def goc(
    base: Method,
    eta: float,
    *,
    steps: Sequence[int] | None = None,
    gate: Gate | None = None,
    history: History = "emitted",
    whole_blocks: bool = True,
) -> Method:
    """Reuse plus eta times the last change of the feature (GOC, arXiv 2503.05156) on the schedule of ``base``.

    steps: the skipped steps to correct; plain reuse in the others. gate: the same as a function, such as
    `gates.god(statistics)`, the paper's; by default all. whole_blocks: correct a block only where all of its branches
    are skipped, as the paper does on L2C; a base that skips them together is the same either way.
    history: ``emitted`` is the paper's queue, ``computed`` the other reading (see `forecasts.Gradient`).
    The paper's eta are 1.2 on FORA 50 %, 1.9 (1.7 in its Table 3) on FORA 25 %, 1.0 on L2C 22 %. With the emitted
    queue an error grows by the factor eta from gap to gap at N = 2, so try eta <= 1 first; in longer gaps eta is
    divided by the steps that are skipped.
    """
    if steps is not None and gate is not None:
        raise PlanError("goc() takes the steps to correct or a gate, one of the two: leave the other out.")
    described = f", steps={list(steps)}" if steps is not None else f", gate={_name(gate)}" if gate is not None else ""
    described += f", history='{history}'" if history != "emitted" else ""
    described += "" if whole_blocks else ", whole_blocks=False"
    chosen = gates.on_steps(tuple(steps)) if steps is not None else gate or gates.always
    if whole_blocks:
        chosen = gates.whole_blocks(base.schedule, chosen)
    return base.with_forecast(f"goc({base.name}, eta={eta:g}{described})", Gradient(eta, history), chosen)


def _name(gate: Gate) -> str:
    return f"god({gate.gamma:g}, {gate.threshold:g})" if isinstance(gate, gates.god) else "custom"


def goc_paper_steps(level: Literal[25, 50]) -> tuple[int, ...]:
    """The steps that the GOC paper corrects on FORA at this caching level, DDIM-20 (17 has an inverse gradient)."""
    steps = {25: (3, 5, 7, 9), 50: (3, 5, 7, 9, 11, 13, 15, 19)}
    if level not in steps:
        raise PlanError(f"The GOC paper lists steps for the levels 25 and 50; {level!r} was asked for.")
    return steps[level]
