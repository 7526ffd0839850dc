"""ProCache (arXiv 2512.17298) and ToCa (arXiv 2410.05317): skipped steps that compute some tokens."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from forecache.errors import PlanError
from forecache.methods.explicit import explicit
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts import patterns, schedules
from forecache.parts.grid import Action, Grid, Importance, Selector, Site
from forecache.parts.tokens import Share, released, top
from forecache.plan.method import Method

PROCACHE_PATTERN = patterns.from_segments(6 * [4] + 4 * [3] + 7 * [2])
"""The pattern that ProCache found for DiT-XL/2 at 50 steps: 17 computed, gaps of 3, 2 and 1."""

SHARE, RELEASED_SHARE = 0.25, 0.07
AGE, BONUS = 0.25 / 4, 1.6
"""Of ToCa: what a token gains a call until it is computed, and the factor of the best token of a 2 x 2 patch."""

TokenShare = Annotated[float | Share | None, Range(least=0, most=1, slider=(0, 1, 0.01), usual=SHARE)]
Ranking = Importance | Literal["released"]


def _base_of_pattern(arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments | {"base": _schedule_of(arguments["base"])}


def _schedule_of(base: Method | str | Sequence[int]) -> Method:
    return base if isinstance(base, Method) else explicit(pattern=base)


@register(rewrite=_base_of_pattern)
def procache(
    base: Method | str | Sequence[int],
    from_depth: int | float = 0.75,
    share: TokenShare = None,
    importance: Ranking = "attn_norm",
) -> Method:
    """Searched pattern with some tokens computed in its gaps (ProCache, arXiv 2512.17298).

    In the deepest blocks, every second step of a gap computes the MLPs (and cross-attention) of some tokens; see
    `selective`. The published pattern for DiT at 50 steps is `PROCACHE_PATTERN`, its whole row `procache_paper`.

    base: pattern with one entry a step, as `schedules.by_step` reads it: ``"#...#..#"``, or `forecache.search`'s; or
        any schedule
    from_depth: first block with partial cells; a fraction is that part of the blocks, 0.75 the deepest quarter
    share: of the tokens that are computed, 0 to 1; by default 0.25, and 0.07 for ``released``
    importance: rank of a token, see `tokens.top`; ``released`` is the ranking of ProCache's released code
    """
    return selective(_schedule_of(base), from_depth, share, importance)


@register(fixed_length=True)
def procache_paper(*, partial: bool = True) -> Method:
    """Published row of ProCache on DiT (DDIM-50, 2.90x, arXiv 2512.17298), for runs of 50 steps.

    Its pattern, and tokens as its released code ranks them.

    partial: compute tokens in the gaps; without them the pattern alone
    """
    schedule = schedules.by_step(PROCACHE_PATTERN, owner="procache_paper")
    base = replace(explicit(pattern=PROCACHE_PATTERN), schedule=schedule)
    return selective(base, importance="released") if partial else base


@register
def toca(
    base: Method,
    share: TokenShare = None,
    importance: Ranking = "attention",
    *,
    tokens: Selector | None = None,
) -> Method:
    """Some tokens computed at every skipped step, in every block (ToCa, arXiv 2410.05317).

    A token gains 1/16 for every call until it is computed, and the best token of a 2 x 2 patch counts 1.6 times.

    base: schedule
    share: of the tokens that are computed, 0 to 1; by default 0.25, and 0.07 for ``released``
    importance: rank of a token, see `tokens.top`; ``released`` is the ranking of ProCache's released code
    tokens: a selector of your own in the place of share and importance
    """
    selector = tokens or _selector(share, importance, age=AGE, bonus=BONUS)
    return selective(base, 0, tokens=selector, every=1)


@register
def selective(
    base: Method,
    from_depth: int | float = 0.75,
    share: TokenShare = None,
    importance: Ranking = "attn_norm",
    *,
    tokens: Selector | None = None,
    every: Annotated[int, Range(least=1)] = 2,
    kinds: Collection[str] = ("mlp", "cross"),
) -> Method:
    """Some tokens computed in one skipped step of every few (ProCache's injection, arXiv 2512.17298).

    Raises PlanError if the schedule has no gap that is long enough.

    base: schedule
    from_depth: first block with partial cells; a fraction is that part of the blocks, 0.75 the deepest quarter
    share: of the tokens that are computed, 0 to 1; by default 0.25, and 0.07 for ``released``
    importance: rank of a token, see `tokens.top`; ``released`` is the ranking of ProCache's released code
    tokens: a selector of your own in the place of share and importance
    every: one skipped step in so many is partial
    kinds: kinds of the sites with partial cells, which must treat every token by itself
    """
    injected = schedules.inject(base.schedule, every)

    def schedule(step: int, site: Site, grid: Grid) -> Action:
        is_partial = site.kind in kinds and site.depth >= _block(from_depth, grid)
        return (injected if is_partial else base.schedule)(step, site, grid)

    return replace(base, schedule=schedule, tokens=tokens or _selector(share, importance))


def _selector(share: float | Share | None, importance: Ranking, age: float = 0.0, bonus: float = 1.0) -> Selector:
    if importance == "released":
        if callable(share):
            raise PlanError(
                "importance='released' has a share that rises with depth and step: give its base, a number."
            )
        return released(RELEASED_SHARE if share is None else share)
    return top(SHARE if share is None else share, importance, age=age, bonus=bonus)


def _block(from_depth: int | float, grid: Grid) -> int:
    blocks = 1 + max(site.depth for site in grid.sites)
    block = from_depth if isinstance(from_depth, int) else math.floor(from_depth * blocks)
    if not 0 <= block < blocks:
        known = f"the blocks are 0 to {blocks - 1}: give one of these, or a part of them such as 0.75"
        raise PlanError(f"from_depth={from_depth!r} is block {block}, and {known}.")
    return block
