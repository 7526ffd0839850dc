"""Running means of features: one accumulator for each step and site, whatever the number of samples.

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
    """The accumulator of one step and site.

    samples: number of samples so far.
    mean: (N, D), float32, their mean feature.
    changes: (G,), float32, their mean relative changes.
    """

    samples: int
    mean: Tensor
    changes: Tensor


class Recent:
    """The last features of one site, newest first, copied into buffers that are used again.

    They are copied because the model may write into its output, and because half of a guidance pair is not needed.
    """

    def __init__(self, gaps: int) -> None:
        self._gaps = gaps
        self._slots: list[Tensor] = []
        self._order: list[int] = []

    def __iter__(self) -> Iterator[Tensor]:
        return (self._slots[index] for index in self._order)

    def clear(self) -> None:
        """Forgets all features, at the start of a generation."""
        self._order = []

    def push(self, flat: Tensor) -> None:
        """Adds the newest feature, (B, N * D); drops the oldest one if there are as many as gaps."""
        index = self._order.pop() if len(self._order) == self._gaps else len(self._order)
        if index == len(self._slots):
            self._slots.append(torch.empty_like(flat))
        elif self._slots[index].shape != flat.shape:  # the last batch is smaller
            self._slots[index] = torch.empty_like(flat)
        self._slots[index].copy_(flat)
        self._order.insert(0, index)


class Accumulators:
    """The accumulators of a grid. A cell is replaced whole, so that an interruption leaves each one valid.

    Their memory is allocated at once, with one spare cell for each site, into which the next value is written: small
    tensors that live long, allocated between large ones that do not, would fragment the memory.

    cells: by step and site; None before the first sample.
    """

    def __init__(self, grid: Grid, gaps: int, device: str | torch.device | None) -> None:
        self._sites, self._gaps, self._device = grid.sites, gaps, device
        self.cells: list[list[Cell | None]] = [[None] * len(grid.sites) for _ in range(grid.num_steps)]
        self._free: list[list[Cell]] = [[] for _ in grid.sites]

    def continue_from(self, partial: Statistics) -> None:
        """Takes over the means of partial statistics."""
        for step, row in enumerate(self.cells):
            for site in range(len(row)):
                if count := int(partial.counts[step, site]):
                    mean = partial.means[site][step]
                    spare = self._take(site, mean.shape, torch.device(self._device or "cpu"))
                    row[site] = _filled(spare, count, mean, partial.changes[step, site])

    def add(self, step: int, site: int, feature_BND: Tensor, recent: Recent, *, samples: int) -> None:
        """Adds the feature of ``samples`` samples; it has twice the rows if both halves of a guidance pair count."""
        mean = feature_BND.mean(0, dtype=torch.float32)
        changes = _changes(feature_BND, recent, self._gaps)
        before = self.cells[step][site]
        spare = self._take(site, mean.shape, torch.device(self._device or mean.device))
        if before is None:
            self.cells[step][site] = _filled(spare, samples, mean, changes)
            return
        share = samples / (before.samples + samples)
        torch.lerp(before.mean, mean.to(spare.mean.device), share, out=spare.mean)
        torch.lerp(before.changes, changes.to(spare.mean.device), share, out=spare.changes)
        self.cells[step][site] = Cell(before.samples + samples, spare.mean, spare.changes)
        self._free[site].append(before)

    def _take(self, site: int, shape: torch.Size, device: torch.device) -> Cell:
        """An unused cell of a site."""
        if not self._free[site] and all(row[site] is None for row in self.cells):
            count = len(self.cells) + 1
            means, changes = torch.zeros(count, *shape, device=device), torch.zeros(count, self._gaps, device=device)
            self._free[site] = [Cell(0, mean, change) for mean, change in zip(means, changes, strict=True)]
        return self._free[site].pop()

    @property
    def fewest(self) -> int:
        """The samples of the cell that has fewest."""
        return min(cell.samples if cell is not None else 0 for row in self.cells for cell in row)

    def shapes(self) -> list[torch.Size | None]:
        """The shape of every site's mean; None for a site that was never called."""
        columns = zip(*self.cells, strict=True)
        return [next((cell.mean.shape for cell in column if cell is not None), None) for column in columns]

    def merged(self, origin: Origin, world: World) -> Statistics | None:
        """The statistics over all processes; None if a site was never called. A collective call of all processes."""
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


def _filled(spare: Cell, samples: int, mean: Tensor, changes: Tensor) -> Cell:
    return Cell(samples, spare.mean.copy_(mean), spare.changes.copy_(changes))


def _changes(feature_BND: Tensor, recent: Recent, gaps: int) -> Tensor:
    """(G,) float32: mean over samples of |g(c) - g(c-k)|_1 / |g(c)|_1 for k = 1 ... gaps; zero where c < k."""
    flat = feature_BND.flatten(1)
    wide = flat.to(torch.promote_types(flat.dtype, torch.float32))  # differences in bfloat16 would be rounded
    norms = [(wide - old).abs_().sum(1) for old in recent]
    norms += [torch.zeros_like(wide[:, 0])] * (gaps - len(norms))
    size = wide.abs().sum(1)
    recent.push(flat)
    return (torch.stack(norms) / size.clamp_min(torch.finfo(torch.float32).tiny)).mean(1).float()
