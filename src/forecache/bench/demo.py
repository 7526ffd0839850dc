"""The demo: a bundled model sampled with and without a cache, with cost, latency and quality of each plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forecache.environment import environment
from forecache.errors import InputError
from forecache.evaluate import Moments, frechet_distance, psnr
from forecache.io import files
from forecache.methods.fora import fora
from forecache.methods.goc import goc
from forecache.methods.taylorseer import taylorseer
from forecache.parts.grid import Grid
from forecache.plan.cost import Cost
from forecache.plan.method import Method
from forecache.plan.plan import Plan
from forecache.runtime.apply import apply
from forecache.runtime.stats import Stats
from forecache.sampling.sources import Sampling, in_batches
from forecache.sampling.timing import Spread, alternate, timed
from forecache.zoo.bundled import DEFAULT, record
from forecache.zoo.digits import Digits

UNCACHED = "no cache"
WARM_UP = 2
"""Images of the run with which every plan is warmed up."""
TUNED = (10, 7)
"""Computed steps of the tuned plans: as many as the published methods here, and fewer."""


@dataclass(frozen=True)
class Row:
    """One row of the demo's table.

    name: of the plan.
    plan: what the images were sampled under; None for the bare model.
    cost: predicted for one image; None for the bare model.
    images: (B, C, H, W) in [0, 1].
    seconds: latency of sampling all images, in every round.
    speedup: latency without a cache over this one within a round, median over rounds.
    psnr: to the uncached images in dB, mean over images.
    frechet: distance of the judge's features to the reference.
    accuracy: share of images recognised as the class asked for.
    cache_bytes: measured peak, for one batch.
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
        """Whether the speed-up is larger than MACs explain, because something else ran on the machine."""
        return self.cost is not None and self.speedup > 1.25 * self.cost.speedup

    def figures(self) -> dict[str, Any]:
        """The row as plain data, without plan and images."""
        return {
            "name": self.name,
            "method": self.plan.provenance.get("method") if self.plan else None,
            "picture": self.plan.picture() if self.plan else None,
            "macs_per_image": self.cost.macs if self.cost else None,
            "macs_ratio": self.cost.speedup if self.cost else 1.0,
            "time_ratio": self.speedup,
            "time_rounds": len(self.seconds),
            "seconds": list(self.seconds),
            "psnr": None if math.isinf(self.psnr) else self.psnr,
            "frechet": self.frechet,
            "class_accuracy": self.accuracy,
            "cache_bytes": self.cache_bytes,
        }


def plans(grid: Grid) -> dict[str, Plan]:
    """The demo's plans by name: published methods that compute every second step, and tuned plans that ship.

    The number after GOC is eta, the number after Taylor the order.
    """
    every_second = fora(2)
    published = {
        "FORA": every_second,
        "Taylor 1": taylorseer(every_second, 1),
        "GOC 0.8": goc(every_second, 0.8),
    }
    planned = {name: method.plan(grid) for name, method in published.items()}
    tuned = {
        f"tuned, {computed} of {grid.num_steps}": Plan.load(record(DEFAULT).tuned_path(computed, grid.num_steps))
        for computed in TUNED
    }
    return planned | tuned


def compare(
    source: Digits,
    grid: Grid,
    compared: Mapping[str, Method | Plan],
    *,
    samples: int,
    guidance: float,
    seed: int,
    batch: int = 64,
    repeats: int = 1,
    on_run: Callable[[str], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    on_round: Callable[[list[Row]], None] | None = None,
) -> list[Row]:
    """Sample the same images without a cache, which is the first row, and under every plan.

    source: the bundled model. compared: plans, or methods that make them, by name. samples: images; image i has the
    label i modulo the number of classes. repeats: timed rounds, in which all plans alternate. on_run: called with the
    name of the plan that starts. on_step: called after each model call. on_round: called after each round with the rows
    over the rounds so far. Raises InputError for less than two samples.
    """
    if samples < 2:
        raise InputError(f"A comparison needs at least 2 samples; {samples} was asked for.")
    labels = [index % source.classes for index in range(samples)]
    plans: dict[str, Plan | None] = {UNCACHED: None}
    plans |= {name: made if isinstance(made, Plan) else made.plan(grid) for name, made in compared.items()}

    how = Sampling(grid.num_steps, guidance, seed)

    def generate() -> Tensor:
        return in_batches(source, labels, how, batch, on_step)

    def row(name: str, timing: _PlanTiming, bare: _PlanTiming) -> Row:
        plan, images = plans[name], timing.images
        return Row(
            name,
            plan,
            plan.cost(source.target, guidance=guidance > 1) if plan else None,
            images,
            timing.seconds,
            Spread.of_ratios(bare.seconds, timing.seconds).median,
            psnr(images, bare.images).mean().item(),
            frechet_distance(Moments.of(source.features(images)), source.reference),
            (source.recognised(images) == torch.tensor(labels)).float().mean().item(),
            timing.stats.peak_cache_bytes if timing.stats else 0,
        )

    def rows(timings: Mapping[str, _PlanTiming]) -> list[Row]:
        return [row(name, timing, timings[UNCACHED]) for name, timing in timings.items()]

    _warm_up(source, labels[:WARM_UP], how, plans)
    on_timings = None if on_round is None else lambda timings: on_round(rows(timings))
    return rows(_time_plans(source.target, generate, plans, rounds=repeats, on_plan=on_run, on_round=on_timings))


@dataclass(frozen=True)
class _PlanTiming:
    """The images and the times of one plan.

    images: (B, C, H, W), of the last round.
    seconds: latency of the run in every round.
    stats: of the session of the last round; None for the bare model.
    """

    images: Tensor
    seconds: tuple[float, ...]
    stats: Stats | None


def _warm_up(source: Digits, labels: Sequence[int], how: Sampling, plans: Mapping[str, Plan | None]) -> None:
    """Run every plan once, so that no first call is timed."""
    for plan in plans.values():
        with apply(source.target, plan) if plan is not None else nullcontext():
            source.generate(labels, how)


def _time_plans(
    target: Any,
    generate: Callable[[], Tensor],
    plans: Mapping[str, Plan | None],
    *,
    rounds: int = 1,
    on_plan: Callable[[str], None] | None = None,
    on_round: Callable[[dict[str, _PlanTiming]], None] | None = None,
) -> dict[str, _PlanTiming]:
    """Time ``generate`` under every plan, in alternating rounds.

    target: what a plan is applied to. plans: by name; None is the bare model. on_plan: called with the name of the
    plan that starts. on_round: called after each round. There is no warm-up here: see `_warm_up`.
    """
    last: dict[str, tuple[Tensor, Stats | None]] = {}

    def run(name: str) -> float:
        plan = plans[name]
        with apply(target, plan) if plan is not None else nullcontext() as session:
            images, seconds = timed(generate)
        last[name] = images, session.stats if session is not None else None
        return seconds

    def timings(seconds: Mapping[str, Sequence[float]]) -> dict[str, _PlanTiming]:
        return {name: _PlanTiming(images, tuple(seconds[name]), stats) for name, (images, stats) in last.items()}

    calls = {name: partial(run, name) for name in plans}
    on_seconds = None if on_round is None else lambda seconds: on_round(timings(seconds))
    return timings(alternate(calls, rounds, warmup=0, on_call=on_plan, on_round=on_seconds))


def best_published(rows: Sequence[Row]) -> tuple[Row, Row]:
    """The tuned plan that computes as many steps as the published methods, and the best of these by PSNR."""
    tuned = next(row for row in rows if row.name.startswith("tuned"))
    published = [row for row in rows if row.plan is not None and not row.name.startswith("tuned")]
    return tuned, max(published, key=lambda row: row.psnr)


def save(rows: Sequence[Row], path: Path, settings: Mapping[str, Any]) -> None:
    """Write the rows with settings, hardware and versions as JSON."""
    document = {
        "settings": dict(settings),
        "environment": environment(),
        "rows": [row.figures() for row in rows],
    }
    files.write_json(path, document)
