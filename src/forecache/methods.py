"""Methods by their names in the papers, each a sentence of parts. Corrections take a base, as the papers do.

fora(interval=2)                                      every second step computed, the others reused
goc(fora(interval=2), eta=0.8)                        reuse plus a share of the last change
taylorseer(fora(interval=3), order=2)                 Taylor expansion in between
feedback(fora(interval=3), order=2, strength=0.5)     the same less half the error of the gap before
l2c("router.safetensors")                             reuse where a trained router allows it
goc(explicit(skip=[1, 3, 5, 7, 9]), eta=1.9)          any schedule is a base
eoc(fora_paper(75), statistics)                       what was reused, moved along the mean drift
smoothcache(statistics, threshold=0.2)                reuse while the measured error is small, by kind of branch
procache("#...#..#.")                                 a searched pattern; in its gaps some tokens are computed
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from forecache import gates, schedules
from forecache._core import Action, Gate, Grid, Importance, Selector, Site
from forecache._errors import PlanError
from forecache._routerfile import Router
from forecache._smoothcache import smoothcache, smoothcache_file
from forecache.corrections import Drift, Form
from forecache.forecasts import Feedback, Forecast, Gradient, History, Reuse, Taylor
from forecache.plan import Method
from forecache.statistics import Resolution, Statistics
from forecache.tokens import Share, released, top

__all__ = [
    "eoc",
    "explicit",
    "feedback",
    "fora",
    "fora_paper",
    "goc",
    "goc_paper_steps",
    "l2c",
    "procache",
    "procache_paper",
    "selective",
    "smoothcache",
    "smoothcache_file",
    "taylorseer",
    "toca",
    "warmup",
]

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


def explicit(
    *,
    skip: Collection[int] | None = None,
    compute: Collection[int] | None = None,
    pattern: str | Sequence[int] | None = None,
) -> Method:
    """The steps written out: those to skip, those to compute, or all of them as a pattern. Reuse in between.

    pattern: one entry a step, as `schedules.by_step` reads it: ``"#...#..#"``.
    """
    if (skip, compute, pattern).count(None) != 2:
        raise PlanError("explicit() takes the steps to skip, the steps to compute, or a pattern: one of the three.")
    if pattern is not None:
        schedule = schedules.by_step(pattern)
        return Method(f"explicit(pattern={schedules.picture(schedule, len(pattern))!r})", schedule)
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
        raise PlanError("goc() takes the steps to correct or a gate, one of the two.")
    described = f", steps={list(steps)}" if steps is not None else f", gate={_name(gate)}" if gate is not None else ""
    described += f", history='{history}'" if history != "emitted" else ""
    described += "" if whole_blocks else ", whole_blocks=False"
    chosen = gates.on_steps(tuple(steps)) if steps is not None else gate or gates.always
    if whole_blocks:
        chosen = gates.whole_blocks(base.schedule, chosen)
    return _forecast(base, f"goc({base.name}, eta={eta:g}{described})", Gradient(eta, history), chosen)


def _name(gate: Gate) -> str:
    return f"god({gate.gamma:g}, {gate.threshold:g})" if isinstance(gate, gates.god) else "custom"


def goc_paper_steps(level: Literal[25, 50]) -> tuple[int, ...]:
    """The steps that the GOC paper corrects on FORA at this caching level, DDIM-20 (17 has an inverse gradient)."""
    steps = {25: (3, 5, 7, 9), 50: (3, 5, 7, 9, 11, 13, 15, 19)}
    if level not in steps:
        raise PlanError(f"The GOC paper lists steps for the levels 25 and 50; {level!r} was asked for.")
    return steps[level]


def taylorseer(base: Method, order: int = 1) -> Method:
    """Taylor expansion of the feature around its last computed value (TaylorSeer, arXiv 2503.06923).

    order 0 is reuse, 1 a straight line, 2 adds the second difference. The order is lowered while a feature was
    computed fewer than order + 1 times; the paper computes the first steps: `warmup(base, 3)`.
    """
    return _forecast(base, f"taylorseer({base.name}, order={order})", Taylor(order), gates.always)


def feedback(base: Method, order: int = 2, strength: float = 0.5) -> Method:
    """A Taylor forecast that pays back a share of the error of its last estimates (ours), see `forecasts.Feedback`.

    Of few steps, order 2 overshoots in long gaps, as Taylor's does: on digits at N = 4 of 20 steps the images are
    spoilt. There take order 1, or let `forecache.tune` choose.
    """
    name = f"feedback({base.name}, order={order}, strength={strength:g})"
    return _forecast(base, name, Feedback(order, strength), gates.always)


def _forecast(base: Method, name: str, forecast: Forecast, gate: Gate) -> Method:
    """``base`` with a forecast, unless it has one of its own, which would be replaced without a word."""
    if not isinstance(base.forecast, Reuse):
        raise PlanError(f"{base.name} has a forecast already: {name} takes a schedule with plain reuse as base.")
    return replace(base, name=name, forecast=forecast, gate=gate)


def eoc(
    base: Method,
    stats: Statistics,
    theta: float | None = None,
    *,
    form: Form = "relative",
    judge: Literal["prior", "all"] | Collection[int] = "prior",
    per: Resolution | None = None,
) -> Method:
    """What was reused, moved along the feature's mean drift (EOC, arXiv 2501.19243), on the schedule of ``base``.

    stats: of this model, scheduler and number of steps, from `forecache.calibrate`. form: ``relative`` is the paper's,
    cached * (1 + theta * E); ``additive`` is ours, cached + theta * (sum of E), and also works on a forecast.
    theta: 0.01 (the paper's) for the relative form and 1 for the additive one by default. judge: which skipped steps
    are corrected: ``prior`` where the averages say that it helps (ours; the paper's rule is not published), ``all``,
    or the steps. per: priors with a mean per ``token`` (the paper's), or per ``channel``, smaller by the number of
    tokens; by default what the statistics hold.
    """
    theta = (0.01 if form == "relative" else 1.0) if theta is None else theta
    chosen = judge if isinstance(judge, str) else tuple(judge)
    resolution = per or stats.resolution
    described = f", theta={theta:g}, form='{form}'"
    described += f", judge={judge!r}" if isinstance(judge, str) else f", judge={list(judge)}"
    described += f", per='{resolution}'"
    if base.correction is not None:
        raise PlanError(f"{base.name} is corrected already: eoc() takes a base without another one.")
    return replace(base, name=f"eoc({base.name}{described})", correction=Drift(stats, theta, form, chosen, resolution))


def procache(
    pattern: str | Sequence[int],
    from_depth: int | float = 0.75,
    share: float | Share = 0.25,
    importance: Importance = "attn_norm",
) -> Method:
    """A searched pattern with selective computation in its gaps (ProCache, arXiv 2512.17298).

    pattern: one entry a step, as `schedules.by_step` reads it: ``"#...#..#"``, or `forecache.search`'s. In
    the blocks from ``from_depth`` on, every second step of a gap computes the MLPs (and cross-attention) of some
    tokens; see `selective`.
    """
    return selective(explicit(pattern=pattern), from_depth, share, importance)


def procache_paper(*, partial: bool = True) -> Method:
    """The published row of ProCache on DiT (DDIM-50, 2.90x): its pattern, and tokens as its released code chooses them.

    The pattern alone without ``partial``. Runs of 50 steps only.
    """
    base = Method("procache_paper()", schedules.by_step(PROCACHE_PATTERN))
    if not partial:
        return replace(base, name="procache_paper(partial=False)")
    return replace(selective(base, tokens=released()), name=base.name)


PROCACHE_PATTERN = "".join("#" + "." * (length - 1) for length in 6 * [4] + 4 * [3] + 7 * [2])
"""The pattern that ProCache found for DiT-XL/2 at 50 steps: 17 computed, gaps of 3, 2 and 1."""


def toca(
    base: Method,
    share: float | Share = 0.25,
    importance: Importance = "attention",
    *,
    tokens: Selector | None = None,
) -> Method:
    """Some tokens at every skipped step, in every block (ToCa, arXiv 2410.05317), on the schedule of ``base``.

    A token that waits gains 1/16 a call, and the best of each 2 x 2 patch counts 1.6 times; or ``tokens`` chooses.
    """
    made = selective(base, 0, tokens=tokens or top(share, importance, age=0.25 / 4, bonus=1.6), every=1)
    described = f"{_described(share)}, {_described(importance)}" if tokens is None else "tokens=custom"
    return replace(made, name=f"toca({base.name}, {described})")


def selective(
    base: Method,
    from_depth: int | float = 0.75,
    share: float | Share = 0.25,
    importance: Importance = "attn_norm",
    *,
    tokens: Selector | None = None,
    every: int = 2,
    kinds: Collection[str] = ("mlp", "cross"),
) -> Method:
    """``base`` with partial calls: one skipped step in ``every`` computes some tokens after all (ProCache's injection).

    from_depth: a whole number is the first block that does; a fraction is that part of the blocks, 0.75 the deepest
    quarter. share, importance: how many tokens and which, see `tokens.top`; or ``tokens``, any selector. kinds: of the
    sites that do; they must treat every token by itself. Raises PlanError if the schedule has no gap that is long
    enough.
    """
    injected = schedules.inject(base.schedule, every)

    def schedule(step: int, site: Site, grid: Grid) -> Action:
        chosen = site.kind in kinds and site.depth >= _block(from_depth, grid)
        return (injected if chosen else base.schedule)(step, site, grid)

    described = f"{_described(share)}, {_described(importance)}" if tokens is None else "tokens=custom"
    described += f", every={every}" if every != 2 else ""
    name = f"selective({base.name}, {from_depth:g}, {described})"
    return replace(base, name=name, schedule=schedule, tokens=tokens or top(share, importance))


def _block(from_depth: int | float, grid: Grid) -> int:
    blocks = 1 + max(site.depth for site in grid.sites)
    block = from_depth if isinstance(from_depth, int) else math.floor(from_depth * blocks)
    if not 0 <= block < blocks:
        known = f"the blocks are 0 to {blocks - 1}: give one of these, or a part of them such as 0.75"
        raise PlanError(f"from_depth={from_depth!r} is block {block}, and {known}.")
    return block


def _described(part: object) -> str:
    return "custom" if callable(part) else repr(part)


def warmup(base: Method, steps: int) -> Method:
    """``base`` with its first ``steps`` steps computed."""
    schedule = schedules.either(schedules.first(steps), base.schedule)
    return replace(base, name=f"warmup({base.name}, {steps})", schedule=schedule)
