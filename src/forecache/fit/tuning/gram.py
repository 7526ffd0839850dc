"""Gram matrices: the inner products of a site's features at different steps, from one pass without a cache.

Every forecast is a weighted sum of features, so its squared error is a quadratic form in their Gram matrix: the errors
of any schedule, gap and order follow without sampling again. A correction can add what a forecast misses on the
averages; what it misses about the averages is the same form in the Gram matrix of the centred features.

T steps, S sites, R rows of a call, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forecache.distributed import World
from forecache.errors import StatisticsError
from forecache.fit.tuning.samples import batch_starts
from forecache.methods.explicit import explicit
from forecache.models.find import find, grid, layout_for
from forecache.parts.forecasts import Forecast
from forecache.parts.grid import Grid, Site
from forecache.parts.statistics import Resolution
from forecache.runtime.plan_source import Fixed
from forecache.runtime.session import Session
from forecache.sampling.sources import Condition, OnStep, Sampling, Source

Array = NDArray[np.float64]
COORDINATES = 1024
"""Entries of each row of a feature that the inner products are taken over: a random choice, the same for all."""


@runtime_checkable
class KnowsItsError(Protocol):
    """A forecast that gives the error of its estimates itself, because it was fitted to the same features."""

    def error(self, step: int, computed: Sequence[int]) -> float:
        """The squared error of the estimate at a step, summed over all sites."""
        ...


class Gram:
    """Gram matrices of the features of every site, and the features' averages; a `parts.corrections.Averages`.

    sites: the sites, in the order of the first axis.
    matrices: (S, T, T), float64, summed over samples.
    means: per site (T, D), the mean of every channel over all rows and tokens.
    sums: per site (T, D), by channel, the sums of the entries that the inner products are taken over.
    counts: per site (D,), by channel, how many entries these are.
    """

    def __init__(self, sites: Sequence[Site], num_steps: int) -> None:
        self.sites = tuple(sites)
        self.matrices: Array = np.zeros((len(sites), num_steps, num_steps))
        self.means: list[Tensor] = []
        self.sums: list[Tensor] = []
        self.counts: list[Tensor] = []

    @property
    def num_steps(self) -> int:
        """T."""
        return self.matrices.shape[1]

    def mean(self, step: int, site: Site, per: Resolution = "channel") -> Tensor:
        """The average feature (D,) of a step and site."""
        if per != "channel":
            raise StatisticsError("A tuning measures one mean per channel; means per token are in fc.Statistics.")
        return self.means[self._index[site]][step]

    @cached_property
    def _index(self) -> dict[Site, int]:
        return {site: index for index, site in enumerate(self.sites)}

    def check(self, grid: Grid) -> None:
        """Raises StatisticsError for a grid with other steps or sites."""
        if grid.sites != self.sites or grid.num_steps != self.num_steps:
            raise StatisticsError(
                f"The averages of this tuning are of {self.num_steps} steps and {len(self.sites)} sites of its own "
                f"model; the grid has {grid.num_steps} steps and {len(grid.sites)} sites."
            )

    @cached_property
    def pooled(self) -> Array:
        """(T, T), summed over the sites. Cached: read it after the last `add`."""
        return self.matrices.sum(0)

    @cached_property
    def centred(self) -> Array:
        """(S, T, T), inner products about the mean of every channel. Cached: read it after the last `add`."""
        means = [sums / counts.clamp_min(1) for sums, counts in zip(self.sums, self.counts, strict=True)]
        return self.matrices - np.stack([(s @ m.T).numpy() for s, m in zip(self.sums, means, strict=True)])

    def add(self, site: int, features: Sequence[Tensor]) -> None:
        """Adds one batch: the same entries of a site's features at every step, each (R, coordinates)."""
        stacked = torch.stack([feature.flatten() for feature in features]).double()
        self.matrices[site] += (stacked @ stacked.T).cpu().numpy()

    def error(self, step: int, computed: Sequence[int], forecast: Forecast) -> float:
        """The squared error of the estimate at ``step`` from the steps ``computed``, newest first."""
        if isinstance(forecast, KnowsItsError):
            return forecast.error(step, computed)
        reads = forecast.reads(step, computed, self.sites[0])
        steps, weights = [step, *reads], np.array([1.0, *(-weight for weight in reads.values())])
        return max(0.0, float(weights @ self.pooled[np.ix_(steps, steps)] @ weights))

    def errors(self, pattern: str, forecast: Forecast) -> Array:
        """The squared error (T,) of the estimate at every step of a pattern; 0 at computed steps.

        The estimates of a fitted forecast are judged without its feedback, which lets the errors of different steps
        cancel and makes none of them smaller.
        """
        num_steps = len(pattern)
        outputs = np.zeros((num_steps, num_steps))  # what each step gives out, as weights of computed features
        errors = np.zeros(num_steps)
        computed: list[int] = []
        for step, sign in enumerate(pattern):
            if sign == "#":
                computed.insert(0, step)
                outputs[step, step] = 1.0
            elif isinstance(forecast, KnowsItsError):
                errors[step] = forecast.error(step, computed)
            else:
                for source, weight in forecast.reads(step, computed, self.sites[0]).items():
                    outputs[step] += weight * outputs[source]
                residual = -outputs[step]
                residual[step] += 1
                errors[step] = max(0.0, float(residual @ self.pooled @ residual))
        return errors


def measure_gram(
    source: Source,
    conditions: Sequence[Condition],
    how: Sampling,
    batch: int,
    on_step: OnStep | None = None,
    world: World = World(),  # noqa: B008 - it is frozen
    sites: Grid | None = None,
) -> tuple[Gram, Tensor]:
    """Sample without a cache: the Gram matrices of the features, and the images (B, C, H, W) in [0, 1].

    sites: a grid whose sites are measured; the model's finest by default.

    The Gram matrices are summed over all processes; the images are those that this process samples.
    """
    whole = sites or grid(source.target, how.num_steps)
    recorder = _Recorder(Gram(whole.sites, how.num_steps))
    images = []
    every_step = explicit(compute=range(how.num_steps)).plan(whole)
    layout = layout_for(find(source.target), whole)
    with Session(Fixed(every_step), [layout], watch=recorder.record) as session:
        for first in batch_starts(world, len(conditions), batch):
            session.new_run()
            images.append(source.generate(conditions[first : first + batch], how, first, on_step))
            session.check_complete()
            recorder.end_generation()
    return recorder.total(world), torch.cat(images) if images else torch.empty(0)


class _Recorder:
    """Records the features of one generation, and adds them to the Gram matrices when it is complete."""

    def __init__(self, gram: Gram) -> None:
        self._gram = gram
        self._entries: list[list[Tensor]] = [[] for _ in gram.sites]
        self._means: list[list[Tensor]] = [[] for _ in gram.sites]
        self._totals: list[Tensor | None] = [None for _ in gram.sites]
        self._coordinates: dict[int, Tensor] = {}
        self._channels: dict[int, Tensor] = {}
        self._rows = 0

    def record(self, step: int, site: int, feature: Tensor) -> None:
        """Records a feature (R, N, D) that the model computed."""
        rows = feature.detach().flatten(1)
        size = rows.shape[1]
        if size not in self._coordinates:
            drawn = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:COORDINATES]
            self._coordinates[size] = drawn.sort().values.to(rows.device)
        self._entries[site].append(rows[:, self._coordinates[size]].float())
        self._channels[site] = self._coordinates[size] % feature.shape[-1]
        self._means[site].append(feature.detach().flatten(0, -2).mean(0, dtype=torch.float32))

    def end_generation(self) -> None:
        """Adds the features of the generation to the Gram matrices, and forgets them."""
        rows = len(self._entries[0][0])
        self._rows += rows
        for site, (entries, means) in enumerate(zip(self._entries, self._means, strict=True)):
            self._gram.add(site, entries)
            totals, before = self._by_channel(site, rows), self._totals[site]
            self._totals[site] = totals if before is None else before + totals
            entries.clear()
            means.clear()

    def _by_channel(self, site: int, rows: int) -> Tensor:
        """(2T + 1, D): T means of all entries times rows, T sums of the recorded entries, their number times rows."""
        means = torch.stack(self._means[site]).double()
        entries = torch.stack(self._entries[site]).double().sum(1)
        channels = self._channels[site].to(entries.device)
        sums = torch.zeros_like(means).index_add_(1, channels, entries)
        counts = torch.bincount(channels, minlength=means.shape[1]).double()
        return torch.cat([rows * means, sums, rows * counts[None]]).cpu()

    def total(self, world: World) -> Gram:
        """The Gram matrices and averages over all processes."""
        gram = self._gram
        gram.matrices = world.totals(gram.matrices)
        shapes = [tuple(totals.shape) if totals is not None else None for totals in self._totals]
        shapes = world.agree(shapes) if world.size > 1 else shapes
        rows = float(world.totals(np.array([float(self._rows)]))[0])
        for totals, shape in zip(self._totals, shapes, strict=True):
            own = np.zeros(shape or (1, 0)) if totals is None else totals.numpy()
            means, sums, counts = torch.from_numpy(world.totals(own)).tensor_split([(len(own) - 1) // 2, len(own) - 1])
            gram.means.append((means / rows).float())
            gram.sums.append(sums)
            gram.counts.append(counts[0])
        return gram
