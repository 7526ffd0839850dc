"""A tuning over samplers and numbers of steps: what the computed calls of a budget are best spent on.

First every sampler without a cache, at the budget's calls. Then each sampler in each number of steps gets a few trials
on the first noise, unless its own run without a cache is no better than the best of those: a plan hardly comes nearer
to the converged samples than the run that it skips steps of. The best few are searched to the end. Whatever is nearest
to the converged samples over all noises is the result, be it a sampler without a cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from forecache.distributed import World
from forecache.errors import InputError
from forecache.evaluate.images import EQUAL_DB
from forecache.fit.tuning import proposals, refine, trial_runner
from forecache.fit.tuning.budgets import AtLeast, Budget, BudgetConverter, Calls, Milliseconds
from forecache.fit.tuning.effort import Meter, of_finding
from forecache.fit.tuning.forecasts import ForecastSpec
from forecache.fit.tuning.plan_search import FINALISTS, PlanSearch
from forecache.fit.tuning.result import Tuned, Uncached
from forecache.fit.tuning.samplers import OWN, SamplerRun, schedulers, steps_for
from forecache.fit.tuning.samples import SharedSampler, batch_starts
from forecache.fit.tuning.settings import HeldOut, Settings
from forecache.fit.tuning.trial_runner import ConvergedImages, TrialRunner
from forecache.fit.tuning.trials import Trial
from forecache.methods.explicit import explicit
from forecache.plan.plan import Plan
from forecache.sampling.fine import JUDGES
from forecache.sampling.sources import Condition, OnStep, Sampling, Source

SCREENED = 8
"""Trials of each sampler and number of steps before the best are chosen."""
KEPT = 2
"""Samplers and numbers of steps that are searched to the end, for each budget."""


@dataclass
class Entrant:
    """A sampler in a number of steps that plans are searched for.

    counts: the computed steps of each budget, None where no schedule fits it.
    """

    run: SamplerRun
    runner: TrialRunner
    search: PlanSearch
    counts: tuple[int | None, ...]

    def count(self, number: int) -> int:
        """The computed steps of a budget that fits."""
        count = self.counts[number]
        assert count is not None
        return count


@dataclass(frozen=True)
class Winner:
    """What is best for a budget, a plan or a sampler without a cache.

    trial: its schedule, whose steps are all computed without a cache.
    run: its sampler.
    entrant: the sampler in a number of steps that has the best plan.
    planned: the trial of this plan. even: the best one with evenly spaced steps.
    """

    trial: Trial
    run: SamplerRun
    entrant: Entrant
    planned: Trial
    even: Trial


class Across:
    """The search over samplers and numbers of steps.

    settings_of: the settings of a tuning of a source with a number of steps.
    names: of the samplers. steps: numbers of steps; that of ``settings`` is the pipeline's own.
    """

    def __init__(
        self,
        source: Source,
        settings: Settings,
        settings_of: Callable[[Source, int], Settings],
        names: Sequence[str],
        steps: Sequence[int],
        budgets: Sequence[Budget],
        world: World,
        correcting: bool,
        refining: bool,
        path: Path | None,
        on_step: OnStep | None,
        on_trial: Callable[[Trial], None] | None,
    ) -> None:
        self._source, self._settings, self._world, self._on_step = source, settings, world, on_step
        self._meter = Meter(settings.num_steps)
        self._converged = ConvergedImages(source, settings, world, on_step, self._meter)
        kinds = schedulers(source, names)
        self._calls = tuple(self._calls_of(budget) for budget in budgets)
        self._rivals = {
            calls: [SamplerRun(name, steps_for(kind, calls), kind) for name, kind in kinds.items()]
            for calls in self._calls
        }
        self._entrants: list[Entrant] = []
        for run in (SamplerRun(name, count, kind) for name, kind in kinds.items() for count in steps):
            if not run.can_be_cached:
                continue
            with run.of(source) as other:
                file = _file(path, run) if path is not None else None
                own = settings_of(other, run.num_steps)
                runner = TrialRunner(
                    other, own, world, file, on_step, on_trial, self._converged, run.brought, self._meter
                )
                converter = BudgetConverter(other, own, world)
                counts = tuple(self._count(converter, budget) for budget in budgets)
                search = PlanSearch(runner, converter.possible, correcting, refining)
            if any(count is not None for count in counts):
                self._entrants.append(Entrant(run, runner, search, counts))
        for number, budget in enumerate(budgets):
            if all(entrant.counts[number] is None for entrant in self._entrants):
                raise InputError(
                    f"{budget!r} comes to {self._calls[number]} model calls, and no plan of "
                    f"{', '.join(map(str, steps))} steps with intervals of at most {settings.longest} keeps to it: "
                    "give other numbers of steps, another budget, or a longer interval."
                )
        self._converged.find()

    def _calls_of(self, budget: Budget) -> int:
        """The model calls of a sampler without a cache that keeps to a budget."""
        steps = self._settings.num_steps
        match budget:
            case AtLeast():
                raise InputError(
                    f"{budget!r} was asked for over several samplers or numbers of steps: give a budget in computed "
                    "calls, MACs or milliseconds, or tune for one sampler."
                )
            case Calls(count):
                calls = count
            case Milliseconds(amount):
                calls = BudgetConverter(self._source, self._settings, self._world).uncached_calls(amount)
            case share:
                calls = math.floor(share * steps + 1e-9)
        if calls < 1:
            raise InputError(f"{budget!r} is less than one model call: ask for more.")
        return calls

    def _count(self, converter: BudgetConverter, budget: Budget) -> int | None:
        if isinstance(budget, float):  # of the MACs of the pipeline's own run
            budget = budget * self._settings.num_steps / converter.num_steps
        try:
            count = converter.computed_steps(budget)
        except InputError:
            return None
        return count if isinstance(count, int) else None

    def most_calls(self, held_out: int) -> int:
        """The largest number of model calls of this process."""
        settings, fine = self._settings, self._fine_steps
        tuned_on, judged_on = (
            len(batch_starts(self._world, samples, settings.batch)) for samples in (len(settings.conditions), held_out)
        )
        longest = max(entrant.run.num_steps for entrant in self._entrants)
        computed = [longest] * len(self._calls)
        return tuned_on * self._most(computed) + judged_on * (fine + self._rows + 2 * longest * len(computed))

    def most_images(self) -> float:
        """The largest cost of the whole search, in images of the pipeline's own steps without a cache."""
        own, samples = self._settings.num_steps, len(self._settings.conditions)
        counts = [[entrant.counts[number] or 0 for entrant in self._entrants] for number in range(len(self._calls))]
        begun = of_finding(self._converged.run, own, min(JUDGES, samples))
        return begun + samples * self._most([max(computed) for computed in counts]) / own

    @property
    def _fine_steps(self) -> int:
        assert self._converged.run is not None
        return self._converged.run.num_steps

    @property
    def _rows(self) -> int:
        """Model calls of all samplers without a cache, at all budgets."""
        return sum(run.calls for rivals in self._rivals.values() for run in rivals)

    def _most(self, computed: Sequence[int]) -> int:
        """The largest number of computed model calls of the search for one sample.

        computed: of a plan of each budget.
        """
        noises, longest = trial_runner.NOISES, max(entrant.run.num_steps for entrant in self._entrants)
        samplings = self._settings.trials + proposals.LAST + FINALISTS * noises + refine.most_samplings(longest, noises)
        screens = sum(entrant.run.num_steps + SCREENED * sum(computed) for entrant in self._entrants)
        searches = KEPT * sum(count * samplings + longest * noises for count in computed)
        return (self._rows + self._fine_steps) * (1 + noises) + screens + searches

    def run(self, held_out: tuple[Condition, ...], held_out_seed: int) -> Tuned:
        """The best for each budget."""
        own = self._settings
        noises = [(own.conditions, own.seed + noise) for noise in range(trial_runner.NOISES + 1)]
        tables, winners = [], []
        for number, calls in enumerate(self._calls):
            table = []
            for run in self._rivals[calls]:
                decibels = [self._uncached(run, *samples) for samples in noises]
                judged = self._uncached(run, held_out, held_out_seed) if held_out else None
                row = Uncached(run.name, run.num_steps, run.calls, float(np.mean(decibels)), judged)
                table.append((run, decibels, row))
            tables.append(tuple(row for _, _, row in table))
            found = self._planned(number, max(decibels[0] for _, decibels, _ in table))
            run, _, row = max(table, key=lambda entry: entry[2].psnr)
            if row.psnr >= found.trial.psnr:
                trial = Trial("#" * run.calls, ForecastSpec.of("reuse", {}), row.psnr, own=EQUAL_DB)
                found = replace(found, trial=trial, run=run)
            winners.append(found)
        judged = tuple(self._judged(one, held_out, held_out_seed) for one in winners) if held_out else ()
        plans = tuple(self._plan(one, judged[place] if judged else None) for place, one in enumerate(winners))
        best = {id(one.entrant): one for one in reversed(winners)}
        parts = [one.entrant.search.result((), (one.planned,), (), ()) for one in reversed(best.values())]
        return Tuned(
            plans,
            tuple(one.trial for one in winners),
            tuple(one.even for one in winners),
            judged,
            tuple(trial for part in parts for trial in part.trials),
            tuple(value for part in parts for value in part.predicted),
            parts[0].surrogate,
            self._converged.run,
            tuple(one.run.name for one in winners),
            tuple(None if one.run.name == OWN else one.run.scheduler for one in winners),
            tuple(tables),
            self._meter.images,
        )

    def _planned(self, number: int, without: float) -> Winner:
        """The best plan for a budget.

        without: the best PSNR of a sampler without a cache at these calls, on the first noise, in dB.
        """
        able: list[tuple[float, Entrant]] = []
        for entrant in self._entrants:
            if entrant.counts[number] is not None:
                with entrant.run.of(self._source):
                    able.append((entrant.runner.uncached(), entrant))
        able.sort(key=lambda pair: -pair[0])
        promising = [entrant for place, (own, entrant) in enumerate(able) if own > without or place == 0]
        screened: list[tuple[float, Entrant]] = []
        for entrant in promising:
            with entrant.run.of(self._source):
                count = entrant.count(number)
                screened.append((entrant.search.screened(count, number, SCREENED).psnr, entrant))
        screened.sort(key=lambda pair: -pair[0])
        found = []
        for _, entrant in screened[:KEPT]:
            with entrant.run.of(self._source):
                best, even = entrant.search.best(entrant.count(number), number)
                found.append(Winner(best, entrant.run, entrant, best, even))
        return max(found, key=lambda one: one.trial.psnr)

    def _uncached(self, run: SamplerRun, conditions: tuple[Condition, ...], seed: int) -> float:
        """The mean PSNR in dB of a sampler without a cache to the converged samples."""
        with run.of(self._source) as source:
            sampler = SharedSampler(source, self._settings.batch, self._world, self._on_step)
            images = sampler.images(conditions, Sampling(run.num_steps, self._settings.guidance, seed))
            if conditions == self._settings.conditions:
                self._meter.add(len(conditions), run.calls)
            return sampler.psnr(images, self._converged.of(conditions, seed))

    def _judged(self, winner: Winner, conditions: tuple[Condition, ...], seed: int) -> HeldOut:
        """The winner on held-out samples."""
        if winner.trial is not winner.planned:
            psnr = self._uncached(winner.run, conditions, seed)
            return HeldOut(psnr, EQUAL_DB, psnr)
        with winner.run.of(self._source):
            runner = winner.entrant.runner
            plan = runner.plan(winner.trial.pattern, winner.trial.forecast)
            return runner.held_out([plan], conditions, seed)[0]

    def _plan(self, winner: Winner, held_out: HeldOut | None) -> Plan:
        """The plan of a winner, which computes everything where that is a sampler without a cache."""
        with winner.run.of(self._source) as source:
            if winner.trial is winner.planned:
                return winner.entrant.search.described(winner.trial, held_out)
            whole = explicit(compute=range(winner.run.calls)).plan(
                replace(self._settings, num_steps=winner.run.calls).grid(source)
            )
            about = {"tuned": f"{winner.run} without a cache: no plan was nearer to the converged samples"}
            return replace(whole, sampler=winner.run.brought, provenance={**whole.provenance, **about})


def _file(path: Path, run: SamplerRun) -> Path:
    """The trials file of a sampler in a number of steps."""
    return path.with_name(f"{path.stem}-{run.name.replace(' ', '-')}-{run.num_steps}{path.suffix}")
