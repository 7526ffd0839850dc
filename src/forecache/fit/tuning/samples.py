"""The samples of a tuning: of several processes each makes some batches, and all know what came of all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from forecache.distributed import World
from forecache.evaluate import psnr
from forecache.evaluate.images import EQUAL_DB
from forecache.sampling.sources import Condition, OnStep, Sampling, Source


def starts(world: World, count: int, batch: int) -> range:
    """Where the batches of this process begin. Noise goes by the number of a sample, whoever makes it."""
    return range(0, count, batch)[world.rank :: world.size]


class Samples:
    """Samples from a source, batch by batch. on_step: called after every model call of this process."""

    def __init__(self, source: Source, batch: int, world: World, on_step: OnStep | None) -> None:
        self.world = world
        self._source, self._batch, self._on_step = source, batch, on_step

    def images(self, labels: Sequence[Condition], how: Sampling) -> Tensor:
        """(B, C, H, W) in [0, 1], those that this process makes; empty where it makes none."""
        made = [
            self._source.generate(labels[first : first + self._batch], how, first, self._on_step)
            for first in starts(self.world, len(labels), self._batch)
        ]
        return torch.cat(made) if made else torch.empty(0)

    def psnr(self, images: Tensor, uncached: Tensor) -> float:
        """Mean PSNR in dB over the images of all processes."""
        near = psnr(images, uncached).clamp_max(EQUAL_DB).double() if len(images) else torch.zeros(0)
        total, count = self.world.totals(np.array([float(near.sum()), len(near)]))
        return float(total / count)
