"""Statistics of a model's features: their means, and how fast they change. Measured by `calibrate`, kept in a file.

T steps, S sites, N tokens, D width, G gaps.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as fields_of
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from forecache.errors import StatisticsError, StatisticsFileError
from forecache.io import tensor_files
from forecache.io.document import Document, fields, refusing
from forecache.parts.grid import Grid, Site
from forecache.parts.identity import is_same, scheduler_differences
from forecache.parts.signals import Signals
from forecache.parts.signals import check as check_signals

DOCUMENT = Document("forecache-statistics", 3)
BEFORE = Document("forecache-statistics", 2)
"""The version before, which has no signals and is read as well."""
TYPES = {"sites": list, "origin": dict}
MAX_BYTES = 64 * 2**30
Resolution = Literal["token", "channel"]


@dataclass(frozen=True)
class Origin:
    """Where statistics come from.

    model: description of the sampled model, as in `Grid`.
    fingerprint: its fingerprint, as in `Grid`.
    scheduler: the scheduler of the runs with its settings, as in `Grid`.
    guidance: scale of classifier-free guidance.
    seed: of the noise.
    shared_noise: whether every sample started from the same noise.
    rows: which rows of a guidance pair were measured.
    batch: samples of one model call.
    conditions: class labels or texts, one a sample that was asked for; `Statistics.count` of them were measured.
    forecache: version that measured.
    options: of every call of the pipeline, and a dtype that is not float32, by name; empty for none.
    """

    model: str
    fingerprint: str
    scheduler: str
    guidance: float
    seed: int
    shared_noise: bool
    rows: str
    batch: int
    conditions: tuple[int | str, ...]
    forecache: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The origin as plain data; without options if there are none."""
        values = asdict(self)
        if not self.options:
            del values["options"]
        return values


@dataclass(frozen=True, eq=False)
class Statistics:
    """A model's average features A(step, site) and their changes, over many samples without a cache.

    sites: in order of execution.
    means: one tensor a site, (T, N, D), or (T, 1, D) with one mean per channel; the average over samples.
    changes: (T, S, G) float32, the mean over samples of ``|g(c) - g(c-k)|_1 / |g(c)|_1`` at [c, s, k-1]; zero where
        c < k (SmoothCache, arXiv 2411.10510).
    inverse: (T, S) bool, whether the last change of the averages points the wrong way (`inverse_gradient`).
    counts: (T, S) int64, samples of each cell.
    origin: where they come from.
    signals: of the first samples, for rules that decide while a plan runs; None in files of before.
    """

    sites: tuple[Site, ...]
    means: tuple[Tensor, ...]
    changes: Tensor
    inverse: Tensor
    counts: Tensor
    origin: Origin
    signals: Signals | None = None

    @property
    def num_steps(self) -> int:
        """T, the model calls of a run."""
        return len(self.changes)

    @property
    def count(self) -> int:
        """The number of complete samples."""
        return int(self.counts.min())

    @property
    def is_partial(self) -> bool:
        """Whether the measurement was interrupted before the last condition."""
        return self.count < len(self.origin.conditions)

    @property
    def resolution(self) -> Resolution:
        """``token`` with a mean for every token and channel, ``channel`` with a mean for every channel."""
        return "channel" if all(mean.shape[1] == 1 for mean in self.means) else "token"

    @property
    def nbytes(self) -> int:
        """Bytes of the means."""
        return sum(mean.nbytes for mean in self.means)

    @property
    def inverse_shares(self) -> tuple[float, ...]:
        """N of every step (GOC, Eq. 7): the share of sites whose gradient is inverse there. 0 at steps 0 and 1."""
        return self._shares

    @property
    def inverse_counts(self) -> tuple[int, ...]:
        """N of every step as GOC's paper counts it: the blocks of which at least one site has an inverse gradient."""
        depths = sorted({site.depth for site in self.sites})
        blocks = [[index for index, site in enumerate(self.sites) if site.depth == depth] for depth in depths]
        return tuple(sum(bool(row[block].any()) for block in blocks) for row in self.inverse)

    @property
    def mean_changes(self) -> tuple[float, ...]:
        """The change of every step since the one before, relative, the mean over sites. 0 at step 0."""
        return tuple(self.changes[:, :, 0].double().mean(1).tolist())

    @cached_property
    def _shares(self) -> tuple[float, ...]:
        return tuple(self.inverse.double().mean(1).tolist())

    def known_signals(self) -> Signals:
        """The signals; StatisticsError where they were not measured."""
        if self.signals is None:
            raise StatisticsError(
                "These statistics have no signals for rules that decide while a plan runs, because they are of an "
                "older version or of a model whose calls do not show them: calibrate again, into another file."
            )
        return self.signals

    def mean(self, step: int, site: Site, per: Resolution = "token") -> Tensor:
        """A(step, site), float32: (N, D) per token, or (D,) per channel, the mean over tokens."""
        mean_ND = self.means[self._index[site]][step].float()
        if per == "channel":
            return mean_ND.mean(0)
        if self.resolution == "channel":
            raise StatisticsError(
                "These statistics keep one mean per channel, and a mean per token was asked for: use per='channel', or "
                "calibrate again with --keep full or half."
            )
        return mean_ND

    @cached_property
    def _index(self) -> dict[Site, int]:
        return {site: index for index, site in enumerate(self.sites)}

    def check(self, grid: Grid) -> None:
        """Raises StatisticsError, with what differs, for a grid of another model, scheduler or number of steps, and if
        a step was not measured at all.
        """
        reason = None
        if self.num_steps != grid.num_steps:
            reason = f"{self.num_steps} steps, and the plan is for {grid.num_steps}"
        elif self.sites != grid.sites or not is_same(self.origin.fingerprint, grid.fingerprint):
            weights = " with other weights" if self.sites == grid.sites else f" with {_described(self.sites)}"
            reason = f"a {self.origin.model}{weights}, and the plan is for {grid.model or 'a model'}"
            reason += f" with {_described(grid.sites)}" if self.sites != grid.sites else ""
        elif differences := scheduler_differences(self.origin.scheduler, grid.scheduler):
            reason = f"another scheduler ({'; '.join(differences[:4])})"
        if reason:
            raise StatisticsError(
                f"The statistics are of {reason}: calibrate for this run with forecache.calibrate, at the plan's level."
            )
        if self.count == 0:
            raise StatisticsError(
                "The statistics were interrupted before every step was measured once: calibrate again with the same "
                "path, which continues them."
            )

    def compact(self, dtype: torch.dtype = torch.float16, per: Resolution = "channel") -> Statistics:
        """Smaller statistics: means in ``dtype``, and by default one per channel, smaller by the number of tokens.

        Changes and gradients stay as they were measured. Raises StatisticsError if a mean is too large for ``dtype``.
        """
        means = [mean.float().mean(1, keepdim=True) if per == "channel" else mean for mean in self.means]
        smaller = tuple(mean.to(dtype) for mean in means)
        if not all(bool(mean.isfinite().all()) for mean in smaller):
            raise StatisticsError(f"Some means are too large for {dtype}: keep them in float32 or bfloat16.")
        return replace(self, means=smaller)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the statistics as a safetensors file, atomically; missing folders are made."""
        tensors = {f"means.{index}": mean for index, mean in enumerate(self.means)}
        tensors |= {"changes": self.changes, "inverse": self.inverse, "counts": self.counts}
        sites = [asdict(site) for site in self.sites]
        values = {"sites": sites, "origin": self.origin.document(), "signals": {}}
        if self.signals is not None:
            values["signals"] = {"power": self.signals.power}
            tensors |= {f"signals.{name}": table for name, table in self.signals.tables.items()}
        tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        tensor_files.write(Path(path), DOCUMENT, values, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """The statistics of a file; raises StatisticsFileError with what is wrong."""
        advice = "Make it with forecache.calibrate"
        with refusing(Path(path), StatisticsFileError, "statistics file", advice):
            document = tensor_files.read_document(Path(path), MAX_BYTES)
            is_older = isinstance(document, dict) and document == {**document, **BEFORE.wrap({})}
            types = TYPES if is_older else TYPES | {"signals": dict}
            values, tensors = tensor_files.read(Path(path), BEFORE if is_older else DOCUMENT, types, MAX_BYTES)
            sites, origin = _decode(values)
            own = {name: tensors.pop(name) for name in list(tensors) if name.startswith("signals.")}
            means, changes, inverse, counts = _tensors(tensors, sites)
            signals = _signals(values.get("signals", {}), own, len(counts))
            return cls(sites, means, changes, inverse, counts, origin, signals)


def _described(sites: Sequence[Site]) -> str:
    return f"{len(sites)} site{'s' * (len(sites) != 1)} ({sites[0].name}{', ...' * (len(sites) > 1)})"


def inverse_gradient(before: Tensor, last: Tensor, truth: Tensor) -> bool:
    """Whether no eta > 0 brings ``last + eta * (last - before)`` closer to ``truth`` than ``last`` (GOC, Eq. 7).

    The three are averages at consecutive steps, of one shape. The distance, the sum of absolute values, is convex in
    eta, so that its slope at 0 decides: with r = truth - last and d = last - before, some eta helps if and only if the
    sum of sign(r) * d where r != 0 exceeds the sum of \\|d\\| where r = 0.
    """
    r, d = truth.double() - last.double(), last.double() - before.double()
    return bool((r.sign() * d).sum() <= d[r == 0].abs().sum())


def inverse_table(means: Sequence[Tensor]) -> Tensor:
    """(T, S) bool: `inverse_gradient` at every step from 2 on, of means (T, N, D) per site."""
    table = torch.zeros(len(means[0]), len(means), dtype=torch.bool)
    for site, mean_TND in enumerate(means):
        for step in range(2, len(mean_TND)):
            table[step, site] = inverse_gradient(*mean_TND[step - 2 : step + 1])
    return table


def _decode(values: Mapping[str, Any]) -> tuple[tuple[Site, ...], Origin]:
    """The sites and the origin of a file, of which every key and value is checked."""
    keys = {"name": str, "depth": int, "kind": str}
    sites = Grid(1, tuple(Site(**fields(site, keys)) for site in values["sites"])).sites
    kinds = {"str": str, "float": float, "int": int, "bool": bool}
    types = {one.name: kinds.get(str(one.type), list) for one in fields_of(Origin)} | {"options": dict}
    origin = fields({"options": {}, **values["origin"]}, types)
    if not all(type(condition) in (int, str) for condition in origin["conditions"]):
        raise ValueError("the conditions of its origin must be numbers or texts")
    origin["conditions"] = tuple(origin["conditions"])
    return sites, Origin(**origin)


def _signals(values: Mapping[str, Any], tensors: Mapping[str, Tensor], steps: int) -> Signals | None:
    """The signals of a file; None where it has none."""
    tables = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    if not values and not tables:
        return None
    power = fields(dict(values), {"power": float})["power"]
    check_signals(tables, steps)
    if not 0 < power < 100:
        raise ValueError(f"the power of its signals must be over 0, not {power!r}")
    return Signals(tables, power)


def _tensors(tensors: dict[str, Tensor], sites: Sequence[Site]) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
    """Means, changes, inverse and counts of a file: finite, and of shapes that belong together."""
    names = [f"means.{index}" for index in range(len(sites))]
    if set(tensors) != {*names, "changes", "inverse", "counts"}:
        raise ValueError(f"it has tensors for other sites than its {len(sites)}")
    means = tuple(tensors[name] for name in names)
    changes, inverse, counts = (tensors[name] for name in ("changes", "inverse", "counts"))
    table = counts.shape
    steps = table[0] if counts.ndim == 2 else 0
    right = (
        table == (steps, len(sites))
        and steps > 0
        and inverse.shape == table
        and changes.shape[:2] == table
        and changes.ndim == 3
        and all(mean.ndim == 3 and len(mean) == steps and mean.numel() > 0 for mean in means)
        and (changes.dtype, inverse.dtype, counts.dtype) == (torch.float32, torch.bool, torch.int64)
        and all(mean.dtype in (torch.float32, torch.float16, torch.bfloat16) for mean in means)
    )
    if not right:
        raise ValueError("its tensors have shapes or dtypes that do not belong together")
    if not all(bool(tensor.isfinite().all()) for tensor in (*means, changes)):
        raise ValueError("it has numbers that are not finite")
    if int(counts.min()) < 0:
        raise ValueError("it has a negative count")
    return means, changes, inverse.view(torch.uint8) != 0, counts  # a byte of 55 is true, and counts as one
