"""A tuning over samplers and numbers of steps: what the computed calls of a budget are best spent on.

First every sampler without a cache, at the budget's calls. Then each sampler in each number of steps gets a few trials
on the first noise, unless its own run without a cache is no better than the best of those: a plan hardly comes nearer
to the converged samples than the run that it skips steps of. The best few are searched to the end. Whatever is nearest
to the converged samples over all noises is the result, be it a sampler without a cache. At few calls the samplers are
tried on their other grids of timesteps, too.
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
from forecache.fit.tuning.effort import Meter, of_finding, trials_left
from forecache.fit.tuning.forecasts import ForecastSpec
from forecache.fit.tuning.plan_search import FINALISTS, PlanSearch
from forecache.fit.tuning.result import Tuned, Uncached
from forecache.fit.tuning.samplers import OWN, SamplerRun, on_other_grids, schedulers, steps_for
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
LAST_SHARE = 4
"""Share of the trials of a quick search that come after its schedules, as one over so many."""
KEPT = 2
"""Samplers and numbers of steps that are searched to the end, for each budget."""
QUICK_SCREENED = 3
"""Trials of each sampler and number of steps before a quick search goes on with the best one alone."""
FEW = 8
"""Model calls of a budget up to which every sampler is tried on its other grids of timesteps, too."""


@dataclass
class Entrant:
    """A sampler in a number of steps that plans are searched for.

    counts: the computed steps of each budget, None where no schedule fits it; an `AtLeast` takes any of ``possible``.
    possible: the numbers of computed steps that the longest interval allows.
    """

    run: SamplerRun
    runner: TrialRunner
    search: PlanSearch
    counts: tuple[int | AtLeast | None, ...]
    possible: range

    def count(self, number: int, calls: int) -> int | None:
        """The computed steps of a budget that comes to so many calls; None where no schedule fits."""
        count = self.counts[number]
        if isinstance(count, AtLeast):
            return calls if calls in self.possible else None
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
        quick: bool,
        path: Path | None,
        on_step: OnStep | None,
        on_trial: Callable[[Trial], None] | None,
    ) -> None:
        self._source, self._settings, self._world, self._on_step = source, settings, world, on_step
        self._meter, self._budgets = Meter(settings.num_steps), tuple(budgets)
        self._noises, self._judges = (0, 1) if quick else (trial_runner.NOISES, JUDGES)
        self._screened, self._kept, self._last = SCREENED, KEPT, proposals.LAST
        self._refining, self._trials = refining and not quick, settings.trials
        self._converged = ConvergedImages(source, settings, world, on_step, self._meter, self._judges)
        self._kinds = schedulers(source, names)
        self._moved = {} if quick else on_other_grids(source, self._kinds)
        self._calls = tuple(self._calls_of(budget) for budget in budgets)
        kinds = {**self._kinds, **(self._moved if any(calls and calls <= FEW for calls in self._calls) else {})}
        able: list[tuple[SamplerRun, Settings, tuple[int | AtLeast | None, ...], range]] = []
        for run in (SamplerRun(name, count, kind) for name, kind in kinds.items() for count in steps):
            if run.can_be_cached:
                with run.of(source) as other:
                    own = settings_of(other, run.num_steps)
                    converter = BudgetConverter(other, own, world)
                    counts = tuple(self._count(converter, run, number) for number in range(len(budgets)))
                if any(count is not None for count in counts):
                    able.append((run, own, counts, converter.possible))
        for number, budget in enumerate(budgets):
            if all(counts[number] is None for _, _, counts, _ in able):
                raise InputError(
                    f"{budget!r} comes to {self._calls[number]} model calls, and no plan of "
                    f"{', '.join(map(str, steps))} steps with intervals of at most {settings.longest} keeps to it: "
                    "give other numbers of steps, another budget, or a longer interval."
                )
        self._converged.find()
        self._able = [(run, counts, possible) for run, _, counts, possible in able]
        if quick:
            self._screened, self._kept = QUICK_SCREENED, 1
            self._trials = self._last = 0
            left = trials_left(self.most_images(), self._searched, settings.num_steps, len(settings.conditions))
            self._last = left // LAST_SHARE
            self._trials = left - self._last
        self._entrants = []
        for run, own, counts, possible in able:
            file, own = _file(path, run) if path is not None else None, replace(own, trials=self._trials)
            with run.of(source) as other:
                runner = TrialRunner(
                    other, own, world, file, on_step, on_trial, self._converged, run.brought, self._meter, self._noises
                )
                search = PlanSearch(runner, possible, correcting, self._refining, self._last)
            self._entrants.append(Entrant(run, runner, search, counts, possible))

    def _calls_of(self, budget: Budget) -> int:
        """The model calls of a sampler without a cache that keeps to a budget; 0 for `AtLeast`, which finds them."""
        steps = self._settings.num_steps
        match budget:
            case AtLeast(decibels):
                if not 0 < decibels < math.inf:
                    raise InputError(f"{budget!r} was asked for; decibels are a number over 0.")
                return 0
            case Calls(count):
                calls = count
            case Milliseconds(amount):
                calls = BudgetConverter(self._source, self._settings, self._world).uncached_calls(amount)
            case share:
                calls = math.floor(share * steps + 1e-9)
        if calls < 1:
            raise InputError(f"{budget!r} is less than one model call: ask for more.")
        return calls

    def _count(self, converter: BudgetConverter, run: SamplerRun, number: int) -> int | AtLeast | None:
        budget = self._budgets[number]
        if run.name in self._moved and not 0 < self._calls[number] <= FEW:
            return None
        if isinstance(budget, float):  # of the MACs of the pipeline's own run
            budget = budget * self._settings.num_steps / converter.num_steps
        try:
            return converter.computed_steps(budget)
        except InputError:
            return None

    def _rivals(self, calls: int) -> list[SamplerRun]:
        """Every sampler without a cache, at so many calls; on its other grids, too, where these are few."""
        kinds = {**self._kinds, **(self._moved if calls <= FEW else {})}
        return [SamplerRun(name, steps_for(kind, calls), kind) for name, kind in kinds.items()]

    def _possible(self, number: int) -> range:
        """The calls that a budget may come to: those of `AtLeast` are all that plans can have."""
        if self._calls[number]:
            return range(self._calls[number], self._calls[number] + 1)
        ranges = [possible for _, counts, possible in self._able if counts[number] is not None]
        return range(min(one[0] for one in ranges), max(one[-1] for one in ranges) + 1)

    @property
    def _searches(self) -> list[tuple[int, int]]:
        """The budget and the calls of every search that may come, at most."""
        every = [(number, self._possible(number)) for number in range(len(self._budgets))]
        return [(number, one[-1]) for number, one in every for _ in range(len(one).bit_length())]

    @property
    def _searched(self) -> list[int]:
        """The most computed steps of a plan, of every search."""
        found = []
        for number, calls in self._searches:
            counts = [counts[number] for _, counts, _ in self._able]
            found.append(max((count for count in counts if isinstance(count, int)), default=calls))
        return found

    def most_calls(self, held_out: int) -> int:
        """The largest number of model calls of this process."""
        settings, fine = self._settings, self._fine_steps
        tuned_on, judged_on = (
            len(batch_starts(self._world, samples, settings.batch)) for samples in (len(settings.conditions), held_out)
        )
        plans = 2 * self._longest * len(self._budgets)
        return tuned_on * self._most() + judged_on * (fine + self._rows + plans)

    def most_images(self) -> float:
        """The largest cost of the whole search, in images of the pipeline's own steps without a cache."""
        own, samples = self._settings.num_steps, len(self._settings.conditions)
        begun = of_finding(self._converged.run, own, min(self._judges, samples))
        return begun + samples * self._most() / own

    @property
    def _fine_steps(self) -> int:
        assert self._converged.run is not None
        return self._converged.run.num_steps

    @property
    def _longest(self) -> int:
        return max(run.num_steps for run, _, _ in self._able)

    @property
    def _rows(self) -> int:
        """Model calls of all samplers without a cache, in all searches."""
        return sum(run.calls for _, calls in self._searches for run in self._rivals(calls))

    def _most(self) -> int:
        """The largest number of computed model calls of the search for one sample."""
        noises, searched = self._noises, self._searched
        samplings = self._trials + self._last + FINALISTS * noises
        if self._refining:
            samplings += refine.most_samplings(self._longest, noises)
        moved = {(_solver(run.name), run.num_steps) for run, _, _ in self._able if run.name in self._moved}
        steps = [run.num_steps for run, _, _ in self._able if run.name not in self._moved]
        screens = sum(steps) + sum(count for _, count in moved)
        screens += self._screened * sum(searched) * (len(steps) + len(moved))
        searches = self._kept * sum(count * samplings + self._longest * noises for count in searched)
        return (self._rows + self._fine_steps) * (1 + noises) + screens + searches

    def run(self, held_out: tuple[Condition, ...], held_out_seed: int) -> Tuned:
        """The best for each budget."""
        tables, winners = [], []
        for number, budget in enumerate(self._budgets):
            if isinstance(budget, AtLeast):
                winner, table = self._cheapest(budget, number)
            else:
                winner, table = self._best(number, self._calls[number])
            winners.append(winner)
            rows = [replace(row, held_out=self._judged_row(run, held_out, held_out_seed)) for run, row in table]
            tables.append(tuple(rows))
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

    def _best(self, number: int, calls: int) -> tuple[Winner, list[tuple[SamplerRun, Uncached]]]:
        """The best for a budget that comes to so many calls, and every sampler without a cache at these."""
        own, table, first = self._settings, [], []
        for run in self._rivals(calls):
            decibels = [self._uncached(run, own.conditions, own.seed + noise) for noise in range(self._noises + 1)]
            table.append((run, Uncached(run.name, run.num_steps, run.calls, float(np.mean(decibels)))))
            first.append(decibels[0])
        best = {_solver(row.sampler): row.sampler for _, row in sorted(table, key=lambda entry: entry[1].psnr)}
        found = self._planned(number, calls, max(first), {*self._kinds, *best.values()})
        run, row = max(table, key=lambda entry: entry[1].psnr)
        if row.psnr >= found.trial.psnr:
            trial = Trial("#" * run.calls, ForecastSpec.of("reuse", {}), row.psnr, own=EQUAL_DB)
            found = replace(found, trial=trial, run=run)
        return found, table

    def _cheapest(self, goal: AtLeast, number: int) -> tuple[Winner, list[tuple[SamplerRun, Uncached]]]:
        """The best of the fewest calls that reach the goal, found by bisection."""
        cheapest, most, left = None, -math.inf, self._possible(number)
        while left:
            middle = len(left) // 2
            pair = self._best(number, left[middle])
            most = max(most, pair[0].trial.psnr)
            if pair[0].trial.psnr >= goal.decibels:
                cheapest, left = pair, left[:middle]
            else:
                left = left[middle + 1 :]
        if cheapest is None:
            raise InputError(
                f"At least {goal.decibels:g} dB were asked for, and no plan and no sampler without a cache comes to "
                f"that with fewer calls than the most steps: the best had {most:.2f} dB. Ask for less, or give more "
                "steps (steps=, --try-steps)."
            )
        return cheapest

    def _planned(self, number: int, calls: int, without: float, names: set[str]) -> Winner:
        """The best plan for a budget that comes to so many calls.

        without: the best PSNR of a sampler without a cache at these calls, on the first noise, in dB.
        names: the samplers to look at, of the other grids of a solver the best one alone.
        """
        able: list[tuple[float, Entrant]] = []
        for entrant in self._entrants:
            if entrant.run.name in names and entrant.count(number, calls) is not None:
                with entrant.run.of(self._source):
                    able.append((entrant.runner.uncached(), entrant))
        able.sort(key=lambda pair: -pair[0])
        promising = [entrant for place, (own, entrant) in enumerate(able) if own > without or place == 0]
        screened: list[tuple[float, Entrant]] = []
        for entrant in promising:
            with entrant.run.of(self._source):
                trial = entrant.search.screened(entrant.count(number, calls) or 0, number, self._screened)
                screened.append((trial.psnr, entrant))
        screened.sort(key=lambda pair: -pair[0])
        found = []
        for _, entrant in screened[: self._kept]:
            with entrant.run.of(self._source):
                best, even = entrant.search.best(entrant.count(number, calls) or 0, number)
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

    def _judged_row(self, run: SamplerRun, held_out: tuple[Condition, ...], seed: int) -> float | None:
        return self._uncached(run, held_out, seed) if held_out else None

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


def _solver(name: str) -> str:
    """The name of a sampler without its grid."""
    return name.split(" ", maxsplit=1)[0]


def _file(path: Path, run: SamplerRun) -> Path:
    """The trials file of a sampler in a number of steps."""
    return path.with_name(f"{path.stem}-{run.name.replace(' ', '-')}-{run.num_steps}{path.suffix}")
