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
DOCUMENT = Document("forecache-gains", 2)
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
    """What errors of estimates do to the samples, measured around a run without a cache, or with a plan.

    sites: in the order of the third but last axis.
    num_steps: T.
    origin: where they come from.
    products: (B, D, T, S, R + 1), float64: what the contribution to the stream of a site at a step, made of the feature
        of r steps before, adds to a random projection of the last sample, whose mean square over directions is the
        mean square of the sample's entries.
    scale: of the images by the last samples; around a plan, the one with which its own prediction is what it measured.
    base: (T, S, R + 1), float64: the weight in the run of the feature of r steps before; 1 at r = 0 without a cache.
    offset: (B, D), float64: the projections of what the run's last samples are off those without a cache.
    """

    sites: tuple[Site, ...]
    num_steps: int
    origin: Origin
    products: Tensor
    scale: float
    base: Tensor
    offset: Tensor

    @classmethod
    def empty(cls, whole: Grid, origin: Origin, around: Plan | None = None) -> Gains:
        """The gains of no samples. around: the plan of the run, none by default."""
        shape = (origin.directions, whole.num_steps, len(whole.sites), origin.reach + 1)
        products = torch.zeros(0, *shape, dtype=torch.float64)
        offset = torch.zeros(0, origin.directions, dtype=torch.float64)
        return cls(whole.sites, whole.num_steps, origin, products, 0.0, _base(whole, origin.reach, around), offset)

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
        elif not torch.equal(self.base, other.base):
            differ.append("around")
        if differ:
            raise StatisticsError(
                f"These gains are of two measurements ({', '.join(differ)} differ): merge equal ones."
            )
        whole = self.count + other.count
        scale = (self.scale * self.count + other.scale * other.count) / whole if whole else 0.0
        if (errors := [float(one.offset.square().sum()) for one in (self, other)]) != [0.0, 0.0]:
            scale = ((self.scale**2 * errors[0] + other.scale**2 * errors[1]) / sum(errors)) ** 0.5
        origin = self.origin
        if other.origin != origin:
            origin = replace(origin, conditions=(*origin.conditions, *other.origin.conditions))
        products, offset = torch.cat([self.products, other.products]), torch.cat([self.offset, other.offset])
        return replace(self, origin=origin, products=products, scale=scale, offset=offset)

    def averaged(self, *others: Gains) -> Gains:
        """The mean of gains that were measured on the same samples around other runs.

        What gains around one run leave out has about the opposite sign around another, so that their mean predicts
        schedules between these runs better than each. Raises StatisticsError for gains of other samples.
        """
        every, count = (self, *others), 1 + len(others)
        if any((one.origin, one.sites, one.count) != (self.origin, self.sites, self.count) for one in others):
            raise StatisticsError(
                "These gains are of several measurements: average those of the same samples, directions and seed, "
                "around different runs."
            )
        scale = sum(one.scale for one in every) / count
        products = torch.stack([one.products * (one.scale / scale) for one in every]).mean(0)
        starts = torch.stack([torch.from_numpy(one.start) * (one.scale / scale) for one in every]).mean(0)
        base = torch.zeros_like(self.base)
        base[..., 0] = 1.0
        return replace(self, products=products, scale=scale, base=base, offset=starts.reshape(self.offset.shape))

    def part(self, samples: slice) -> Gains:
        """The gains of some of the samples."""
        return replace(self, products=self.products[samples], offset=self.offset[samples])

    def check_same(self, whole: Grid, origin: Origin, path: Path, around: Plan | None = None) -> None:
        """Raises StatisticsError unless a measurement of this grid and origin can be continued from the file."""
        names = [one.name for one in fields_of(Origin) if one.name != "fingerprint"]
        differ = [name for name in names if getattr(self.origin, name) != getattr(origin, name)]
        if not is_same(self.origin.fingerprint, origin.fingerprint):
            differ.append("fingerprint")
        if (self.sites, self.num_steps) != (whole.sites, whole.num_steps):
            differ.append("sites or steps")
        elif not torch.equal(self.base, _base(whole, origin.reach, around)):
            differ.append("around")
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

    @cached_property
    def start(self) -> Array:
        """(B * D,), the projections of the error that these gains expect of a run that computes everything.

        Exactly 0 around a run without a cache; around one with a plan, what is left of second order.
        """
        computed = torch.zeros_like(self.base)
        computed[..., 0] = 1.0
        return (self.offset + torch.einsum("bdtsr,tsr->bd", self.products, computed - self.base)).flatten().numpy()

    def projections(self, plan: Plan) -> Array:
        """(B * D,), the projections of the error of the samples under a plan.

        Raises PlanMismatchError for a plan with corrections or partly computed tokens, and for one whose estimates
        reach back farther than was measured.
        """
        self.check(plan.grid)
        _check_plan(plan)
        error = self.start.copy()
        whole = all(row == plan.rows[0] for row in plan.rows)
        tables = [self.pooled] if whole else list(self._by_site)
        for row, table in zip(plan.rows, tables, strict=False):
            for step, weights in estimates_in(row):
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
            start=self.start,
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
        tensors = {name: getattr(self, name).contiguous() for name in ("products", "base", "offset")}
        tensor_files.write(Path(path), DOCUMENT, values, tensors)

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
            names, steps = ("products", "base", "offset"), values["num_steps"]
            if set(tensors) != set(names) or any(one.dtype != torch.float64 for one in tensors.values()):
                raise ValueError(f"it must have the tensors {', '.join(names)}, of float64, and no other")
            products, base, offset = (tensors[name] for name in names)
            inner = (steps, len(sites), origin.reach + 1)
            if products.ndim != 5 or products.shape[1:] != (origin.directions, *inner):
                raise ValueError(
                    f"its products have the shape {tuple(products.shape)}, which does not belong to its sites"
                )
            if base.shape != inner or offset.shape != products.shape[:2]:
                raise ValueError("its base and offset do not belong to its products")
            if not (all(bool(one.isfinite().all()) for one in tensors.values()) and math.isfinite(values["scale"])):
                raise ValueError("it has numbers that are not finite")
            return cls(sites, steps, origin, products, values["scale"], base, offset)


def _check_plan(plan: Plan) -> None:
    corrects = any(cell.constants or cell.tokens is not None for row in plan.rows for cell in row)
    if corrects or plan.online is not None or plan.looks:
        raise PlanMismatchError(
            "Gains predict plans of forecasts alone: this one corrects, decides while it runs, or computes some tokens."
        )


def _base(whole: Grid, reach: int, around: Plan | None) -> Tensor:
    """The weights (T, S, R + 1) of features in a run with a plan, or without a cache.

    Raises PlanMismatchError for a plan that gains cannot predict.
    """
    base = torch.zeros(whole.num_steps, len(whole.sites), reach + 1, dtype=torch.float64)
    base[..., 0] = 1.0
    if around is not None:
        _check_plan(around)
        for site, row in enumerate(around.rows):
            for step, weights in estimates_in(row):
                base[step, site] = 0.0
                for source, weight in weights.items():
                    if weight and step - source > reach:
                        raise PlanMismatchError(
                            f"The plan's estimate of step {step} reads step {source}, and the gains are to reach back "
                            f"{reach} steps: give a larger reach."
                        )
                    if weight:
                        base[step, site, step - source] = weight
    return base


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


def estimates_in(row: Sequence[Cell]) -> list[tuple[int, dict[int, float]]]:
    """The same for a site's row of a plan."""
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
