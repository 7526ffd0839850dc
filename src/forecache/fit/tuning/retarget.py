"""A tuned plan for another number of steps, guidance or resolution, from one small pass without a cache.

What a tuning has learned of the schedule carries over by share of the run: the stretched schedule, and the gains of the
steps, under which dynamic programming finds the schedule that is best on the new features. Weights are fitted to the
new features. The pass samples without a cache, and then with each of the two schedules, of which the better one stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from forecache.errors import InputError
from forecache.evaluate import psnr
from forecache.evaluate.images import EQUAL_DB
from forecache.fit.tuning.forecasts import scheduling_forecast
from forecache.fit.tuning.gram import measure_gram
from forecache.fit.tuning.optimal import OptimalSchedules
from forecache.fit.tuning.result import Tuned
from forecache.models.find import grid_at
from forecache.models.levels import FINEST, AskedSites
from forecache.parts import patterns
from forecache.plan.plan import Plan
from forecache.runtime.apply import apply
from forecache.sampling.fine import rescheduled, scheduler_of
from forecache.sampling.sources import Condition, Sampling, as_source, check_conditions, in_batches


@dataclass(frozen=True)
class Retargeted:
    """A plan for another setting.

    plan: with its provenance, and with the sampler that the tuned one brought.
    decibels: by schedule that was tried, its mean PSNR in dB to no cache, on the samples of the pass.
    images: what the pass cost, as a number of images without a cache in the new number of steps.
    """

    plan: Plan
    decibels: dict[str, float]
    images: float


def retarget(
    tuned: Tuned,
    target: Any,
    conditions: Sequence[Condition],
    *,
    num_steps: int,
    guidance: float = 1.5,
    computed: int | None = None,
    place: int = 0,
    seed: int = 1000,
    batch: int = 32,
    longest: int = 8,
    sites: AskedSites = FINEST,
) -> Retargeted:
    """A tuned plan for another number of steps, guidance scale or resolution, from one small pass.

    tuned: of the same model; its schedule, its forecast and the gains of its steps are what carries over. Refined
        weights do not: they are what they were before refinement, fitted anew.
    target: a pipeline, a bundled model, or any `sources.Source`, with the options of its calls, such as another height.
    conditions: class labels or texts of the pass; 4 to 8 are enough.
    num_steps: the new number of steps. guidance: the new scale.
    computed: computed steps of the plan; by default the tuned plan's share of the new steps.
    place: the budget of the tuning whose plan is meant, the first by default.
    seed: of the noise. batch: samples of a generation. longest: longest interval of the schedule, in steps.
    sites: what sites are, the model's finest by default.

    It costs about three images for each condition (`Retargeted.images`). Raises InputError for a plan that computes
    everything, and for a number of computed steps that no schedule has.
    """
    if not isinstance(tuned, Tuned):
        raise InputError(
            f"A tuning is retargeted, and a {type(tuned).__name__} was given: give what forecache.tune returns, which "
            "knows the gains of the steps as well."
        )
    source = as_source(target)
    given = check_conditions(source, conditions)
    if not given or batch < 1 or not 0 <= place < len(tuned.best) or longest < 2:
        raise InputError(
            f"Retargeting needs a condition, a batch from 1 on, a longest interval of at least 2 and one of "
            f"{len(tuned.best)} budgets; {len(given)} conditions, {batch=}, {longest=}, {place=} were given."
        )
    trial, before = tuned.best[place], tuned.plans[place]
    if "." not in trial.pattern:
        raise InputError(
            f"The plan of budget {place} computes all of its {len(trial.pattern)} steps, which needs no plan in "
            f"{num_steps}: set its sampler alone, or retarget another budget."
        )
    count = computed or max(1, round(trial.computed * num_steps / len(trial.pattern)))
    if not -(-num_steps // longest) <= count < num_steps:
        raise InputError(
            f"{count} of {num_steps} computed steps were asked for; with intervals of at most {longest}, plans compute "
            f"{-(-num_steps // longest)} to {num_steps - 1}: give another number (computed=)."
        )
    brought = before.sampler
    scheduler = brought.instead_of(scheduler_of(source)) if brought is not None else None
    spec = trial.forecast.unrefined
    how = Sampling(num_steps, guidance, seed)
    with rescheduled(source, scheduler) if scheduler is not None else nullcontext(source) as other:
        whole = grid_at(other.target, num_steps, sites)
        gram, bare = measure_gram(other, given, how, batch, sites=whole)
        rule = scheduling_forecast(spec.forecast(gram))
        gains = _resampled(tuned.surrogate.gains, num_steps)
        found = {
            "stretched": _stretched(trial.pattern, num_steps, count),
            "optimal": OptimalSchedules(gram, rule, longest).pattern(gains, count),
        }
        plans, decibels = {}, {}
        for name, pattern in found.items():
            if pattern not in plans:
                plans[pattern] = spec.method(pattern, gram).plan(whole)
                with apply(other.target, plans[pattern]):
                    images = in_batches(other, given, how, batch)
                decibels[name] = float(psnr(images, bare).clamp_max(EQUAL_DB).mean())
    best = max(decibels, key=lambda name: decibels[name])
    plan = plans[found[best]]
    about = {
        "tuned": f"retargeted from {trial.computed} of {len(trial.pattern)} steps, the {best} schedule with {spec}",
        "samples": f"{len(given)}, guidance {guidance:g}, seed {seed}",
        "psnr": f"{decibels[best]:.2f} dB to no cache, on these samples",
    }
    sampler = replace(brought, num_steps=num_steps) if brought is not None else None
    plan = replace(plan, sampler=sampler, provenance={**plan.provenance, **about})
    cost = len(given) * (1 + len(plans) * count / num_steps)
    return Retargeted(plan, decibels, cost)


def _resampled(gains: np.ndarray, num_steps: int) -> np.ndarray:
    """The gains of the steps at the same shares of another run."""
    old = (np.arange(len(gains)) + 0.5) / len(gains)
    return np.interp((np.arange(num_steps) + 0.5) / num_steps, old, gains)


def _stretched(pattern: str, num_steps: int, count: int) -> str:
    """The schedule of ``count`` computed steps that is dense where this one is, at the same share of the run."""
    anchors = [*patterns.computed(pattern), len(pattern)]
    numbers = np.arange(count) * (len(anchors) - 1) / count
    places = np.interp(numbers, np.arange(len(anchors)), anchors) * num_steps / len(pattern)
    steps: list[int] = []
    for number, place in enumerate(places):
        first = steps[-1] + 1 if steps else 0
        steps.append(min(max(round(float(place)), first), num_steps - count + number))
    return patterns.from_steps(steps, num_steps)
