"""The last decibel: the weights of a plan, moved a little by what that does to the images.

Weights are fitted to features, and what is wanted are images. So each skipped step gets one number, by which the weight
of its newest feature grows and that of the one before shrinks, and Gauss-Newton finds these numbers from images that
were sampled with each of them moved alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forecache._core import Site
from forecache.forecasts import Forecast
from forecache.plan import Plan

Table = NDArray[np.float64]
ROUNDS = 3
"""So often the images are looked at anew."""
MOVE = 0.05
"""How far a weight is moved to see what that does."""
MOST = 1.0
"""How far it is moved in a round, at most."""
DAMPING = 0.1
"""Of Gauss-Newton, as a share of the mean diagonal."""
PIXELS = 4096
"""So many entries of each image are looked at, always the same."""


@dataclass(frozen=True)
class Moved:
    """A forecast whose newest feature counts for more by so much at a step, wherever it reads two or more."""

    forecast: Forecast
    by: Mapping[int, float]

    def reads(self, step: int, computed: Sequence[int], site: Site) -> Mapping[int, float]:
        reads, by = self.forecast.reads(step, computed, site), self.by.get(step, 0.0)
        if not by or len(reads) < 2:
            return reads
        (newest, weight), (older, less), *rest = reads.items()
        return dict([(newest, weight + by), (older, less - by), *rest])


def movable(plan: Plan) -> list[int]:
    """The steps at which there is something to move."""
    return [step for step, cells in enumerate(zip(*plan.rows, strict=True)) if any(len(c.reads) > 1 for c in cells)]


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


def step(sums: Table) -> Sequence[float]:
    """How far each weight is moved."""
    square, right = sums[:, :-1], sums[:, -1]
    size = len(square)
    damped = square + (DAMPING * np.trace(square) / size + 1e-12) * np.eye(size)
    return np.clip(np.linalg.solve(damped, right), -MOST, MOST).tolist()


def _chosen(images: Tensor) -> Tensor:
    if not len(images):  # this process makes none
        return torch.zeros(0, 1, dtype=torch.float64)
    flat = images.flatten(1).double()
    if flat.shape[1] <= PIXELS:
        return flat
    return flat[:, torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0))[:PIXELS]]
