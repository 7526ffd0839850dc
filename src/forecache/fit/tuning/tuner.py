"""The best plan for a budget, found on the user's model: schedule and forecast together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from forecache import distributed
from forecache.errors import InputError
from forecache.fit.tuning import proposals, refine, trial_runner
from forecache.fit.tuning.budgets import AtLeast, Budget, BudgetConverter
from forecache.fit.tuning.forecasts import ForecastSpec
from forecache.fit.tuning.proposals import ScheduleSearch, TrialHistory
from forecache.fit.tuning.refine import Refiner
from forecache.fit.tuning.result import Tuned
from forecache.fit.tuning.samples import batch_starts
from forecache.fit.tuning.settings import HeldOut, Settings, provenance
from forecache.fit.tuning.trial_runner import TrialRunner
from forecache.fit.tuning.trials import Trial
from forecache.models.layout import Level
from forecache.models.levels import AskedSites
from forecache.models.span import Of
from forecache.plan.plan import Plan
from forecache.sampling.fine import REFERENCES, Reference
from forecache.sampling.sources import Condition, OnStep, as_source, check_conditions

FINALISTS = 6
"""Schedules of a budget that are judged on other noises too, the best even ones among them."""
DEFAULT_FORECASTS = ("fitted 2", "fitted 2, feedback 0.5", "fitted 1, feedback 0.8", "taylor 2", "taylor 1", "goc 0.8")
"""The forecasts to choose from by default: with and without fitted weights, with and without feedback."""


def tune(
    target: Any,
    conditions: Sequence[Condition],
    *,
    num_steps: int,
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
    correcting: bool = True,
    refining: bool = True,
    level: Level | None = None,
    group: int | None = None,
    of: Of = "residual",
    blocks: Sequence[str] | str | None = None,
    path: str | os.PathLike[str] | None = None,
    on_start: Callable[[int], None] | None = None,
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
    budget: a share of the multiply-accumulates of a run without a cache, `Milliseconds` for a batch, or `AtLeast` a
        mean PSNR to the reference; or several budgets, which share what is learned.
    held_out: other conditions, sampled from ``held_out_seed``, that the plans are judged on in the end.
    forecasts: the forecasts to choose from, as `forecasts.vocabulary` lists them.
    number: schedules that are sampled with for each number of computed steps.
    longest: longest interval between computed steps, in steps.
    reference: what images are compared with. "converged": the converged samples of the same noise, of a fine run of a
        good solver (`sampling.converged`); the steps that it needs are found first, and told in the result and the log.
        "own": the pipeline's own samples without a cache, for those who want the images of before. Both are measured
        for every plan; this one ranks.
    correcting: whether EOC's correction is tried, which brings tensors into the plan.
    refining: whether the weights of the best plans are refined by their effect on the images (`refine`). A plan with
        refined weights, fitted weights or a correction cannot be stretched to another number of steps.
    level, group, of, blocks: what sites are, as `forecache.grid` takes them.
    path: a file, written after every trial; an interrupted tuning continues from it.
    on_start: called with the number of model calls to come, at most. on_step: after each. on_trial: after each trial.

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
    settings = Settings.of_source(
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
    world = distributed.current()
    converter = BudgetConverter(source, settings, world)
    runner = TrialRunner(source, settings, world, Path(path) if path is not None else None, on_step, on_trial)
    tuning = _Tuning(runner, converter.possible, correcting, refining)
    goals = [converter.computed_steps(budget) for budget in budgets]
    runner.find_reference()
    if on_start is not None:
        judging = tuning.most_calls(len(judged_on), 0) * (1 + len(goals))
        on_start(tuning.most_calls(len(tuned_on), tuning.most_searches(goals)) + judging)
    return tuning.run(goals, judged_on, held_out_seed)


class _Tuning:
    """Searches the numbers of computed steps that the budgets ask for, one after the other, with one history.

    possible: numbers of computed steps that the longest interval allows.
    """

    def __init__(self, runner: TrialRunner, possible: range, correcting: bool, refining: bool) -> None:
        self._runner, self._settings = runner, runner.settings
        self._possible, self._correcting, self._refining = possible, correcting, refining
        self._searched: dict[int, tuple[Trial, Trial]] = {}
        self._history: TrialHistory

    def most_searches(self, goals: Sequence[int | AtLeast]) -> int:
        """The largest number of searches for the goals."""
        return sum(len(self._possible).bit_length() if isinstance(goal, AtLeast) else 1 for goal in goals)

    def most_calls(self, samples: int, searches: int) -> int:
        """The largest number of model calls of this process: of a pass without a cache, and of so many searches."""
        steps, noises = self._settings.num_steps, trial_runner.NOISES
        batches = len(batch_starts(self._runner.world, samples, self._settings.batch))
        samplings = self._settings.trials + proposals.LAST + FINALISTS * noises
        if self._refining:
            samplings += refine.most_samplings(steps - self._possible[0], noises)
        fine = self._runner.fine.num_steps * (1 + noises * bool(searches)) if self._runner.fine is not None else 0
        return batches * (steps * (1 + noises * bool(searches) + searches * samplings) + fine)

    def run(self, goals: Sequence[int | AtLeast], held_out: tuple[Condition, ...], held_out_seed: int) -> Tuned:
        """The plans of the goals: numbers of computed steps, or the PSNR that the images have to reach."""
        self._history = TrialHistory(
            self._runner.measure_gram(), self._settings.forecasts, self._settings.longest, self._correcting
        )
        pairs = [
            self._cheapest(goal, number) if isinstance(goal, AtLeast) else self._search(goal, number)
            for number, goal in enumerate(goals)
        ]
        best, even = zip(*pairs, strict=True)
        trials = tuple(self._history.trials)
        plans = [self._runner.plan(trial.pattern, trial.forecast) for trial in best]
        decibels = self._runner.held_out(plans, held_out, held_out_seed) if held_out else ()
        described = tuple(
            self._described(trial, decibels[place] if decibels else None) for place, trial in enumerate(best)
        )
        surrogate = self._history.surrogate(best[0].forecast.unrefined)
        predicted = tuple(surrogate.decibels(self._history.errors(trial.pattern, trial.forecast)) for trial in trials)
        return Tuned(described, best, even, decibels, trials, predicted, surrogate, self._runner.fine)

    def _cheapest(self, goal: AtLeast, number: int) -> tuple[Trial, Trial]:
        """The best trial of the fewest computed steps that reach the goal, found by bisection."""
        cheapest, left = None, self._possible
        while left:
            middle = len(left) // 2
            pair = self._search(left[middle], number)
            if pair[0].psnr >= goal.decibels:
                cheapest, left = pair, left[:middle]
            else:
                left = left[middle + 1 :]
        if cheapest is None:
            best = max((trial for trial, _ in self._searched.values()), key=lambda trial: trial.psnr)
            raise InputError(
                f"At least {goal.decibels:g} dB were asked for, and no plan comes to that: the best had "
                f"{best.psnr:.2f} dB with {best.computed} of {len(best.pattern)} steps computed. Ask for less, or "
                "sample without a cache; with path= (or --out) nothing that was sampled is lost to other budgets."
            )
        return cheapest

    def _search(self, count: int, number: int) -> tuple[Trial, Trial]:
        """The best trial with ``count`` computed steps, and the best one with an even schedule; on all noises.

        What is best of many on few samples is partly luck, so the finalists are sampled again.
        """
        if count not in self._searched:
            runner, seed = self._runner, self._settings.search_seed + number
            search = ScheduleSearch(self._history, count, self._settings.trials, seed)
            while (proposal := search.propose()) is not None:
                search.tell(runner.run(*proposal))
            finalists = [runner.judge(trial) for trial in search.finalists(FINALISTS)]
            even = [trial for trial in finalists if search.is_even(trial)]
            best = max(finalists, key=lambda trial: trial.psnr)
            if self._refining:
                schedules = search.best_by_schedule(refine.SCHEDULES)
                others = [trial for trial in schedules if trial.pattern != best.pattern]
                best = Refiner(runner).best(best, others)
            self._searched[count] = best, max(even, key=lambda trial: trial.psnr)
        return self._searched[count]

    def _described(self, trial: Trial, held_out: HeldOut | None) -> Plan:
        """The plan of a trial, with its provenance."""
        rivals = [
            known for known in self._runner.known.values() if known.computed == trial.computed and not known.noise
        ]
        schedules = sum(not rival.forecast.is_refined for rival in rivals)
        plan = self._runner.plan(trial.pattern, trial.forecast)
        about = provenance(self._settings, trial, schedules, trial_runner.NOISES, held_out, self._runner.fine)
        return replace(plan, provenance={**plan.provenance, **about})
