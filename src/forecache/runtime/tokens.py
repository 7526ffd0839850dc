"""Which tokens the partial cells of one lane compute: scores and ages, kept from one step to a later one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forecache.errors import RunError
from forecache.models.layout import Layout
from forecache.parts.grid import Importance
from forecache.plan.slots import Choice, Op, Score
from forecache.runtime import selection
from forecache.runtime.selection import Call, choose


@dataclass
class Meter:
    """Bytes held by histories, now and at the peak."""

    held: int = 0
    peak: int = 0


class Chooser:
    """The scores and ages of tokens in one lane, for its partial cells.

    layout: how attention is scored. random: random scores (1, N) for a site, its choice and a feature (B, N, D). image:
    the shape of the model's input, (B, C, H, W), in this call.
    """

    def __init__(self, layout: Layout, meter: Meter, random: Callable[[int, Choice, Tensor], Tensor]) -> None:
        self._layout, self._meter, self._random = layout, meter, random
        self.scores: dict[Score, Tensor] = {}
        self.ages: dict[int, Tensor] = {}
        self.image: Sequence[int] | None = None

    def score(self, site: int, importance: Importance, output: Tensor, call: Call) -> None:
        """Keep the scores that this site gives tokens."""
        received = self._layout.received[site] if importance == "attention" else None
        made = selection.score(importance, output) if received is None else received(*call.args, **call.kwargs)
        self.scores[site, importance] = made
        self._meter.held += made.nbytes

    def amended(self, site: int, choice: Choice, estimate_BND: Tensor, call: Call) -> Tensor:
        """The estimate of a partial cell with the chosen tokens computed."""
        if estimate_BND.ndim != 3:
            raise RunError(
                f"A partial cell needs features (batch, tokens, width); {self._layout.sites[site].name} gives "
                f"{tuple(estimate_BND.shape)}."
            )
        tokens = estimate_BND.shape[1]
        count = choice.tokens.count(tokens)
        age_BN = self.ages.pop(site) if choice.aged else None
        self._meter.held -= age_BN.nbytes if age_BN is not None else 0
        index_BK = None
        if 0 < count < tokens:
            index_BK = choose(choice.tokens, self._scores_for(site, choice, estimate_BND), age_BN, self.image)
        if choice.ages:
            age_BN = estimate_BND.new_zeros(estimate_BND.shape[:2], dtype=torch.float32) if age_BN is None else age_BN
            self.ages[site] = aged = selection.older(age_BN, index_BK, count)
            self._meter.held += aged.nbytes
        for score in choice.drops:
            self._meter.held -= self.scores.pop(score).nbytes
        if index_BK is not None:
            return selection.amend(estimate_BND, index_BK, call)
        return call.compute(*call.args, **call.kwargs) if count else estimate_BND

    def _scores_for(self, site: int, choice: Choice, estimate_BND: Tensor) -> Tensor:
        if choice.score is not None:
            return self.scores[choice.score][:, : estimate_BND.shape[1]]  # the image's part of a joint attention
        return self._random(site, choice, estimate_BND).expand(len(estimate_BND), -1)

    def clear(self) -> None:
        """Let go of everything."""
        self._meter.held -= sum(each.nbytes for each in (*self.scores.values(), *self.ages.values()))
        self.scores.clear()
        self.ages.clear()

    def take(self, ops: Sequence[Op], scores: Mapping[Score, Tensor], ages: Mapping[int, Tensor]) -> None:
        """Keep what a step made that was run as a pure function, and let go of what it read for the last time."""
        for site, op in enumerate(ops):
            if op.choice is not None:
                gone = [self.scores.pop(score) for score in op.choice.drops if score in self.scores]
                gone += [self.ages.pop(site)] if op.choice.aged else []
                self._meter.held -= sum(each.nbytes for each in gone)
        self.scores.update(scores)
        self.ages.update(ages)
        self._meter.held += sum(each.nbytes for each in (*scores.values(), *ages.values()))
