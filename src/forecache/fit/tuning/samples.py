"""Sampling that several processes share: each samples some of the batches, and all know the mean PSNR."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from forecache.distributed import World
from forecache.evaluate import psnr
from forecache.evaluate.images import EQUAL_DB
from forecache.sampling.sources import Condition, OnStep, Sampling, Source


def batch_starts(world: World, count: int, batch: int) -> range:
    """The first sample of every batch that this process samples.

    The noise of a sample depends on its number, not on the process that samples it.
    """
    return range(0, count, batch)[world.rank :: world.size]


class SharedSampler:
    """Samples a source batch by batch, shared between processes.

    world: the processes.
    on_step: called after every model call of this process.
    """

    def __init__(self, source: Source, batch: int, world: World, on_step: OnStep | None) -> None:
        self.world = world
        self._source, self._batch, self._on_step = source, batch, on_step

    def images(self, conditions: Sequence[Condition], how: Sampling) -> Tensor:
        """The images (B, C, H, W) in [0, 1] that this process samples; empty where it samples none."""
        batches = [
            self._source.generate(conditions[first : first + self._batch], how, first, self._on_step)
            for first in batch_starts(self.world, len(conditions), self._batch)
        ]
        return torch.cat(batches) if batches else torch.empty(0)

    def psnr(self, images: Tensor, uncached: Tensor) -> float:
        """Mean PSNR in dB over the images of all processes."""
        decibels = psnr(images, uncached).clamp_max(EQUAL_DB).double() if len(images) else torch.zeros(0)
        total, count = self.world.totals(np.array([float(decibels.sum()), len(decibels)]))
        return float(total / count)
