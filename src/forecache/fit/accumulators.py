"""Running means of features, one accumulator per (step, site), whatever the number of samples.

B batch, N tokens, D width, G gaps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from forecache.distributed import World
from forecache.parts.grid import Grid
from forecache.parts.statistics import Origin, Statistics, inverse_table


class Cell(NamedTuple):
    """One (step, site): how many samples it has seen, their mean (N, D) float32, and the mean changes (G,)."""

    samples: int
    mean: Tensor
    changes: Tensor


class Recent:
    """The last features of one site, newest first, copied into memory that is used again and again.

    Copied because the model may write into what it gave out, and because half of a guidance pair is not needed.
    """

    def __init__(self, gaps: int) -> None:
        self._gaps = gaps
        self._slots: list[Tensor] = []
        self._order: list[int] = []

    def __iter__(self) -> Iterator[Tensor]:
        return (self._slots[index] for index in self._order)

    def clear(self) -> None:
        """Another generation starts."""
        self._order = []

    def push(self, flat: Tensor) -> None:
        """The newest feature, (B, N * D); the oldest one goes where there are as many as gaps."""
        index = self._order.pop() if len(self._order) == self._gaps else len(self._order)
        if index == len(self._slots):
            self._slots.append(torch.empty_like(flat))
        elif self._slots[index].shape != flat.shape:  # the last batch is smaller
            self._slots[index] = torch.empty_like(flat)
        self._slots[index].copy_(flat)
        self._order.insert(0, index)


class Accumulators:
    """The accumulators. A cell is replaced whole, so that an interruption finds every one either before or after.

    Their memory is taken at once, one spare cell a site included, into which the next value is written: small tensors
    that live long, allocated between large ones that do not, would keep the large ones' memory from being used again.
    """

    def __init__(self, chosen: Grid, gaps: int, keep_on: str | torch.device | None) -> None:
        self._sites, self._gaps, self._keep_on = chosen.sites, gaps, keep_on
        self.cells: list[list[Cell | None]] = [[None] * len(chosen.sites) for _ in range(chosen.num_steps)]
        self._free: list[list[Cell]] = [[] for _ in chosen.sites]

    def continue_from(self, kept: Statistics) -> None:
        for step, row in enumerate(self.cells):
            for site in range(len(row)):
                if count := int(kept.counts[step, site]):
                    mean = kept.means[site][step]
                    empty = self._take(site, mean.shape, torch.device(self._keep_on or "cpu"))
                    row[site] = _filled(empty, count, mean, kept.changes[step, site])

    def add(self, step: int, site: int, feature_BND: Tensor, recent: Recent, *, samples: int) -> None:
        """The feature of so many samples; it has twice the rows where both halves of a guidance pair count."""
        mean = feature_BND.mean(0, dtype=torch.float32)
        changes = _changes(feature_BND, recent, self._gaps)
        before = self.cells[step][site]
        empty = self._take(site, mean.shape, torch.device(self._keep_on or mean.device))
        if before is None:
            self.cells[step][site] = _filled(empty, samples, mean, changes)
            return
        share = samples / (before.samples + samples)
        torch.lerp(before.mean, mean.to(empty.mean.device), share, out=empty.mean)
        torch.lerp(before.changes, changes.to(empty.mean.device), share, out=empty.changes)
        self.cells[step][site] = Cell(before.samples + samples, empty.mean, empty.changes)
        self._free[site].append(before)

    def _take(self, site: int, shape: torch.Size, device: torch.device) -> Cell:
        """A cell of the site that nothing uses."""
        if not self._free[site] and all(row[site] is None for row in self.cells):
            count = len(self.cells) + 1
            means, changes = torch.zeros(count, *shape, device=device), torch.zeros(count, self._gaps, device=device)
            self._free[site] = [Cell(0, mean, change) for mean, change in zip(means, changes, strict=True)]
        return self._free[site].pop()

    def shapes(self) -> list[torch.Size | None]:
        """The shape of every site's mean; None where no step was seen yet."""
        columns = zip(*self.cells, strict=True)
        return [next((cell.mean.shape for cell in column if cell is not None), None) for column in columns]

    def merged(self, origin: Origin, world: World) -> Statistics | None:
        """The statistics of all processes; None while a site was not seen once. Every process has to call it."""
        shapes = self.shapes()
        counts = torch.tensor([[cell.samples if cell else 0 for cell in row] for row in self.cells])
        if world.size > 1:
            shapes = world.agree(shapes)
        if None in shapes:
            return None
        total = counts.clone()
        world.sum_([total])
        steps, sites = counts.shape
        means = [torch.zeros(steps, *shape) for shape in shapes if shape is not None]
        changes = torch.zeros(steps, sites, self._gaps)
        for step, row in enumerate(self.cells):
            for site, cell in enumerate(row):
                share = cell.samples / int(total[step, site]) if cell else 0.0
                if cell:
                    means[site][step], changes[step, site] = cell.mean * share, cell.changes * share
                world.sum_([means[site][step], changes[step, site]])
        return Statistics(self._sites, tuple(means), changes, inverse_table(means), total, origin)


def _filled(empty: Cell, samples: int, mean: Tensor, changes: Tensor) -> Cell:
    return Cell(samples, empty.mean.copy_(mean), empty.changes.copy_(changes))


def _changes(feature_BND: Tensor, recent: Recent, gaps: int) -> Tensor:
    """Mean over samples of |g(c) - g(c-k)|_1 / |g(c)|_1 for k = 1 ... gaps, zero before there is one; (G,) float32."""
    flat = feature_BND.flatten(1)
    wide = flat.to(torch.promote_types(flat.dtype, torch.float32))  # in bfloat16 the differences would be rounded
    norms = [(wide - old).abs_().sum(1) for old in recent]
    norms += [torch.zeros_like(wide[:, 0])] * (gaps - len(norms))
    size = wide.abs().sum(1)
    recent.push(flat)
    return (torch.stack(norms) / size.clamp_min(torch.finfo(torch.float32).tiny)).mean(1).float()
