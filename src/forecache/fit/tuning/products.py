"""How alike the features of two steps are, from one pass without a cache: their inner products, and their averages.

Every forecast is a weighted sum of features, so its squared error is a quadratic form in the products: of any
schedule, gap and order, without sampling again. What it misses on the averages is what a correction can add; what it
misses about them is the same form in the products of what differs from them.

T steps, S sites, R rows of a call, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forecache.distributed import World
from forecache.errors import StatisticsError
from forecache.fit.tuning.samples import starts
from forecache.methods.explicit import explicit
from forecache.models.find import find, grid, layout_for
from forecache.parts.forecasts import Forecast, Taylor, paid_back
from forecache.parts.grid import Grid, Site
from forecache.parts.statistics import Resolution
from forecache.runtime.observed import Observed
from forecache.sampling.sources import Condition, OnStep, Sampling, Source

Table = NDArray[np.float64]
COORDINATES = 1024
"""So many entries of each row of a feature are looked at, always the same."""


class Products:
    """Sums over samples. table: (S, T, T), inner products of every site. means: per site (T, D), the mean of every
    channel over rows and tokens. sums, counts: per site (T, D) and (D,), by channel, of the entries in the table.
    """

    def __init__(self, sites: Sequence[Site], num_steps: int) -> None:
        self.sites = tuple(sites)
        self.table: Table = np.zeros((len(sites), num_steps, num_steps))
        self.means: list[Tensor] = []
        self.sums: list[Tensor] = []
        self.counts: list[Tensor] = []

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

    @cached_property
    def spread(self) -> Table:
        """(S, T, T), inner products about the mean of every channel; to be asked for when everything is added."""
        means = [sums / counts.clamp_min(1) for sums, counts in zip(self.sums, self.counts, strict=True)]
        return self.table - np.stack([(s @ m.T).numpy() for s, m in zip(self.sums, means, strict=True)])

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

    Least squares over the samples of ``products``. order: as many features as a Taylor forecast of that order reads,
    whose weights are what is found where the samples do not tell. strength: the share of the error of the last
    estimates that is paid back on top, as in `forecasts.Feedback`; `error` is without it.

    centred: fit what differs from the averages, for estimates whose averages are corrected (`corrections.Drift`). The
    weights are then free; what cannot be foreseen makes them sum to less than one, as in any regression. Otherwise
    they sum to one, which keeps the averages about where they are.
    """

    def __init__(self, products: Products, order: int = 2, strength: float = 0.0, centred: bool = False) -> None:
        self.order, self.strength, self.centred = order, strength, centred
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
        products = (self._products.spread if self.centred else self._products.table)[:, at][:, :, at]
        # everything as a change since the newest computed feature, number 1, which itself counts if weights are free
        change: Table = np.eye(len(at))
        change[:, 1] -= 1
        change[1, 1] = float(self.centred)
        changes = change @ products @ change.T
        prior: Table = np.array([0.0, *Taylor(self.order).weights(step, past)[1:]])
        square, right = changes[:, 1:, 1:], changes[:, 1:, 0]
        ridge = (1e-6 * square + 1e-30) * np.eye(len(past))
        rest = right - square @ prior
        found = prior + np.linalg.solve(square + ridge, rest[..., None])[..., 0]
        weights = np.concatenate([1 + found[:, :1] - found[:, 1:].sum(1, keepdims=True), found[:, 1:]], 1)
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
        self._added: list[Tensor | None] = [None for _ in products.sites]
        self._chosen: dict[int, Tensor] = {}
        self._channels: dict[int, Tensor] = {}
        self._rows = 0

    def see(self, step: int, site: int, feature: Tensor) -> None:
        """A feature (R, N, D) that the model gave out."""
        rows = feature.detach().flatten(1)
        size = rows.shape[1]
        if size not in self._chosen:
            drawn = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:COORDINATES]
            self._chosen[size] = drawn.sort().values.to(rows.device)
        self._entries[site].append(rows[:, self._chosen[size]].float())
        self._channels[site] = self._chosen[size] % feature.shape[-1]
        self._means[site].append(feature.detach().flatten(0, -2).mean(0, dtype=torch.float32))

    def sampled(self) -> None:
        """The generation is complete."""
        rows = len(self._entries[0][0])
        self._rows += rows
        for site, (entries, means) in enumerate(zip(self._entries, self._means, strict=True)):
            self._products.add(site, entries)
            added, before = self._by_channel(site, rows), self._added[site]
            self._added[site] = added if before is None else before + added
            entries.clear()
            means.clear()

    def _by_channel(self, site: int, rows: int) -> Tensor:
        """(2T + 1, D): the means of all entries times rows, the sums of the chosen ones, and how many these are."""
        means = torch.stack(self._means[site]).double()
        entries = torch.stack(self._entries[site]).double().sum(1)
        channels = self._channels[site].to(entries.device)
        sums = torch.zeros_like(means).index_add_(1, channels, entries)
        counts = torch.bincount(channels, minlength=means.shape[1]).double()
        return torch.cat([rows * means, sums, rows * counts[None]]).cpu()

    def total(self, world: World) -> Products:
        """The products of all processes."""
        products = self._products
        products.table = world.totals(products.table)
        shapes = [tuple(added.shape) if added is not None else None for added in self._added]
        shapes = world.agree(shapes) if world.size > 1 else shapes
        rows = float(world.totals(np.array([float(self._rows)]))[0])
        for added, shape in zip(self._added, shapes, strict=True):
            mine = np.zeros(shape or (1, 0)) if added is None else added.numpy()
            means, sums, counts = torch.from_numpy(world.totals(mine)).tensor_split(
                [(len(mine) - 1) // 2, len(mine) - 1]
            )
            products.means.append((means / rows).float())
            products.sums.append(sums)
            products.counts.append(counts[0])
        return products
