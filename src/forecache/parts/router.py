"""Routers, and the two files that hold one: our own in safetensors, and the published one, which is only read.

Our own has one tensor, ``logits`` (T, S) float32, and one document:

    {"format": "forecache-router", "version": 2, "sites": ["blocks.0.attn", ...], "skippable": [1, 3, 5],
     "provenance": {"made_by": "train_router"}}

T steps, S sites.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forecache.errors import PlanError, RouterFileError
from forecache.io import files, published_router, tensor_files
from forecache.io.document import Document, items, refusing
from forecache.io.text import short
from forecache.parts import patterns
from forecache.parts.grid import Action, Grid, Schedule, Site, size_of

DOCUMENT = Document("forecache-router", 2)
TYPES = {"sites": list, "skippable": list, "provenance": dict}
MAX_BYTES = 16 * 2**20


@dataclass(frozen=True, eq=False)
class Router:
    """A learned table of the cells that a model can skip (Learning-to-Cache, arXiv 2406.01733).

    logits: (T, S) float32, in sampling order: row 0 is the noisiest call. A cell is computed where sigmoid(logit) is
        over a threshold.
    sites: names of the sites, in order of execution.
    skippable: the calls that may skip, ascending, 1 to T - 1. Rows of other calls are untrained, and always computed.
    provenance: where the router came from, names to texts.

    Raises PlanError if these do not fit together.
    """

    logits: Tensor
    sites: tuple[str, ...]
    skippable: tuple[int, ...]
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        logits = self.logits
        if logits.dtype is not torch.float32 or logits.dim() != 2 or 0 in logits.shape:
            raise PlanError(
                f"A router's logits are float32 (steps, sites); these are {logits.dtype} {tuple(logits.shape)}."
            )
        if len(self.sites) != logits.shape[1] or len(set(self.sites)) != len(self.sites):
            raise PlanError(f"A router names each of its {logits.shape[1]} sites once; it has {len(set(self.sites))}.")
        if not all(name and name.isprintable() for name in self.sites):
            raise PlanError("The sites of a router have names that can be printed; some of these cannot.")
        if list(self.skippable) != sorted(set(self.skippable)) or not set(self.skippable) <= set(range(1, len(logits))):
            raise PlanError(
                f"The calls that a router may skip ascend from 1 to {len(logits) - 1}; they are "
                f"{list(self.skippable)[:8]}."
            )
        if not all(isinstance(text, str) for pair in self.provenance.items() for text in pair):
            raise PlanError(
                "The provenance of a router maps names to strings, so that a file can keep it; it is "
                f"{short(dict(self.provenance))}."
            )
        if not logits.isfinite().all():
            raise PlanError("The logits of a router are finite; some of these are not.")
        object.__setattr__(self, "logits", logits.detach().to("cpu", copy=True).contiguous())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Router):
            return NotImplemented
        same = (self.sites, self.skippable, self.provenance) == (other.sites, other.skippable, other.provenance)
        return same and torch.equal(self.logits, other.logits)

    def __hash__(self) -> int:
        return hash((self.sites, self.skippable))

    @property
    def num_steps(self) -> int:
        """T, the model calls of the run that the router was trained for."""
        return len(self.logits)

    @property
    def probabilities(self) -> Tensor:
        """sigmoid(logits), float64 (T, S); 1 where a call may not skip."""
        p_TS = torch.ones(self.logits.shape, dtype=torch.float64)
        rows = list(self.skippable)
        p_TS[rows] = self.logits[rows].double().sigmoid()
        return p_TS

    def skips(self, threshold: float = 0.1) -> Tensor:
        """The skipped cells, bool (T, S): those whose probability is not over the threshold."""
        if not 0 <= threshold < 1:
            raise PlanError(f"A threshold is a probability from 0 to below 1; {threshold} was asked for.")
        return self.probabilities <= threshold

    def level(self, threshold: float = 0.1) -> float:
        """The share of cells that are skipped, 0 to 1: the papers' caching level."""
        return self.skips(threshold).double().mean().item()

    def threshold_for(self, level: float) -> float:
        """The threshold whose caching level is nearest to ``level``, 0 to 1; of two as near, the lower one."""
        if not 0 <= level <= 1:
            raise PlanError(f"A caching level is a share of all cells, 0 to 1; {level} was asked for.")
        values, counts = self.probabilities[list(self.skippable)].unique(return_counts=True)
        edges = [0.0, *values.tolist(), 1.0]
        candidates = [(low + high) / 2 for low, high in pairwise(edges)]  # the k-th skips the k lowest values
        skipped = [0, *counts.cumsum(0).tolist()]
        distance = [abs(count / self.logits.numel() - level) for count in skipped]
        return min(candidates[distance.index(min(distance))], math.nextafter(1, 0))

    def schedule(self, threshold: float = 0.1) -> Schedule:
        """The schedule of this router. Sites of a kind that it was not trained on are always computed.

        The schedule raises PlanError on a grid of other steps or other sites.
        """
        skipped = dict(zip(self.sites, self.skips(threshold).T.tolist(), strict=True))
        names, kinds = frozenset(self.sites), {_kind(name) for name in self.sites}

        def schedule(step: int, site: Site, grid: Grid) -> Action:
            if grid.num_steps != self.num_steps:
                raise PlanError(
                    f"The router was trained for {self.num_steps} steps, the run has {grid.num_steps}: sample with "
                    f"{self.num_steps} steps, or train a router for {grid.num_steps}."
                )
            unknown = site.name not in names and _kind(site.name) in kinds
            if unknown or not names <= {other.name for other in grid.sites}:
                raise PlanError(
                    f"The router was trained for {len(names)} sites ({self.sites[0]} to {self.sites[-1]}), the grid "
                    f"has {len(grid.sites)} ({grid.sites[0].name} to {grid.sites[-1].name}): use it with the model "
                    "that it was trained on, or train a router for this one."
                )
            row = skipped.get(site.name)
            return Action.SKIP if row is not None and row[step] else Action.COMPUTE

        return schedule

    def skipped_by_kind(self, threshold: float = 0.1) -> dict[str, tuple[int, ...]]:
        """The number of sites of each kind that every call skips: ``{"attn": (0, 28, ...), "mlp": (0, 28, ...)}``."""
        skips_TS = self.skips(threshold)
        kinds = [_kind(name) for name in self.sites]
        return {
            kind: tuple(skips_TS[:, [other == kind for other in kinds]].sum(1).tolist())
            for kind in dict.fromkeys(kinds)
        }

    def picture(self, threshold: float = 0.1) -> str:
        """The distinct rows as lines of signs, the most frequent first."""
        return patterns.distinct(self._lines(threshold))

    def show(self, threshold: float = 0.1) -> str:
        """The whole router as text: one line a site, one sign a step."""
        width = max(map(len, self.sites))
        title = (
            f"{self.provenance.get('made_by', 'router')}: {size_of(self.num_steps, self.sites)}, "
            f"{self.level(threshold):.1%} skipped at threshold {threshold:g}"
        )
        lines = [f"{name:<{width}}  {line}" for name, line in zip(self.sites, self._lines(threshold), strict=True)]
        return "\n".join([title, *lines, patterns.legend("#.")])

    def _lines(self, threshold: float) -> list[str]:
        return ["".join(".#"[not skip] for skip in row) for row in self.skips(threshold).T.tolist()]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the router as a safetensors file, atomically; missing folders are made."""
        values = {
            "sites": list(self.sites),
            "skippable": list(self.skippable),
            "provenance": dict(self.provenance),
        }
        tensor_files.write(Path(path), DOCUMENT, values, {"logits": self.logits})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Router:
        """The router of a file of our own form; raises RouterFileError with what is wrong and where."""
        with refusing(Path(path), RouterFileError, "router file", "Make it again with Router.save"):
            return _decode(*tensor_files.read(Path(path), DOCUMENT, TYPES, MAX_BYTES))

    @classmethod
    def from_published(cls, path: str | os.PathLike[str]) -> Router:
        """The router of a ``.pt`` file as the authors of Learning-to-Cache publish it; nothing in it is executed.

        Respaced timestep i becomes call T - 1 - i; logit 2 l is ``blocks.l.attn``, 2 l + 1 ``blocks.l.mlp``. Only odd
        calls may skip: the other rows were never trained.
        Raises RouterFileError for a file that is damaged or holds anything but tensors and the training's settings.
        """
        with refusing(Path(path), RouterFileError, "published router", "Download it again"):
            logits_TS, provenance = published_router.read(Path(path))
            sites = tuple(f"blocks.{index // 2}.{('attn', 'mlp')[index % 2]}" for index in range(logits_TS.shape[1]))
            return cls(logits_TS, sites, tuple(range(1, len(logits_TS), 2)), provenance)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Router:
        """The router of a file of either form."""
        return cls.from_published(path) if _is_archive(Path(path)) else cls.load(path)


def is_router(path: Path) -> bool:
    """Whether a file says that it is a router of our own form; False for one that cannot be read."""
    try:
        document = tensor_files.read_document(path, MAX_BYTES)
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("format") == DOCUMENT.format


def _is_archive(path: Path) -> bool:
    """Whether the file is a .pt file of torch, a zip archive; False for one that cannot be read."""
    try:
        with files.opened(path) as file:
            return file.read(4) == b"PK\x03\x04"
    except (OSError, ValueError):
        return False


def _decode(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Router:
    """The router of a file's values and tensors, each of which is checked."""
    if set(tensors) != {"logits"}:
        raise ValueError(f"it must hold the tensor 'logits' alone, not {short(sorted(tensors))}")
    sites = items(values["sites"], "sites", str)
    skippable = items(values["skippable"], "skippable", int)
    return Router(tensors["logits"], sites, skippable, values["provenance"])


def _kind(name: str) -> str:
    return name.rsplit(".", 1)[-1]
