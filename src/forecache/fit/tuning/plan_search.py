"""The search for plans of one sampler and number of steps: for each budget, the best schedule and forecast together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from forecache.errors import InputError
from forecache.fit.tuning import hindsight, proposals, refine
from forecache.fit.tuning.budgets import AtLeast
from forecache.fit.tuning.effort import fixed
from forecache.fit.tuning.proposals import ScheduleSearch, TrialHistory
from forecache.fit.tuning.refine import Refiner
from forecache.fit.tuning.result import Tuned
from forecache.fit.tuning.samples import batch_starts
from forecache.fit.tuning.settings import HeldOut, provenance
from forecache.fit.tuning.trial_runner import TrialRunner
from forecache.fit.tuning.trials import Trial
from forecache.plan.plan import Plan
from forecache.sampling.sources import Condition

FINALISTS = 6
"""Schedules of a budget that are judged on other noises too, the best even ones among them."""


class PlanSearch:
    """Searches the numbers of computed steps that the budgets ask for, one after the other, with one history.

    possible: numbers of computed steps that the longest interval allows.
    last: largest number of trials of a search after its schedules, `proposals.LAST` by default.
    pays_back: whether the best plan is tried with hindsight, False by default.
    """

    def __init__(
        self,
        runner: TrialRunner,
        possible: range,
        correcting: bool,
        refining: bool,
        last: int | None = None,
        pays_back: bool = False,
    ) -> None:
        self._last = proposals.LAST if last is None else last
        self._runner, self._settings = runner, runner.settings
        self._possible, self._correcting, self._refining = possible, correcting, refining
        self._pays_back = pays_back
        self._searched: dict[int, tuple[Trial, Trial]] = {}
        self._own_history: TrialHistory | None = None

    @property
    def history(self) -> TrialHistory:
        """All trials so far; the first time, samples without a cache."""
        if self._own_history is None:
            gram, settings = self._runner.gram, self._settings
            self._own_history = TrialHistory(gram, settings.forecasts, settings.longest, self._correcting)
        return self._own_history

    def most_searches(self, goals: Sequence[int | AtLeast]) -> int:
        """The largest number of searches for the goals."""
        return sum(len(self._possible).bit_length() if isinstance(goal, AtLeast) else 1 for goal in goals)

    def most_calls(self, samples: int, searches: int) -> int:
        """The largest number of model calls of this process: of a pass without a cache, and of so many searches."""
        steps, noises = self._settings.num_steps, self._runner.noises
        batches = len(batch_starts(self._runner.world, samples, self._settings.batch))
        samplings = self._samplings
        fine = self._runner.fine.num_steps * (1 + noises * bool(searches)) if self._runner.fine is not None else 0
        return batches * (steps * (1 + noises * bool(searches) + searches * samplings) + fine)

    @property
    def _samplings(self) -> int:
        """The largest number of times that a search generates the samples."""
        noises = self._runner.noises
        samplings = self._settings.trials + self._last + FINALISTS * noises
        if self._refining:
            samplings += refine.most_samplings(self._settings.num_steps - self._possible[0], noises)
        if self._pays_back:
            samplings += hindsight.most_samplings(self._possible[-1], noises)
        return samplings

    def most_images(self, goals: Sequence[int | AtLeast], judges: int) -> float:
        """The largest cost of the searches for the goals, in images."""
        samples, steps = len(self._settings.conditions), self._settings.num_steps
        begun = fixed(self._runner.fine, steps, min(judges, samples), samples, self._runner.noises)
        return begun + samples * self._samplings * sum(searches(goals, self._possible)) / steps

    def run(self, goals: Sequence[int | AtLeast], held_out: tuple[Condition, ...], held_out_seed: int) -> Tuned:
        """The plans of the goals: numbers of computed steps, or the PSNR that the images have to reach."""
        pairs = [
            self._cheapest(goal, number) if isinstance(goal, AtLeast) else self.best(goal, number)
            for number, goal in enumerate(goals)
        ]
        best, even = zip(*pairs, strict=True)
        plans = [self._runner.plan(trial.pattern, trial.forecast) for trial in best]
        decibels = self._runner.held_out(plans, held_out, held_out_seed) if held_out else ()
        described = tuple(
            self.described(trial, decibels[place] if decibels else None) for place, trial in enumerate(best)
        )
        return self.result(described, best, even, decibels)

    def result(
        self,
        plans: tuple[Plan, ...],
        best: tuple[Trial, ...],
        even: tuple[Trial, ...],
        held_out: tuple[HeldOut, ...],
    ) -> Tuned:
        """The result with these plans, the trials so far and what the surrogate expects of them."""
        trials = tuple(self.history.trials)
        surrogate = self.history.surrogate(best[0].forecast.unrefined)
        predicted = tuple(surrogate.decibels(self.history.errors(trial.pattern, trial.forecast)) for trial in trials)
        return Tuned(plans, best, even, held_out, trials, predicted, surrogate, self._runner.fine)

    def screened(self, count: int, number: int, most: int) -> Trial:
        """The best of the first ``most`` trials of a search, on its first noise."""
        search = self._schedules(count, number)
        for _ in range(most):
            if (proposal := search.propose()) is None:
                break
            search.tell(self._runner.run(*proposal))
        return search.best

    def _schedules(self, count: int, number: int) -> ScheduleSearch:
        return ScheduleSearch(
            self.history, count, self._settings.trials, self._settings.search_seed + number, self._last
        )

    def _cheapest(self, goal: AtLeast, number: int) -> tuple[Trial, Trial]:
        """The best trial of the fewest computed steps that reach the goal, found by bisection."""
        cheapest, left = None, self._possible
        while left:
            middle = len(left) // 2
            pair = self.best(left[middle], number)
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

    def best(self, count: int, number: int) -> tuple[Trial, Trial]:
        """The best trial with ``count`` computed steps, and the best one with an even schedule; on all noises.

        What is best of many on few samples is partly luck, so the finalists are sampled again.
        """
        if count not in self._searched:
            runner, search = self._runner, self._schedules(count, number)
            while (proposal := search.propose()) is not None:
                search.tell(runner.run(*proposal))
            finalists = [runner.judge(trial) for trial in search.finalists(FINALISTS)]
            even = [trial for trial in finalists if search.is_even(trial)]
            best = max(finalists, key=lambda trial: trial.psnr)
            if self._refining:
                schedules = search.best_by_schedule(refine.SCHEDULES)
                others = [trial for trial in schedules if trial.pattern != best.pattern]
                best = Refiner(runner).best(best, others)
            if self._pays_back:
                best = hindsight.with_hindsight(runner, best)
            self._searched[count] = best, max(even, key=lambda trial: trial.psnr)
        return self._searched[count]

    def described(self, trial: Trial, held_out: HeldOut | None) -> Plan:
        """The plan of a trial, with its provenance."""
        rivals = [
            known for known in self._runner.known.values() if known.computed == trial.computed and not known.noise
        ]
        schedules = sum(not rival.forecast.is_refined for rival in rivals)
        plan = self._runner.plan(trial.pattern, trial.forecast)
        about = provenance(self._settings, trial, schedules, self._runner.noises, held_out, self._runner.fine)
        return replace(plan, provenance={**plan.provenance, **about})


def searches(goals: Sequence[int | AtLeast], possible: range) -> list[int]:
    """The computed steps of every search for the goals, at most."""
    bisected = [possible[-1]] * len(possible).bit_length()
    return [count for goal in goals for count in (bisected if isinstance(goal, AtLeast) else [goal])]
