"""The last decibel: the weights of a plan, moved a little by what that does to the images.

Weights are fitted to features, and what is wanted are images. So each skipped step gets two numbers: by the first, the
weight of its newest feature grows and that of the one before shrinks; by the second, all its weights grow. Gauss-Newton
finds these numbers from images that were sampled with each of them moved alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forecache.parts.forecasts import Forecast
from forecache.parts.grid import Site
from forecache.plan.plan import Plan

Table = NDArray[np.float64]
Way = Literal["moved", "scaled"]
"""How a step's weights change: from the older to the newest feature, or all of them."""
WAYS: tuple[Way, ...] = ("moved", "scaled")
Moves = Mapping[tuple[Way, int], float]
"""By way and step."""
ROUNDS = 3
"""So often the images are looked at anew."""
SCHEDULES = 3
"""So many schedules are polished for a round, because the best before that need not be the best after it."""
MOVE: Mapping[Way, float] = {"moved": 0.05, "scaled": 0.02}
"""How far a weight is moved to see what that does."""
MOST: Mapping[Way, float] = {"moved": 1.0, "scaled": 0.25}
"""How far it is moved in a round, at most; in all rounds, no weight shrinks to nothing."""
DAMPING = 0.1
"""Of Gauss-Newton, as a share of the diagonal."""
PIXELS = 4096
"""So many entries of each image are looked at, always the same."""


@dataclass(frozen=True)
class Moved:
    """A forecast with other weights: wherever a step reads two features or more, the newest counts for more by so much
    and the one before for less; then all count for more by a share.
    """

    forecast: Forecast
    by: Moves

    def reads(self, step: int, computed: Sequence[int], site: Site) -> Mapping[int, float]:
        reads = dict(self.forecast.reads(step, computed, site))
        if len(reads) > 1:
            newest, older, *_ = reads
            reads[newest] += self.by.get(("moved", step), 0.0)
            reads[older] -= self.by.get(("moved", step), 0.0)
        return {source: weight * (1 + self.by.get(("scaled", step), 0.0)) for source, weight in reads.items()}


def rounds() -> int:
    """Of all schedules together, at most."""
    return ROUNDS + SCHEDULES - 1


def movable(plan: Plan) -> list[tuple[Way, int]]:
    """The ways and steps in which there is something to move."""
    steps = list(enumerate(zip(*plan.rows, strict=True)))
    several: list[tuple[Way, int]] = [
        ("moved", step) for step, cells in steps if any(len(cell.reads) > 1 for cell in cells)
    ]
    return [*several, *(("scaled", step) for step, cells in steps if not cells[0].computed)]


class Slopes:
    """What the images do when each step's weight moves: sums for least squares.

    Every image counts by one over its error, which makes the mean PSNR better rather than that of the worst image.
    """

    def __init__(self, images: Tensor, uncached: Tensor) -> None:
        self._images = _chosen(images)
        missed = _chosen(uncached) - self._images
        self._weights = 1 / missed.square().mean(1, keepdim=True).sqrt().clamp_min(1e-4)
        self._missed = (missed * self._weights).flatten().numpy()
        self._slopes: list[Table] = []

    def add(self, images: Tensor, by: float) -> None:
        """The same images with the next step's weight moved by so much."""
        slope = (_chosen(images) - self._images) * (self._weights / by)
        self._slopes.append(slope.flatten().numpy())

    def sums(self) -> Table:
        """(K, K + 1): the products of the slopes with each other, and with what is missing."""
        slopes = np.stack(self._slopes)
        return np.concatenate([slopes @ slopes.T, (slopes @ self._missed)[:, None]], 1)


def step(sums: Table, most: Sequence[float]) -> Sequence[float]:
    """How far each weight is moved, at most so far."""
    square, right = sums[:, :-1], sums[:, -1]
    damped = square + np.diag(DAMPING * np.diag(square) + 1e-12)
    return np.clip(np.linalg.solve(damped, right), np.negative(most), most).tolist()


def _chosen(images: Tensor) -> Tensor:
    if not len(images):  # this process makes none
        return torch.zeros(0, 1, dtype=torch.float64)
    flat = images.flatten(1).double()
    if flat.shape[1] <= PIXELS:
        return flat
    return flat[:, torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0))[:PIXELS]]
