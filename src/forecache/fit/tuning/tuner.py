"""The best plan for a budget, found on the user's model: schedule and forecast together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from forecache import distributed
from forecache.errors import InputError
from forecache.fit.tuning import trial_runner
from forecache.fit.tuning.across import Across
from forecache.fit.tuning.budgets import Budget, BudgetConverter
from forecache.fit.tuning.effort import QUICK_SAMPLES, Meter, quick_trials
from forecache.fit.tuning.forecasts import ForecastSpec
from forecache.fit.tuning.plan_search import PlanSearch, searches
from forecache.fit.tuning.result import Tuned
from forecache.fit.tuning.samplers import OWN
from forecache.fit.tuning.settings import Settings
from forecache.fit.tuning.trial_runner import ConvergedImages, TrialRunner
from forecache.fit.tuning.trials import Trial
from forecache.models.layout import Level
from forecache.models.levels import AskedSites
from forecache.models.span import Of
from forecache.parts.responses import check_linear
from forecache.sampling.fine import JUDGES, REFERENCES, Reference
from forecache.sampling.sources import Condition, OnStep, Source, as_source, check_conditions

DEFAULT_FORECASTS = ("fitted 2", "fitted 2, feedback 0.5", "fitted 1, feedback 0.8", "taylor 2", "taylor 1", "goc 0.8")
"""The forecasts to choose from by default: with and without fitted weights, with and without feedback."""
LAST_SHARE = 4
"""Share of the trials of a quick search that come after its schedules, as one over so many."""


def tune(
    target: Any,
    conditions: Sequence[Condition],
    *,
    num_steps: int,
    samplers: Sequence[str] = (OWN,),
    steps: Sequence[int] = (),
    budget: Budget | Sequence[Budget] = 1 / 3,
    held_out: Sequence[Condition] = (),
    forecasts: Sequence[str | ForecastSpec] = DEFAULT_FORECASTS,
    guidance: float = 1.5,
    seed: int = 1000,
    held_out_seed: int = 2000,
    batch: int = 32,
    number: int = 48,
    longest: int = 8,
    search_seed: int = 0,
    reference: Reference = "converged",
    quick: bool = False,
    correcting: bool = True,
    refining: bool = True,
    hindsight: bool = False,
    level: Level | None = None,
    group: int | None = None,
    of: Of = "residual",
    blocks: Sequence[str] | str | None = None,
    path: str | os.PathLike[str] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_cost: Callable[[float], None] | None = None,
    on_step: OnStep | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> Tuned:
    """The schedule and forecast that come closest to the reference samples, for each budget.

    One pass without a cache measures the Gram matrices of the features (`gram.Gram`), and with them the error of every
    step, gap and forecast. The gain of a step says what an error there does to the image; the gains are learned from
    schedules that are sampled with (`surrogate`). Under them, dynamic programming proposes the best schedule
    (`optimal`), its samples tell how good it is, and so on; then its neighbours. The finalists are sampled again from
    other noise, of the seeds ``seed + 1`` to ``seed + 3``.

    target: a DiTPipeline, a text-to-image pipeline, a bundled model, or any `sources.Source`.
    conditions: class labels or texts, one for each sample.
    samplers: the samplers to choose from, of `samplers.SAMPLERS`: "own", the pipeline's, and solvers of the same
        process, also on another grid of timesteps than "trailing", as "unipc karras". With others than the pipeline's
        own, or with several numbers of steps, the result is a plan together with the sampler that it is for, which
        `forecache.enable` sets, or a sampler without a cache where no plan is nearer to the converged samples; and
        every sampler without a cache at the same calls stands beside it.
    steps: numbers of steps to choose from; by default ``num_steps``, the pipeline's own number, alone.
    budget: a share of the multiply-accumulates of a run without a cache, `Calls` that are computed, `Milliseconds`
        for a batch, or `AtLeast` a mean PSNR to the reference; or several budgets, which share what is learned.
    held_out: other conditions, sampled from ``held_out_seed``, that the plans are judged on in the end.
    forecasts: the forecasts to choose from, as `forecasts.vocabulary` lists them.
    number: schedules that are sampled with for each number of computed steps.
    longest: longest interval between computed steps, in steps.
    reference: what images are compared with. "converged": the converged samples of the same noise, of a fine run of a
        good solver (`sampling.converged`); the steps that it needs are found first, and told in the result and the log.
        "own": the pipeline's own samples without a cache, for those who want the images of before. Both are measured
        for every plan; this one ranks.
    quick: whether the whole search, for all budgets and samplers, keeps to the cost of 100 images without a cache.
        Fewer trials on three samples, of one noise and without refinement, choose the plan; like those of a full
        search, they are all sampled and compared with the reference.
    correcting: whether EOC's correction is tried, which brings tensors into the plan.
    refining: whether the weights of the best plans are refined by their effect on the images (`refine`). A plan with
        refined weights, fitted weights or a correction cannot be stretched to another number of steps.
    hindsight: whether the best plan of a budget is tried with correction in hindsight (`forecache.hindsight`) as well,
        with a share for every gap that is measured under the plan's own forecast. For one sampler in one number of
        steps; False by default.
    level, group, of, blocks: what sites are, as `forecache.grid` takes them.
    path: a file, written after every trial; an interrupted tuning continues from it.
    on_start: called with the number of model calls to come, at most. on_cost: called with the cost of the search to
        come, at most, in images without a cache (`Tuned.images` is what it came to). on_step: called after each model
        call. on_trial: after each trial.

    The same arguments give the same plans; a budget in milliseconds does, as long as it comes to the same number of
    computed steps. Several processes (torchrun, accelerate launch) share the batches, and all return the same. Raises
    SearchFileError if ``path`` holds another tuning, InputError for a budget that no schedule fits.
    """
    source = as_source(target)
    tuned_on, judged_on = check_conditions(source, conditions), check_conditions(source, held_out)
    budgets = tuple(budget) if isinstance(budget, Sequence) else (budget,)
    specs = tuple(ForecastSpec.parse(name) if isinstance(name, str) else name for name in forecasts)
    if refined := [spec for spec in specs if spec.is_refined]:
        raise InputError(
            f"{str(refined[0])!r} has refined weights; tuning refines them itself: give {str(refined[0].unrefined)!r}."
        )
    if not tuned_on or not budgets or not specs or min(batch, number, num_steps) < 1 or longest < 2:
        raise InputError(
            "Tuning needs a condition, a budget and a forecast; a batch, a number of schedules and steps from 1 on; "
            "and a longest interval of at least 2."
        )
    if reference not in REFERENCES:
        raise InputError(f"reference is one of {', '.join(REFERENCES)}, not {reference!r}.")
    noises = trial_runner.NOISES
    if set(judged_on) & set(tuned_on) and seed <= held_out_seed <= seed + noises:
        raise InputError(
            f"held_out shares conditions and noise with what is tuned on (seeds {seed} to {seed + noises}): give "
            "another held_out_seed."
        )
    if quick:
        tuned_on = tuned_on[:QUICK_SAMPLES]
    across = tuple(samplers) != (OWN,) or tuple(steps) not in ((), (num_steps,))
    if across and reference == "own":
        raise InputError(
            "Samplers and numbers of steps are compared by the converged samples, which are the same for all: leave "
            "out reference='own' (--reference own), or tune for the pipeline's own sampler in one number of steps."
        )
    if hindsight and across:
        raise InputError(
            "Hindsight is tried for one sampler in one number of steps: leave it out, or tune for the chosen sampler "
            "alone afterwards."
        )
    if hindsight:
        check_linear(getattr(source.target, "scheduler", None))
    if not samplers or min(steps, default=1) < 1:
        raise InputError(f"Tuning needs a sampler, and numbers of steps from 1 on; {samplers=}, {steps=} were given.")

    def settings_of(source: Source, num_steps: int) -> Settings:
        return Settings.of_source(
            source,
            tuned_on,
            num_steps=num_steps,
            guidance=guidance,
            seed=seed,
            batch=batch,
            forecasts=specs,
            longest=longest,
            trials=number,
            search_seed=search_seed,
            reference=reference,
            asked=AskedSites(None, level, group, of, blocks),
        )

    settings, world = settings_of(source, num_steps), distributed.current()
    file = Path(path) if path is not None else None
    if across:
        numbers = tuple(dict.fromkeys(steps)) or (num_steps,)
        wide = Across(
            source,
            settings,
            settings_of,
            samplers,
            numbers,
            budgets,
            world,
            correcting,
            refining,
            quick,
            file,
            on_step,
            on_trial,
        )
        _announce(on_start, wide.most_calls(len(judged_on)), on_cost, wide.most_images())
        return wide.run(judged_on, held_out_seed)
    converter, meter = BudgetConverter(source, settings, world), Meter(num_steps)
    judges, noises, last = (1, 0, 0) if quick else (JUDGES, None, None)
    converged = ConvergedImages(source, settings, world, on_step, meter, judges) if reference == "converged" else None
    goals = [converter.computed_steps(budget) for budget in budgets]
    if converged is not None:
        converged.find()
    if quick:
        run = converged.run if converged is not None else None
        trials = quick_trials(run, num_steps, len(tuned_on), searches(goals, converter.possible))
        last = trials // LAST_SHARE
        settings = replace(settings, trials=trials - last)
    runner = TrialRunner(source, settings, world, file, on_step, on_trial, converged, meter=meter, noises=noises)
    search = PlanSearch(runner, converter.possible, correcting, refining and not quick, last, hindsight)
    judging = search.most_calls(len(judged_on), 0) * (1 + len(goals))
    calls = search.most_calls(len(tuned_on), search.most_searches(goals)) + judging
    _announce(on_start, calls, on_cost, search.most_images(goals, judges))
    return replace(search.run(goals, judged_on, held_out_seed), images=meter.images)


def _announce(
    on_start: Callable[[int], None] | None, calls: int, on_cost: Callable[[float], None] | None, images: float
) -> None:
    """Say what a search makes at most."""
    if on_start is not None:
        on_start(calls)
    if on_cost is not None:
        on_cost(images)
