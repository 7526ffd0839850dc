"""Selectors: the tokens that a partial cell computes. Each is a function (step, site, grid) -> Tokens.

top(0.25)                                     the quarter with the longest attention output (ProCache's paper)
top(0.25, "random")                           a random quarter, the same in every sample
top(rising(0.07), "attention", age=0.0625)    a share that grows with depth and step, scores that grow with age
released()                                    ProCache's released code on DiT
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
    """The ``share`` of tokens with the highest scores; the other parameters are those of `Tokens`.

    Tokens are scored by the first site of the block, its attention: ``attn_norm`` takes the L2 norm of a token's output
    (ProCache, arXiv 2512.17298), ``attention`` the attention that a token receives (ToCa, arXiv 2410.05317); or pass
    your own scoring function.
    """

    def selector(step: int, site: Site, grid: Grid) -> Tokens:
        part = share(step, site, grid) if callable(share) else share
        scored = _first_of_block(site, grid) if importance != "random" else ""
        return Tokens(part, importance, scored, age, bonus, token_grid, halves, seed)

    return selector


def rising(base: float) -> Share:
    """The share of ProCache's released code, where ``base`` is 0.07: it grows with depth and towards the last step.

    base * (0.8 + 0.4 * depth / (blocks - 1)) * (3 - 4 * (T - 1 - step) / T) * 2.5, clamped to 0 to 1, for T steps.
    """

    def share(step: int, site: Site, grid: Grid) -> float:
        deepest = max(other.depth for other in grid.sites)
        by_depth = 0.8 + 0.4 * site.depth / max(1, deepest)
        by_step = 3 - 4 * (grid.num_steps - 1 - step) / grid.num_steps
        return min(1.0, max(0.0, base * by_depth * by_step * 2.5))

    return share


def released(base: float = 0.07) -> Selector:
    """The tokens of ProCache's released code on DiT: a `rising` share, by attention, age and best of each patch."""
    return top(rising(base), "attention", age=0.25 / 4, bonus=1.6)


def _first_of_block(site: Site, grid: Grid) -> str:
    first = next(other for other in grid.sites if other.depth == site.depth)
    if first == site:
        raise PlanError(
            f"The tokens of {site.name} are chosen by the attention of its block, and no site of the block runs before "
            "it: make the attention a site too, or use importance='random'."
        )
    return first.name


__all__ = ["Share", "Tokens", "released", "rising", "top"]
