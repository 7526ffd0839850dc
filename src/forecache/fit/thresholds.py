"""Thresholds of rules that decide while a plan runs: for so many computed steps, for a speed-up, for a quality."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from forecache.errors import InputError, PlanError
from forecache.evaluate import psnr as psnr_of
from forecache.fit.replayed import computed_counts
from forecache.methods import registry
from forecache.methods.ingredients import statistics_of
from forecache.parts.bounds import Decision
from forecache.parts.grid import Action, Grid
from forecache.parts.statistics import Statistics
from forecache.plan.method import Method
from forecache.plan.online import known_decisions
from forecache.plan.recipe import Recipe
from forecache.runtime.apply import apply
from forecache.sampling import sources
from forecache.sampling.costs import first_model

TRIES, REPLAYS = 12, 40
"""Thresholds that are tried by sampling, and in recorded runs."""
CEILING = 100.0
"""PSNR of equal images, dB, in a mean."""


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it came to.

    method: the method with it
    threshold: the threshold
    computed: mean number of computed steps with it over the samples
    spread: the fewest and the most computed steps of a batch
    speedup: mean of the MACs without a cache over those of what was decided; by statistics, of the steps of a run over
        those that were computed
    psnr: mean PSNR to the samples without a cache, dB; None where it was not asked for
    """

    method: Method
    threshold: float
    computed: float
    spread: tuple[int, int]
    speedup: float
    psnr: float | None = None


@dataclass(frozen=True)
class _Wanted:
    """What a threshold is for, one of three."""

    computed: float | None
    speedup: float | None
    psnr: float | None

    def check(self, num_steps: int) -> None:
        values = (self.computed, self.speedup, self.psnr)
        if sum(value is not None for value in values) != 1:
            raise PlanError(
                "A threshold is for one of three: give computed=, a mean number of steps, or speedup=, or psnr=, in dB."
            )
        if self.computed is not None and not 1 <= self.computed <= num_steps:
            raise PlanError(f"computed= is a mean number of steps from 1 to {num_steps}; {self.computed!r} was given.")
        if self.speedup is not None and not 1 <= self.speedup <= num_steps:
            raise PlanError(f"speedup= lies between 1 and the {num_steps} steps of a run; {self.speedup!r} was given.")
        if self.psnr is not None and not 0 < self.psnr < CEILING:
            raise PlanError(f"psnr= lies between 0 and {CEILING:g} dB; {self.psnr!r} was given.")

    def excess(self, found: Threshold) -> float:
        """How much more is computed than is wanted, over 0, or less, below it; 0 for exactly that."""
        if self.computed is not None:
            return found.computed - self.computed
        if self.speedup is not None:
            return self.speedup - found.speedup
        assert self.psnr is not None
        return (found.psnr or 0.0) - self.psnr

    def better(self, found: Threshold, best: Threshold) -> bool:
        own, other = self.excess(found), self.excess(best)
        if self.psnr is None:
            return abs(own) < abs(other)
        if own >= 0 and other >= 0:  # both keep it
            return found.threshold > best.threshold
        return own > other


def threshold_for(
    method: Method,
    source: Statistics | str | os.PathLike[str] | Any,
    conditions: Sequence[sources.Condition] | None = None,
    *,
    computed: float | None = None,
    speedup: float | None = None,
    psnr: float | None = None,
    num_steps: int | None = None,
    guidance: float = 1.5,
    seed: int = 0,
    batch: int = 1,
    tries: int | None = None,
) -> Threshold:
    """The threshold with which a method computes so many steps, or is so fast, or comes at least so near.

    method: a registered method on a base that decides while it runs, such as `forecache.easycache`; its threshold is
        where the search starts, its bounds stay
    source: the statistics of `forecache.calibrate`, or their file: the rule is replayed on their recorded runs, without
        sampling, and what the cache does to a run is left out. Or what is sampled from, a DiTPipeline, a text-to-image
        pipeline, a bundled model, or any `forecache.sampling.sources.Source`: each try samples all conditions
    conditions: class labels or texts, one a sample, to sample; none with statistics
    computed: mean number of computed steps that is wanted, from 1 to the steps of a run
    speedup: that is wanted: in MACs where it is sampled, and by statistics in computed steps, as if skipping were free
    psnr: mean PSNR to the samples without a cache that is wanted at least, dB; statistics cannot tell it
    num_steps, guidance, seed: of the samples, as for `forecache.calibrate`
    batch: samples that decide together, 1 by default
    tries: thresholds that are tried: 12 by default, in recorded runs 40

    One of computed, speedup and psnr is given. The nearest of the tried thresholds is the result, for psnr the largest
    that keeps it, or the smallest where none does. Raises PlanError for a method without a threshold to look for, and
    StatisticsError for a rule that statistics cannot tell.
    """
    recipe = method.recipe
    if recipe is None or method.decider is None or _threshold_of(recipe) is None:
        raise PlanError(
            f"{method.name} has no threshold to look for: give a registered method that decides while it runs, such as "
            "forecache.easycache(0.1)."
        )
    wanted, start = _Wanted(computed, speedup, psnr), _threshold_of(recipe) or 0.1
    if isinstance(source, Statistics | str | os.PathLike):
        stats = statistics_of(source)
        if conditions is not None or psnr is not None:
            what = "psnr=" if psnr is not None else "conditions"
            raise InputError(
                f"Statistics are of samples that were taken, and {what} needs new ones: give the model or the pipeline "
                "in their place."
            )
        wanted.check(stats.num_steps)
        return _search(lambda own: _replayed(recipe, own, stats), wanted, start, tries or REPLAYS)
    opened = sources.as_source(source)
    labels = sources.check_conditions(opened, conditions or ())
    if not labels or batch < 1 or (tries is not None and tries < 1) or num_steps is None:
        raise InputError(
            "A threshold is found by sampling with conditions, num_steps, and a batch and tries from 1 on; these are "
            f"{len(labels)} conditions, num_steps={num_steps}, batch={batch} and tries={tries or TRIES}."
        )
    wanted.check(num_steps)
    how = sources.Sampling(num_steps, guidance, seed)
    firsts = range(0, len(labels), batch)
    bare = [opened.generate(list(labels[first : first + batch]), how, first) for first in firsts] if psnr else None

    def tried(own: float) -> Threshold:
        return _sampled(recipe, own, opened, labels, how, batch, bare)

    return _search(tried, wanted, start, tries or TRIES)


def _replayed(recipe: Recipe, threshold: float, stats: Statistics) -> Threshold:
    """A threshold in the recorded runs of statistics."""
    method = registry.build(_with_threshold(recipe, threshold))
    assert method.decider is not None
    grid = Grid(stats.num_steps, stats.sites)
    free = {
        step
        for step in range(stats.num_steps)
        if any(method.schedule(step, replace(site, depth=site.depth + 1), grid) is Action.DECIDE for site in grid.sites)
    }  # a block deeper, as the one site of a stack begins behind the blocks that a rule looks at
    fixed = set(range(stats.num_steps)) - free
    counts = computed_counts(method.decider, method.bounds, stats.known_signals(), fixed)
    mean = sum(counts) / len(counts)
    return Threshold(method, threshold, mean, (min(counts), max(counts)), stats.num_steps / mean)


def _sampled(
    recipe: Recipe,
    threshold: float,
    source: sources.Source,
    labels: Sequence[sources.Condition],
    how: sources.Sampling,
    batch: int,
    bare: Sequence[Tensor] | None,
) -> Threshold:
    """A threshold in runs that are sampled with it. bare: the samples without a cache, where PSNR is wanted."""
    method = registry.build(_with_threshold(recipe, threshold))
    counts: list[int] = []
    speedups: list[float] = []
    near: list[float] = []
    with apply(source.target, method, num_steps=how.num_steps) as session:
        for number, first in enumerate(range(0, len(labels), batch)):
            images = source.generate(list(labels[first : first + batch]), how, first)
            decided = session.decided()
            counts.append(known_decisions(decided.rows).count(Decision.COMPUTE))
            speedups.append(_speedup(decided, source, counts[-1]))
            if bare is not None:
                near += psnr_of(images, bare[number]).clamp_max(CEILING).tolist()
    mean = sum(counts) / len(counts)
    quality = sum(near) / len(near) if near else None
    return Threshold(method, threshold, mean, (min(counts), max(counts)), sum(speedups) / len(speedups), quality)


def _speedup(decided: Any, source: sources.Source, computed: int) -> float:
    """In MACs; in steps where the cost is not known from shapes."""
    try:
        return decided.cost(first_model(source)).speedup
    except InputError:
        return decided.num_steps / computed


def _search(tried: Callable[[float], Threshold], wanted: _Wanted, start: float, tries: int) -> Threshold:
    """The best of some thresholds: the scale is found by doubling, then the interval is halved."""
    best: Threshold | None = None
    low, high = 0.0, math.inf
    threshold = start
    for _ in range(tries):
        result = tried(threshold)
        if best is None or wanted.better(result, best):
            best = result
        excess = wanted.excess(result)
        if excess == 0 and wanted.psnr is None:
            break
        if excess >= 0:
            low = threshold
        else:
            high = threshold
        threshold = low * 2 if high == math.inf else (low + high) / 2
    assert best is not None
    return best


def _threshold_of(recipe: Recipe) -> float | None:
    """The threshold of the base of a recipe; None where it has none."""
    *_, (_, base) = registry.links(recipe)
    return base.get("threshold")


def _with_threshold(recipe: Recipe, threshold: float) -> Recipe:
    if "base" in recipe:
        return {**recipe, "base": _with_threshold(recipe["base"], threshold)}
    return {**recipe, "threshold": threshold}
