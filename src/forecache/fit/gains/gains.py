"""The numbers of a measurement of gains, their file, and the error that they predict.

B samples, D directions, T steps, S sites, R steps that an estimate reaches back.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as fields_of
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forecache.errors import PlanMismatchError, StatisticsError, StatisticsFileError
from forecache.io import tensor_files
from forecache.io.document import Document, fields, refusing
from forecache.parts.forecasts import Forecast
from forecache.parts.grid import Cell, Grid, Site
from forecache.parts.identity import is_same, scheduler_differences
from forecache.plan.plan import Plan

Array = NDArray[np.float64]
DOCUMENT = Document("forecache-gains", 1)
TYPES = {"sites": list, "num_steps": int, "scale": float, "origin": dict}
MAX_BYTES = 16 * 2**30


@dataclass(frozen=True)
class Origin:
    """Where gains come from.

    model: description of the sampled model, as in `Grid`.
    fingerprint: its fingerprint, as in `Grid`.
    scheduler: the scheduler of the runs with its settings, as in `Grid`.
    guidance: scale of classifier-free guidance.
    seed: of the noise.
    directions: random directions on every sample.
    reach: steps that an estimate may reach back.
    conditions: class labels or texts, one a sample that was asked for; `Gains.count` of them were measured.
    options: of every call of the pipeline, by name; empty for none.
    """

    model: str
    fingerprint: str
    scheduler: str
    guidance: float
    seed: int
    directions: int
    reach: int
    conditions: tuple[int | str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Gains:
    """What errors of estimates do to the samples, measured on a run without a cache.

    sites: in the order of the third but last axis.
    num_steps: T.
    origin: where they come from.
    products: (B, D, T, S, R + 1), float64: what the contribution to the stream of a site at a step, made of the feature
        of r steps before, adds to a random projection of the last sample, whose mean square over directions is the
        mean square of the sample's entries.
    scale: of the images by the last samples.
    """

    sites: tuple[Site, ...]
    num_steps: int
    origin: Origin
    products: Tensor
    scale: float

    @classmethod
    def empty(cls, whole: Grid, origin: Origin) -> Gains:
        """The gains of no samples."""
        shape = (0, origin.directions, whole.num_steps, len(whole.sites), origin.reach + 1)
        return cls(whole.sites, whole.num_steps, origin, torch.zeros(shape, dtype=torch.float64), 0.0)

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.products)

    def merged(self, other: Gains) -> Gains:
        """The gains of both; StatisticsError for those of another measurement.

        Two processes measure two lists of conditions from two seeds; what else tells where gains come from is the same.
        """
        same = ("model", "scheduler", "guidance", "directions", "reach", "options")
        differ = [name for name in same if getattr(self.origin, name) != getattr(other.origin, name)]
        if not is_same(self.origin.fingerprint, other.origin.fingerprint):
            differ.append("fingerprint")
        if (self.sites, self.num_steps) != (other.sites, other.num_steps):
            differ.append("sites or steps")
        if differ:
            raise StatisticsError(
                f"These gains are of two measurements ({', '.join(differ)} differ): merge equal ones."
            )
        whole = self.count + other.count
        scale = (self.scale * self.count + other.scale * other.count) / whole if whole else 0.0
        origin = self.origin
        if other.origin != origin:
            origin = replace(origin, conditions=(*origin.conditions, *other.origin.conditions))
        return replace(self, origin=origin, products=torch.cat([self.products, other.products]), scale=scale)

    def part(self, samples: slice) -> Gains:
        """The gains of some of the samples."""
        return replace(self, products=self.products[samples])

    def check_same(self, whole: Grid, origin: Origin, path: Path) -> None:
        """Raises StatisticsError unless a measurement of this grid and origin can be continued from the file."""
        names = [one.name for one in fields_of(Origin) if one.name != "fingerprint"]
        differ = [name for name in names if getattr(self.origin, name) != getattr(origin, name)]
        if not is_same(self.origin.fingerprint, origin.fingerprint):
            differ.append("fingerprint")
        if (self.sites, self.num_steps) != (whole.sites, whole.num_steps):
            differ.append("sites or steps")
        if differ:
            raise StatisticsError(
                f"{path} holds gains of another measurement ({', '.join(differ)} differ): write to another file, or "
                "delete it first."
            )

    def check(self, grid: Grid) -> None:
        """Raises StatisticsError for a grid with other steps, sites or another scheduler."""
        if (self.sites, self.num_steps) != (grid.sites, grid.num_steps):
            raise StatisticsError(
                f"The gains are of {self.num_steps} steps and {len(self.sites)} sites, and the plan has "
                f"{grid.num_steps} steps and {len(grid.sites)} sites: measure gains for this run."
            )
        if differences := scheduler_differences(self.origin.scheduler, grid.scheduler):
            raise StatisticsError(
                f"The gains are of another scheduler ({'; '.join(differences[:4])}): measure gains for this run."
            )

    @cached_property
    def _by_site(self) -> Array:
        """(S, T, R + 1, B * D)."""
        _, _, steps, sites, reach = self.products.shape
        return np.ascontiguousarray(self.products.permute(3, 2, 4, 0, 1).reshape(sites, steps, reach, -1).numpy())

    @cached_property
    def pooled(self) -> Array:
        """(T, R + 1, B * D), summed over the sites, for estimates with the same weights at every site."""
        return self._by_site.sum(0)

    def projections(self, plan: Plan) -> Array:
        """(B * D,), the projections of the error of the samples under a plan.

        Raises PlanMismatchError for a plan with corrections or partly computed tokens, and for one whose estimates
        reach back farther than was measured.
        """
        self.check(plan.grid)
        if any(cell.constants or cell.tokens is not None for row in plan.rows for cell in row):
            raise PlanMismatchError(
                "Gains predict plans of forecasts alone: this one corrects, or computes some tokens."
            )
        error = np.zeros(self.count * self.origin.directions)
        whole = all(row == plan.rows[0] for row in plan.rows)
        tables = [self.pooled] if whole else list(self._by_site)
        for row, table in zip(plan.rows, tables, strict=False):
            for step, weights in _estimates(row):
                error += self.change(table, step, weights)
        return error

    def change(self, table: Array, step: int, weights: Mapping[int, float]) -> Array:
        """(B * D,), the projections of the error of one estimate; table: `pooled`, or a site's. weights: by step."""
        total = -table[step, 0]
        for source, weight in weights.items():
            if weight and step - source > self.origin.reach:
                raise PlanMismatchError(
                    f"The estimate of step {step} reads step {source}, and gains were measured for {self.origin.reach} "
                    "steps back: measure them with a larger reach, or take shorter intervals."
                )
            if weight:
                total = total + weight * table[step, step - source]
        return total

    def projections_of(self, pattern: str, forecast: Forecast) -> Array:
        """(B * D,), the same for a pattern and a forecast whose weights are those of every site, without a plan."""
        return sum(
            (
                self.change(self.pooled, step, weights)
                for step, weights in estimates_of(pattern, forecast, self.sites[0])
            ),
            start=np.zeros(self.count * self.origin.directions),
        )

    def decibels(self, projections: Array) -> float:
        """The PSNR in dB of the mean squared error of the images."""
        error = float(np.square(projections).mean()) * self.scale**2
        return -10 * math.log10(max(error, 1e-10))

    def predict(self, plan: Plan) -> float:
        """The PSNR in dB, of the mean squared error of the images, that a plan will have to no cache."""
        return self.decibels(self.projections(plan))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the gains as a safetensors file, atomically."""
        values = {
            "sites": [asdict(site) for site in self.sites],
            "num_steps": self.num_steps,
            "scale": self.scale,
            "origin": asdict(self.origin) | {"conditions": list(self.origin.conditions)},
        }
        tensor_files.write(Path(path), DOCUMENT, values, {"products": self.products.contiguous()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Gains:
        """The gains of a file; raises StatisticsFileError with what is wrong."""
        with refusing(Path(path), StatisticsFileError, "file of gains", "Make it with forecache.fit.measure_gains"):
            values, tensors = tensor_files.read(Path(path), DOCUMENT, TYPES, MAX_BYTES)
            keys = {"name": str, "depth": int, "kind": str}
            sites = tuple(Site(**fields(site, keys)) for site in values["sites"])
            kinds = {"str": str, "float": float, "int": int}
            types = {one.name: kinds.get(str(one.type), list) for one in fields_of(Origin)} | {"options": dict}
            about: dict[str, Any] = fields(values["origin"], types)
            if not all(type(condition) in (int, str) for condition in about["conditions"]):
                raise ValueError("the conditions of its origin must be numbers or texts")
            origin = Origin(**{**about, "conditions": tuple(about["conditions"])})
            products, steps = tensors.get("products"), values["num_steps"]
            if set(tensors) != {"products"} or products is None or products.dtype != torch.float64:
                raise ValueError("it must have the tensor products, of float64, and no other")
            if products.ndim != 5 or products.shape[1:] != (origin.directions, steps, len(sites), origin.reach + 1):
                raise ValueError(
                    f"its products have the shape {tuple(products.shape)}, which does not belong to its sites"
                )
            if not (bool(products.isfinite().all()) and math.isfinite(values["scale"])):
                raise ValueError("it has numbers that are not finite")
            return cls(sites, steps, origin, products, values["scale"])


def estimates_of(pattern: str, forecast: Forecast, site: Site) -> list[tuple[int, dict[int, float]]]:
    """The skipped steps of a pattern, each with the weights of computed steps in its estimate."""
    emitted: dict[int, dict[int, float]] = {}
    computed: list[int] = []
    skipped = []
    for step, sign in enumerate(pattern):
        if sign == "#":
            emitted[step] = {step: 1.0}
            computed.insert(0, step)
        else:
            emitted[step] = _sum(forecast.reads(step, computed, site), emitted)
            skipped.append((step, emitted[step]))
    return skipped


def _estimates(row: Sequence[Cell]) -> list[tuple[int, dict[int, float]]]:
    emitted: dict[int, dict[int, float]] = {}
    skipped = []
    for step, cell in enumerate(row):
        if cell.computed:
            emitted[step] = {step: 1.0}
        else:
            emitted[step] = _sum(dict(cell.reads), emitted)
            skipped.append((step, emitted[step]))
    return skipped


def _sum(reads: Mapping[int, float], emitted: Mapping[int, Mapping[int, float]]) -> dict[int, float]:
    """The weights of computed steps in a sum of what steps gave out."""
    total: dict[int, float] = {}
    for source, weight in reads.items():
        for step, share in emitted[source].items():
            total[step] = total.get(step, 0.0) + weight * share
    return total
