"""The demo: the bundled model sampled with and without a cache, and what that did to cost and images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forecache.bench import timing as timing_module
from forecache.environment import environment
from forecache.errors import InputError
from forecache.evaluate import Moments, frechet_distance, psnr
from forecache.io import files
from forecache.methods.eoc import eoc
from forecache.methods.fora import fora_paper
from forecache.methods.goc import goc, goc_paper_steps
from forecache.methods.taylorseer import taylorseer
from forecache.parts.gates import god
from forecache.parts.grid import Grid
from forecache.parts.statistics import Statistics
from forecache.plan.cost import Cost
from forecache.plan.method import Method
from forecache.plan.plan import Plan
from forecache.sampling.sources import Sampling, in_batches
from forecache.zoo.digits import Digits

ETAS = (0.6, 0.8, 1.0, 1.2)
UNCACHED = "no cache"


@dataclass(frozen=True)
class Row:
    """One line of the table: a plan, what it costs for one image, what it did to all of them.

    speedup: median time of the uncached run over this one's. psnr: dB to the uncached samples, mean over images.
    frechet: distance of the classifier's features to the MNIST test set. accuracy: share of samples recognised as the
    class asked for. cache_bytes: measured peak, for one batch.
    """

    name: str
    plan: Plan | None
    cost: Cost | None
    images: Tensor
    seconds: tuple[float, ...]
    speedup: float
    psnr: float
    frechet: float
    accuracy: float
    cache_bytes: int

    @property
    def is_too_fast(self) -> bool:
        """Whether it took less time than its MACs can explain: something else ran beside the one or the other."""
        return self.cost is not None and self.speedup > 1.25 * self.cost.speedup

    def figures(self) -> dict[str, Any]:
        """The row without plan and images, for a JSON file."""
        return {
            "name": self.name,
            "method": self.plan.provenance.get("method") if self.plan else None,
            "picture": self.plan.picture() if self.plan else None,
            "macs_per_image": self.cost.macs if self.cost else None,
            "macs_ratio": self.cost.speedup if self.cost else 1.0,
            "time_ratio": self.speedup,
            "seconds": list(self.seconds),
            "psnr_db": None if math.isinf(self.psnr) else self.psnr,
            "frechet": self.frechet,
            "class_accuracy": self.accuracy,
            "cache_bytes": self.cache_bytes,
        }


def methods() -> dict[str, Method]:
    """The demo's methods, by the names of its table: the GOC paper's schedules at 20 steps, and TaylorSeer.

    The number behind GOC is its eta, the one behind Taylor the order.
    """
    half = fora_paper(50)
    gocs = {f"GOC 50 %, {eta:.1f}": goc(half, eta, steps=goc_paper_steps(50)) for eta in ETAS}
    return {
        "FORA 25 %": fora_paper(25),
        "FORA 50 %": half,
        **gocs,
        "Taylor 50 %, 1": taylorseer(half, 1),
        "Taylor 50 %, 2": taylorseer(half, 2),
    }


def calibrated(stats: Statistics) -> dict[str, Method]:
    """What calibration adds: GOC with its gate, and EOC in both forms."""
    half = fora_paper(50)
    return {
        "GOC 50 %, gate": goc(half, 0.8, gate=god(stats, gamma=0.5, threshold=0.45)),
        "EOC 50 %": eoc(half, stats, judge="all"),
        "EOC 50 %, add.": eoc(half, stats, 0.3, form="additive"),
    }


def compare(
    source: Digits,
    grid: Grid,
    chosen: Mapping[str, Method],
    *,
    samples: int,
    guidance: float,
    seed: int,
    batch: int = 64,
    repeats: int = 1,
    on_run: Callable[[str], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> list[Row]:
    """Sample the same digits under every method and without a cache; label i is i mod 10. The first row is uncached."""
    if samples < 2:
        raise InputError(f"A comparison needs at least 2 samples; {samples} was asked for.")
    labels = [index % source.classes for index in range(samples)]
    plans: dict[str, Plan | None] = {UNCACHED: None}
    plans |= {name: method.plan(grid) for name, method in chosen.items()}

    how = Sampling(grid.num_steps, guidance, seed)

    def generate() -> Tensor:
        return in_batches(source, labels, how, batch, on_step)

    source.generate(labels[:batch], Sampling(1, guidance, seed))  # warm up
    timings = timing_module.run(source.target, generate, plans, repeats=repeats, on_run=on_run)
    bare = timings[UNCACHED]
    rows = []
    for name, timing in timings.items():
        plan = plans[name]
        images = timing.images
        rows.append(
            Row(
                name,
                plan,
                plan.cost(source.target, guidance=guidance > 1) if plan else None,
                images,
                timing.seconds,
                bare.median / timing.median,
                psnr(images, bare.images).mean().item(),
                frechet_distance(Moments.of(source.features(images)), source.reference),
                (source.recognised(images) == torch.tensor(labels)).float().mean().item(),
                timing.stats.peak_cache_bytes if timing.stats else 0,
            )
        )
    return rows


def best_eta(rows: Sequence[Row]) -> tuple[Row, float]:
    """The GOC row with the highest PSNR, and by how many dB it is above FORA at the same level."""
    gocs = [row for row in rows if row.name in {f"GOC 50 %, {eta:.1f}" for eta in ETAS}]
    best = max(gocs, key=lambda row: row.psnr)
    return best, best.psnr - next(row.psnr for row in rows if row.name == "FORA 50 %")


def save(rows: Sequence[Row], path: Path, settings: Mapping[str, Any]) -> None:
    """The table's figures with settings, hardware and versions as JSON."""
    document = {
        "settings": dict(settings),
        "environment": environment(),
        "rows": [row.figures() for row in rows],
    }
    files.write_json(path, document)
