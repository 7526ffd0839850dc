"""How alike the features of two steps are, from one pass without a cache: their inner products, and their averages.

Every forecast is a weighted sum of features, so its squared error is a quadratic form in the products: of any
schedule, gap and order, without sampling again. What it misses on the averages is what a correction can add.

T steps, S sites, R rows of a call, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forecache._core import Grid, Site
from forecache._distributed import World
from forecache._errors import StatisticsError
from forecache.adapters import find, grid, layout_for
from forecache.forecasts import Forecast, Taylor, paid_back
from forecache.methods import explicit
from forecache.observed import Observed
from forecache.sources import Condition, OnStep, Sampling, Source
from forecache.statistics import Resolution
from forecache.tuning.samples import starts

Table = NDArray[np.float64]
COORDINATES = 1024
"""So many entries of each row of a feature are looked at, always the same."""


class Products:
    """Sums over samples. table: (S, T, T), inner products of every site. means: per site (T, D), the mean of every
    channel over rows and tokens.
    """

    def __init__(self, sites: Sequence[Site], num_steps: int) -> None:
        self.sites = tuple(sites)
        self.table: Table = np.zeros((len(sites), num_steps, num_steps))
        self.means: list[Tensor] = []

    def mean(self, step: int, site: Site, per: Resolution = "channel") -> Tensor:
        """The average feature (D,), as corrections ask for it (`corrections.Averages`)."""
        if per != "channel":
            raise StatisticsError("A tuning keeps one mean per channel.")
        return self.means[self._index[site]][step]

    @cached_property
    def _index(self) -> dict[Site, int]:
        return {site: index for index, site in enumerate(self.sites)}

    def check(self, grid: Grid) -> None:
        """Raises StatisticsError for a grid of other steps or sites."""
        if grid.sites != self.sites or grid.num_steps != self.table.shape[1]:
            raise StatisticsError("The averages of a tuning fit its own model and steps alone.")

    @cached_property
    def pooled(self) -> Table:
        """(T, T), summed over the sites; to be asked for when everything is added."""
        return self.table.sum(0)

    def add(self, site: int, features: Sequence[Tensor]) -> None:
        """The same entries of a site's features at every step, each (R, coordinates)."""
        together = torch.stack([feature.flatten() for feature in features]).double()
        self.table[site] += (together @ together.T).cpu().numpy()

    def error(self, step: int, past: Sequence[int], forecast: Forecast) -> float:
        """The squared error of the estimate at a step, read from these computed ones."""
        if isinstance(forecast, Fitted):
            return forecast.error(step, past)
        reads = forecast.reads(step, past, self.sites[0])
        at, weights = [step, *reads], np.array([1.0, *(-weight for weight in reads.values())])
        return max(0.0, float(weights @ self.pooled[np.ix_(at, at)] @ weights))

    def errors(self, pattern: str, forecast: Forecast) -> Table:
        """The squared error (T,) of the estimate at every step of a pattern; 0 where it is computed."""
        steps = len(pattern)
        given = np.zeros((steps, steps))  # what a step gives out, as weights of computed features
        found = np.zeros(steps)
        computed: list[int] = []
        for step, sign in enumerate(pattern):
            if sign == "#":
                computed.insert(0, step)
                given[step, step] = 1.0
            elif isinstance(
                forecast, Fitted
            ):  # without the feedback, which lets errors cancel and does not shrink them
                found[step] = forecast.error(step, computed)
            else:
                for source, weight in forecast.reads(step, computed, self.sites[0]).items():
                    given[step] += weight * given[source]
                missed = -given[step]
                missed[step] += 1
                found[step] = max(0.0, float(missed @ self.pooled @ missed))
        return found


class Fitted:
    """The weights of the last computed features that come closest to the feature, site by site and step by step (ours).

    Least squares over the samples of ``products``, with weights that sum to one. order: as many features as a Taylor
    forecast of that order reads, whose weights are what is found where the samples do not tell. strength: the share of
    the error of the last estimates that is paid back on top, as in `forecasts.Feedback`; `error` is without it.
    """

    def __init__(self, products: Products, order: int = 2, strength: float = 0.0) -> None:
        self.order, self.strength = order, strength
        self._products = products
        self._index = {site: index for index, site in enumerate(products.sites)}
        self._known: dict[tuple[int, tuple[int, ...]], tuple[Table, float]] = {}

    def reads(self, step: int, computed: Sequence[int], site: Site) -> Mapping[int, float]:
        past = tuple(computed[: self.order + 1])
        weights, _ = self._solved(step, past)
        reads = dict(zip(past, weights[self._index[site]].tolist(), strict=True))
        return paid_back(reads, computed, self.strength) if self.strength else reads

    def error(self, step: int, computed: Sequence[int]) -> float:
        """The squared error that is left, all sites together."""
        return self._solved(step, tuple(computed[: self.order + 1]))[1]

    def _solved(self, step: int, past: tuple[int, ...]) -> tuple[Table, float]:
        """Weights (S, len(past)) and error of an estimate."""
        if (step, past) not in self._known:
            self._known[step, past] = self._solve(step, past)
        return self._known[step, past]

    def _solve(self, step: int, past: tuple[int, ...]) -> tuple[Table, float]:
        at = [step, *past]
        products = self._products.table[:, at][:, :, at]
        # as weights sum to one, everything is a change since the newest computed feature, number 1
        changes = products - products[:, 1:2, :] - products[:, :, 1:2] + products[:, 1:2, 1:2]
        prior = np.array(Taylor(self.order).weights(step, past))[1:]
        square, right = changes[:, 2:, 2:], changes[:, 2:, 0]
        size = len(past) - 1
        rest = right - square @ prior
        ridge = 1e-6 * np.trace(square, axis1=1, axis2=2)[:, None, None] + 1e-30
        older = prior + np.linalg.solve(square + ridge * np.eye(size), rest[..., None])[..., 0]
        weights = np.concatenate([1 - older.sum(1, keepdims=True), older], 1)
        missed = np.concatenate([np.ones((len(weights), 1)), -weights], 1)
        return weights, max(0.0, float(np.einsum("si,sij,sj->", missed, products, missed)))


def observe(
    source: Source,
    conditions: Sequence[Condition],
    how: Sampling,
    batch: int,
    on_step: OnStep | None = None,
    world: World = World(),  # noqa: B008 - it is frozen
) -> tuple[Products, Tensor]:
    """Sample without a cache: the products of the features, and the images (B, C, H, W) in [0, 1].

    Products are of all processes, images those that this one makes.
    """
    sites = grid(source.target, how.num_steps)
    watch = _Watch(Products(sites.sites, how.num_steps))
    images = []
    everything = explicit(compute=range(how.num_steps)).plan(sites)
    with Observed(layout_for(find(source.target), sites), everything, watch.see) as session:
        for first in starts(world, len(conditions), batch):
            session.new_run()
            images.append(source.generate(conditions[first : first + batch], how, first, on_step))
            session.check_complete()
            watch.sampled()
    return watch.total(world), torch.cat(images) if images else torch.empty(0)


class _Watch:
    """What is kept of the features of a generation, and added up when it is over."""

    def __init__(self, products: Products) -> None:
        self._products = products
        self._entries: list[list[Tensor]] = [[] for _ in products.sites]
        self._means: list[list[Tensor]] = [[] for _ in products.sites]
        self._sums: list[Tensor | None] = [None for _ in products.sites]
        self._chosen: dict[int, Tensor] = {}
        self._rows = 0

    def see(self, step: int, site: int, feature: Tensor) -> None:
        """A feature (R, N, D) that the model gave out."""
        rows = feature.detach().flatten(1)
        size = rows.shape[1]
        if size not in self._chosen:
            drawn = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:COORDINATES]
            self._chosen[size] = drawn.sort().values.to(rows.device)
        self._entries[site].append(rows[:, self._chosen[size]].float())
        self._means[site].append(feature.detach().flatten(0, -2).mean(0, dtype=torch.float32))

    def sampled(self) -> None:
        """The generation is complete."""
        rows = len(self._entries[0][0])
        self._rows += rows
        for site, (entries, means) in enumerate(zip(self._entries, self._means, strict=True)):
            self._products.add(site, entries)
            sums, before = rows * torch.stack(means).double().cpu(), self._sums[site]
            self._sums[site] = sums if before is None else before + sums
            entries.clear()
            means.clear()

    def total(self, world: World) -> Products:
        """The products of all processes."""
        products = self._products
        products.table = world.totals(products.table)
        shapes = [tuple(sums.shape) if sums is not None else None for sums in self._sums]
        shapes = world.agree(shapes) if world.size > 1 else shapes
        rows = float(world.totals(np.array([float(self._rows)]))[0])
        for sums, shape in zip(self._sums, shapes, strict=True):
            mine = np.zeros(shape or (0,)) if sums is None else sums.numpy()
            products.means.append(torch.from_numpy(world.totals(mine) / rows).float())
        return products
