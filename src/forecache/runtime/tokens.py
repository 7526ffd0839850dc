"""Tokens that partial cells compute: their scores, the choice of the best, and a feature with those tokens replaced.

Indices stay on the device, and their number is known before the run. B batch, N tokens, D width, K chosen tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from forecache.errors import RunError
from forecache.models.arguments import Arguments
from forecache.models.layout import Layout
from forecache.parts.grid import Importance, Tokens
from forecache.plan.ops import Op, Score, TokenChoice
from forecache.runtime.storage import CacheMeter


class TokenChooser:
    """The scores and ages of tokens in one lane, by which its partial cells choose tokens.

    layout: layout of the model; it knows how attention scores tokens.
    meter: counts the bytes of scores and ages; None in a graph, where sizes may have no numbers.
    random: gives random scores (1, N) for a site, its choice and a feature (B, N, D).
    scores: by site and importance, (B, N), float32.
    ages: by site, partial calls since each token was computed, (B, N), float32.
    image: shape of the model's input in this call, (B, C, H, W).
    """

    def __init__(
        self, layout: Layout, meter: CacheMeter | None, random: Callable[[int, TokenChoice, Tensor], Tensor]
    ) -> None:
        self._layout, self._meter, self._random = layout, meter, random
        self.scores: dict[Score, Tensor] = {}
        self.ages: dict[int, Tensor] = {}
        self.image: Sequence[int] | None = None

    def score(self, site: int, importance: Importance, output: Tensor, arguments: Arguments) -> None:
        """Keep the scores that this site gives to tokens, from its output or from its attention."""
        received = self._layout.received[site] if importance == "attention" else None
        scores = score(importance, output) if received is None else received(*arguments.args, **arguments.kwargs)
        self.scores[site, importance] = scores
        self._hold([scores])

    def correct(
        self,
        site: int,
        choice: TokenChoice,
        estimate_BND: Tensor,
        compute: Callable[..., Tensor],
        arguments: Arguments,
    ) -> Tensor:
        """The estimate of a partial cell with the chosen tokens computed: ``compute(*args, **kwargs)`` on them."""
        if estimate_BND.ndim != 3:
            raise RunError(
                f"A partial cell needs features (batch, tokens, width); {self._layout.sites[site].name} gives "
                f"{tuple(estimate_BND.shape)}."
            )
        tokens = estimate_BND.shape[1]
        count = choice.tokens.count(tokens)
        age_BN = self.ages.pop(site) if choice.reads_ages else None
        self._drop([age_BN] if age_BN is not None else [])
        index_BK = None
        if 0 < count < tokens:
            index_BK = choose(choice.tokens, self._scores_for(site, choice, estimate_BND), age_BN, self.image)
        if choice.keeps_ages:
            age_BN = estimate_BND.new_zeros(estimate_BND.shape[:2], dtype=torch.float32) if age_BN is None else age_BN
            self.ages[site] = older_BN = older(age_BN, index_BK, count)
            self._hold([older_BN])
        self._drop([self.scores.pop(dropped) for dropped in choice.drops])
        if index_BK is not None:
            return with_computed(estimate_BND, index_BK, compute, arguments)
        return compute(*arguments.args, **arguments.kwargs) if count else estimate_BND

    def _scores_for(self, site: int, choice: TokenChoice, estimate_BND: Tensor) -> Tensor:
        if choice.score is not None:
            return self.scores[choice.score][:, : estimate_BND.shape[1]]  # the image's part of a joint attention
        return self._random(site, choice, estimate_BND).expand(len(estimate_BND), -1)

    def clear(self) -> None:
        """Drop all scores and ages."""
        self._drop([*self.scores.values(), *self.ages.values()])
        self.scores.clear()
        self.ages.clear()

    def update(self, ops: Sequence[Op], scores: Mapping[Score, Tensor], ages: Mapping[int, Tensor]) -> None:
        """Keep the scores and ages that a traced step gave out, and drop those that no later step reads."""
        for site, op in enumerate(ops):
            if op.choice is not None:
                dropped = [self.scores.pop(score) for score in op.choice.drops if score in self.scores]
                dropped += [self.ages.pop(site)] if op.choice.reads_ages else []
                self._drop(dropped)
        self.scores.update(scores)
        self.ages.update(ages)
        self._hold([*scores.values(), *ages.values()])

    def _hold(self, tensors: Sequence[Tensor]) -> None:
        if self._meter is not None:
            self._meter.held += sum(tensor.nbytes for tensor in tensors)

    def _drop(self, tensors: Sequence[Tensor]) -> None:
        if self._meter is not None:
            self._meter.held -= sum(tensor.nbytes for tensor in tensors)


def score(importance: Importance, output_BND: Tensor) -> Tensor:
    """Scores (B, N), float32, of a site's output: the L2 norm of every token, or the scores of a function."""
    if not callable(importance):
        wide = torch.promote_types(output_BND.dtype, torch.float32)
        return torch.linalg.vector_norm(output_BND, dim=-1, dtype=wide).float()
    scores_BN = importance(output_BND)
    if not isinstance(scores_BN, Tensor) or scores_BN.shape != output_BND.shape[:2]:
        result = tuple(scores_BN.shape) if isinstance(scores_BN, Tensor) else type(scores_BN).__name__
        raise RunError(f"An importance gives one score a token, {tuple(output_BND.shape[:2])}; this one gave {result}.")
    return scores_BN.float()


def random_scores(seed: Sequence[int], tokens: int) -> Tensor:
    """Random scores (1, N) that depend on ``seed`` alone, so that they are the same for every sample."""
    mixed = 0
    for number in seed:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return torch.rand(1, tokens, generator=torch.Generator().manual_seed(mixed))


def choose(tokens: Tokens, scores_BN: Tensor, age_BN: Tensor | None, image: Sequence[int] | None) -> Tensor:
    """The indices (B, K) of the tokens with the highest scores, unsorted.

    age_BN: partial calls since each token was computed. image: shape of the model's input, (B, C, H, W).
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
        scores_BN = with_bonus(scores_BN, token_grid(tokens, scores_BN.shape[1], image), tokens.bonus)
    return scores_BN.topk(count, dim=1, sorted=False).indices


def token_grid(tokens: Tokens, count: int, image: Sequence[int] | None) -> tuple[int, int]:
    """Rows and columns of ``count`` tokens: those of ``tokens``, or in the proportions of the image; else RunError."""
    rows, columns = tokens.token_grid or (0, 0)
    if tokens.token_grid is None and image is not None and len(image) == 4:
        height, width = image[-2:]
        rows = math.isqrt(count * height // width)
        columns = rows * width // height
    if rows * columns != count:
        raise RunError(
            f"The bonus for the best token of each 2 x 2 patch needs rows and columns of the {count} tokens, and the "
            f"shape {tuple(image or ())} of the model's input does not give them: pass token_grid=(rows, columns)."
        )
    return rows, columns


def with_bonus(scores_BN: Tensor, grid: tuple[int, int], bonus: float) -> Tensor:
    """Scores in which the best token of each 2 x 2 patch counts ``bonus`` times; patches at odd borders are smaller."""
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


def with_computed(
    estimate_BND: Tensor, index_BK: Tensor, compute: Callable[..., Tensor], arguments: Arguments
) -> Tensor:
    """The estimate with the chosen tokens computed, as a new tensor: nothing that was handed out is written into."""
    args, kwargs = arguments
    if not args or not isinstance(args[0], Tensor) or args[0].shape[:2] != estimate_BND.shape[:2]:
        first = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else None
        raise RunError(
            "A partial cell needs a module whose first argument is (batch, tokens, ...) like its output, "
            f"{tuple(estimate_BND.shape)}; it is {first or 'no tensor'}."
        )
    x_BND: Tensor = args[0]
    batch, tokens = x_BND.shape[:2]
    first = torch.arange(0, batch * tokens, tokens, device=index_BK.device)
    rows = (index_BK + first[:, None]).flatten()
    chosen_BKD = x_BND.flatten(0, 1).index_select(0, rows).unflatten(0, (batch, -1))
    computed_BKD = compute(chosen_BKD, *args[1:], **kwargs)
    return estimate_BND.flatten(0, 1).index_copy(0, rows, computed_BKD.flatten(0, 1)).unflatten(0, (batch, tokens))
