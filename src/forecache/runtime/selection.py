"""Tokens chosen and computed at run time: scores, the best of them, and a feature with those tokens replaced.

Indices stay on the device, and how many there are is known before the run. B batch, N tokens, D width, K chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forecache.errors import RunError
from forecache.parts.grid import Importance, Tokens


class Call(NamedTuple):
    """How a site is computed in this model call: ``compute(*args, **kwargs)``."""

    compute: Callable[..., Tensor]
    args: Sequence[Any]
    kwargs: dict[str, Any]


def score(importance: Importance, output_BND: Tensor) -> Tensor:
    """Scores (B, N), float32, of what a site gave out: the L2 norm of every token, or a function's."""
    if not callable(importance):
        wide = torch.promote_types(output_BND.dtype, torch.float32)
        return torch.linalg.vector_norm(output_BND, dim=-1, dtype=wide).float()
    scores_BN = importance(output_BND)
    if not isinstance(scores_BN, Tensor) or scores_BN.shape != output_BND.shape[:2]:
        found = tuple(scores_BN.shape) if isinstance(scores_BN, Tensor) else type(scores_BN).__name__
        raise RunError(f"An importance gives one score a token, {tuple(output_BND.shape[:2])}; this one gave {found}.")
    return scores_BN.float()


def random_scores(seed: Sequence[int], tokens: int) -> Tensor:
    """Scores (1, N) that depend on the numbers of ``seed`` alone, so that they are the same for every sample."""
    mixed = 0
    for number in seed:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return torch.rand(1, tokens, generator=torch.Generator().manual_seed(mixed))


def choose(tokens: Tokens, scores_BN: Tensor, age_BN: Tensor | None, image: Sequence[int] | None) -> Tensor:
    """The tokens with the highest scores, (B, K), in no order.

    age_BN: partial calls since each was computed. image: the shape of the model's input, (B, C, H, W).
    """
    count = tokens.count(scores_BN.shape[1])
    if tokens.age:
        scores_BN = torch.nn.functional.normalize(scores_BN, dim=1)
        scores_BN = scores_BN if age_BN is None else scores_BN.add(age_BN, alpha=tokens.age)
    if tokens.halves == "shared":
        if len(scores_BN) % 2:
            raise RunError(f"halves='shared' needs a batch of guidance pairs; this one has {len(scores_BN)} rows.")
        scores_BN = scores_BN.unflatten(0, (2, -1)).mean(0).repeat(2, 1)
    if tokens.bonus != 1:
        scores_BN = _spread(scores_BN, token_grid(tokens, scores_BN.shape[1], image), tokens.bonus)
    return scores_BN.topk(count, dim=1, sorted=False).indices


def token_grid(tokens: Tokens, count: int, image: Sequence[int] | None) -> tuple[int, int]:
    """Rows and columns of tokens: as given, or in the proportions of the image; else RunError."""
    rows, columns = tokens.token_grid or (0, 0)
    if tokens.token_grid is None and image is not None and len(image) == 4:
        height, width = image[-2:]
        rows = math.isqrt(count * height // width)
        columns = rows * width // height
    if rows * columns != count:
        raise RunError(
            f"The bonus for the best token of each 2 x 2 patch needs to know how {count} tokens lie, and the model's "
            f"input {tuple(image or ())} does not tell: give token_grid=(rows, columns)."
        )
    return rows, columns


def _spread(scores_BN: Tensor, grid: tuple[int, int], bonus: float) -> Tensor:
    """The best token of each 2 x 2 patch counts ``bonus`` times; patches at odd borders are smaller."""
    rows, columns = grid
    score_BRC = scores_BN.unflatten(1, grid)
    padded = torch.nn.functional.pad(score_BRC, (0, columns % 2, 0, rows % 2), value=-math.inf)
    patches_BrcP = padded.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3).flatten(3)
    best = torch.zeros_like(patches_BrcP, dtype=torch.bool).scatter_(3, patches_BrcP.argmax(3, keepdim=True), True)
    best_BRC = best.unflatten(3, (2, 2)).transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :rows, :columns]
    return torch.where(best_BRC, score_BRC * bonus, score_BRC).flatten(1)


def older(age_BN: Tensor, index_BK: Tensor | None, count: int) -> Tensor:
    """The ages after a partial call: 0 for the tokens that it computed, one more for the others."""
    if index_BK is None:
        return torch.zeros_like(age_BN) if count else age_BN + 1
    return (age_BN + 1).scatter(1, index_BK, 0.0)


def amend(estimate_BND: Tensor, index_BK: Tensor, call: Call) -> Tensor:
    """The estimate with the chosen tokens computed: a new tensor, nothing that was handed out is written into."""
    if not call.args or not isinstance(call.args[0], Tensor) or call.args[0].shape[:2] != estimate_BND.shape[:2]:
        raise RunError("A partial cell needs a module whose first argument is (batch, tokens, ...) like its output.")
    x_BND: Tensor = call.args[0]
    batch, tokens = x_BND.shape[:2]
    first = torch.arange(0, batch * tokens, tokens, device=index_BK.device)
    rows = (index_BK + first[:, None]).flatten()
    chosen_BKD = x_BND.flatten(0, 1).index_select(0, rows).unflatten(0, (batch, -1))
    computed_BKD = call.compute(chosen_BKD, *call.args[1:], **call.kwargs)
    return estimate_BND.flatten(0, 1).index_copy(0, rows, computed_BKD.flatten(0, 1)).unflatten(0, (batch, tokens))
