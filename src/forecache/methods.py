"""Methods by their names in the papers, each a sentence of parts. Corrections take a base, as the papers do.

fora(interval=2)                                      every second step computed, the others reused
goc(fora(interval=2), eta=0.8)                        reuse plus a share of the last change
taylorseer(fora(interval=3), order=2)                 Taylor expansion in between
l2c("router.safetensors")                             reuse where a trained router allows it
goc(explicit(skip=[1, 3, 5, 7, 9]), eta=1.9)          any schedule is a base
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from forecache import gates, schedules
from forecache._core import Gate
from forecache._errors import PlanError
from forecache._routerfile import Router
from forecache.forecasts import Gradient, History, Reuse, Taylor
from forecache.plan import Method

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


def explicit(*, skip: Collection[int] | None = None, compute: Collection[int] | None = None) -> Method:
    """The steps written out: those to skip, or those to compute. Reuse in between."""
    if (skip is None) == (compute is None):
        raise PlanError("explicit() takes the steps to skip or the steps to compute, one of the two.")
    if skip is not None:
        return Method(f"explicit(skip={sorted(skip)})", schedules.except_on(skip))
    return Method(f"explicit(compute={sorted(compute or ())})", schedules.on(compute or ()))


def l2c(router: Router | str | os.PathLike[str], threshold: float = 0.1) -> Method:
    """Reuse where a trained router allows it (Learning-to-Cache, arXiv 2406.01733).

    router: a `Router`, or the path of one: our safetensors, or a published ``.pt``. A cell is computed where its
    probability is over ``threshold``; the paper takes 0.1 at 256x256. Planning raises PlanError for a run of other
    steps or a model of other blocks than the router was trained for.
    """
    name = "router" if isinstance(router, Router) else repr(Path(router).name)
    found = router if isinstance(router, Router) else Router.read(router)
    return Method(f"l2c({name}, threshold={threshold:g})", found.schedule(threshold))


def goc(
    base: Method,
    eta: float,
    *,
    steps: Sequence[int] | None = None,
    gate: Gate | None = None,
    history: History = "emitted",
) -> Method:
    """Reuse plus eta times the last change of the feature (GOC, arXiv 2503.05156) on the schedule of ``base``.

    steps: the skipped steps to correct; plain reuse in the others. gate: the same as a function; by default all.
    history: ``emitted`` is the paper's queue, ``computed`` the other reading (see `forecasts.Gradient`).
    The paper's eta are 1.2 on FORA 50 %, 1.9 (1.7 in its Table 3) on FORA 25 %, 1.0 on L2C 22 %. With the emitted
    queue an error grows by the factor eta from gap to gap, so try eta <= 1 first.
    """
    if steps is not None and gate is not None:
        raise PlanError("goc() takes the steps to correct or a gate, one of the two.")
    described = f", steps={list(steps)}" if steps is not None else ", gate=custom" if gate is not None else ""
    described += f", history='{history}'" if history != "emitted" else ""
    chosen = gates.on_steps(tuple(steps)) if steps is not None else gate or gates.always
    return _corrected(
        base, Method(f"goc({base.name}, eta={eta:g}{described})", base.schedule, Gradient(eta, history), chosen)
    )


def goc_paper_steps(level: Literal[25, 50]) -> tuple[int, ...]:
    """The steps that the GOC paper corrects on FORA at this caching level, DDIM-20.

    At 50 %, 17 is left out: its gradient is inverse.
    """
    steps = {25: (3, 5, 7, 9), 50: (3, 5, 7, 9, 11, 13, 15, 19)}
    if level not in steps:
        raise PlanError(f"The GOC paper lists steps for the levels 25 and 50; {level!r} was asked for.")
    return steps[level]


def taylorseer(base: Method, order: int = 1) -> Method:
    """Taylor expansion of the feature around its last computed value (TaylorSeer, arXiv 2503.06923).

    order 0 is reuse, 1 a straight line, 2 adds the second difference. The order is lowered while a feature was
    computed fewer than order + 1 times; the paper computes the first steps: `warmup(base, 3)`.
    """
    return _corrected(base, Method(f"taylorseer({base.name}, order={order})", base.schedule, Taylor(order)))


def _corrected(base: Method, correction: Method) -> Method:
    """``correction``, unless the base has a forecast of its own, which it would replace without a word."""
    if not isinstance(base.forecast, Reuse):
        raise PlanError(
            f"{base.name} has a forecast already: {correction.name} takes a schedule with plain reuse as base."
        )
    return correction


def warmup(base: Method, steps: int) -> Method:
    """``base`` with its first ``steps`` steps computed."""
    schedule = schedules.either(schedules.first(steps), base.schedule)
    return replace(base, name=f"warmup({base.name}, {steps})", schedule=schedule)
