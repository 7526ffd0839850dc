"""Which tokens a partial cell computes. Each is a function (step, site, grid) -> Tokens.

top(0.25)                                     the quarter whose attention output is longest (ProCache's paper)
top(0.25, "random")                           any quarter, the same in every sample
top(rising(0.07), "attention", age=0.0625)    the share grows with depth and step; so does a token that waits
released()                                    all that ProCache's released code does on DiT
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from forecache.errors import PlanError
from forecache.parts.grid import Grid, Importance, Selector, Site, Tokens

Share = Callable[[int, Site, Grid], float]
"""(step, site, grid) -> share of the tokens, 0 to 1."""


def top(
    share: float | Share,
    importance: Importance = "attn_norm",
    *,
    age: float = 0.0,
    bonus: float = 1.0,
    token_grid: tuple[int, int] | None = None,
    halves: Literal["own", "shared"] = "own",
    seed: int = 0,
) -> Selector:
    """The ``share`` of tokens with the highest score, as `Tokens` describes it.

    They are scored by the first site of the block, its attention: ``attn_norm`` takes the L2 norm of what it gives out
    (ProCache, arXiv 2512.17298), ``attention`` the attention that it pays to a token (ToCa, arXiv 2410.05317), a
    function what you like.
    """

    def selector(step: int, site: Site, grid: Grid) -> Tokens:
        part = share(step, site, grid) if callable(share) else share
        scored = _first_of_block(site, grid) if importance != "random" else ""
        return Tokens(part, importance, scored, age, bonus, token_grid, halves, seed)

    return selector


def rising(base: float) -> Share:
    """The share of ProCache's released code, with its ``base`` of 0.07: it grows with depth and towards the last step.

    base * (0.8 + 0.4 * depth / (blocks - 1)) * (3 - 4 * (T - 1 - step) / T) * 2.5, cut to 0 to 1, for T steps.
    """

    def share(step: int, site: Site, grid: Grid) -> float:
        deepest = max(each.depth for each in grid.sites)
        by_depth = 0.8 + 0.4 * site.depth / max(1, deepest)
        by_step = 3 - 4 * (grid.num_steps - 1 - step) / grid.num_steps
        return min(1.0, max(0.0, base * by_depth * by_step * 2.5))

    return share


def released(base: float = 0.07) -> Selector:
    """The tokens of ProCache's released code on DiT: by attention, age and place, in a `rising` share."""
    return top(rising(base), "attention", age=0.25 / 4, bonus=1.6)


def _first_of_block(site: Site, grid: Grid) -> str:
    first = next(each for each in grid.sites if each.depth == site.depth)
    if first == site:
        raise PlanError(
            f"The tokens of {site.name} are chosen by the attention of its block, and no site runs before it there: "
            "make the attention a site too, or use importance='random'."
        )
    return first.name


__all__ = ["Share", "Tokens", "released", "rising", "top"]
