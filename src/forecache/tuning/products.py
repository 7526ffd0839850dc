"""How alike the features of two steps are: their inner products, from one pass without a cache.

Every forecast is a weighted sum of features, so its squared error is a quadratic form in these products: of any
schedule, gap and order, without sampling again.

T steps, S sites, R rows of a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forecache._core import Site
from forecache._distributed import World
from forecache.adapters import find, grid, layout_for
from forecache.forecasts import Forecast, Taylor, paid_back
from forecache.methods import explicit
from forecache.observed import Observed
from forecache.sources import Condition, OnStep, Sampling, Source
from forecache.tuning.samples import starts

Table = NDArray[np.float64]
COORDINATES = 1024
"""So many entries of each row of a feature are looked at, always the same."""


class Products:
    """Sums of inner products over samples. table: (S, T, T), of every site."""

    def __init__(self, sites: Sequence[Site], num_steps: int) -> None:
        self.sites = tuple(sites)
        self.table: Table = np.zeros((len(sites), num_steps, num_steps))

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
    products = Products(sites.sites, how.num_steps)
    kept: list[list[Tensor]] = [[] for _ in sites.sites]
    chosen: dict[int, Tensor] = {}

    def see(step: int, site: int, feature: Tensor) -> None:
        rows = feature.detach().flatten(1)
        size = rows.shape[1]
        if size not in chosen:
            drawn = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:COORDINATES]
            chosen[size] = drawn.sort().values.to(rows.device)
        kept[site].append(rows[:, chosen[size]].float())

    images = []
    everything = explicit(compute=range(how.num_steps)).plan(sites)
    with Observed(layout_for(find(source.target), sites), everything, see) as session:
        for first in starts(world, len(conditions), batch):
            session.new_run()
            images.append(source.generate(conditions[first : first + batch], how, first, on_step))
            session.check_complete()
            for site, features in enumerate(kept):
                products.add(site, features)
                features.clear()
    products.table = world.totals(products.table)
    return products, torch.cat(images) if images else torch.empty(0)
