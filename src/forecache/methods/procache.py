"""ProCache (arXiv 2512.17298) and ToCa (arXiv 2410.05317): some tokens are computed after all."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

from forecache.errors import PlanError
from forecache.methods.explicit import explicit
from forecache.parts import patterns, schedules
from forecache.parts.grid import Action, Grid, Importance, Selector, Site
from forecache.parts.tokens import Share, released, top
from forecache.plan.method import Method


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


PROCACHE_PATTERN = patterns.from_segments(6 * [4] + 4 * [3] + 7 * [2])
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
