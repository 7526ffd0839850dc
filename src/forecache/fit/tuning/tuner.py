"""The best plan for a budget, found on the user's model: schedule and forecast together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from forecache import distributed
from forecache.errors import InputError, SearchFileError
from forecache.fit.tuning import polish, proposals, trials
from forecache.fit.tuning.budgets import AtLeast, Budget, Counts
from forecache.fit.tuning.products import Products, observe
from forecache.fit.tuning.result import Tuned
from forecache.fit.tuning.samples import Samples, starts
from forecache.fit.tuning.settings import Settings, plain, provenance, settings_of
from forecache.fit.tuning.trials import Trial
from forecache.methods.explicit import explicit
from forecache.models.find import grid
from forecache.parts.grid import Grid
from forecache.parts.identity import is_same
from forecache.plan.method import Method
from forecache.plan.plan import Plan
from forecache.runtime.apply import apply
from forecache.sampling.sources import Condition, OnStep, Sampling, Source, as_source, check_conditions

FINALISTS = 6
"""So many schedules of a budget are sampled with again, the best even ones among them."""
NOISES = 3
"""From so much other noise."""
USUAL = ("fitted 2", "fitted 2, feedback 0.5", "fitted 1, feedback 0.8", "taylor 2", "taylor 1", "goc 0.8")
"""What is chosen from by default: with and without weights that are fitted, with and without feedback."""


def tune(
    target: Any,
    conditions: Sequence[Condition],
    *,
    num_steps: int,
    budget: Budget | Sequence[Budget] = 1 / 3,
    held_out: Sequence[Condition] = (),
    forecasts: Sequence[str] = USUAL,
    guidance: float = 1.5,
    seed: int = 1000,
    held_out_seed: int = 2000,
    batch: int = 32,
    number: int = 48,
    longest: int = 8,
    search_seed: int = 0,
    correcting: bool = True,
    polishing: bool = True,
    path: str | os.PathLike[str] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_step: OnStep | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> Tuned:
    """The schedule and forecast that come closest to the samples without a cache, for each budget.

    One pass without a cache measures how alike the features of different steps are (`products.Products`), and with it
    the error of every (step, gap, forecast). What an error at a step does to the image is a gain that is learned from
    schedules that are sampled with (`surrogate`); under these, dynamic programming proposes the best schedule
    (`optimal`), samples tell how good it is, and so on; then its neighbours. The finalists are sampled with again, from
    other noise: seeds ``seed + 1`` to ``seed + 3``.

    target: a DiTPipeline, a text-to-image pipeline, the bundled models, or any `sources.Source`. conditions: class
    labels or texts, one sample each. budget: a share of the multiply-accumulates of a run without a cache,
    `Milliseconds` for a batch, `AtLeast` so many dB; or several, which share what is learned. held_out: other
    conditions, sampled from ``held_out_seed``, that judge what was found. forecasts: names to choose from, as
    `trials.FORECASTS` says. number: schedules to sample with for each number of computed steps. correcting: try EOC's
    correction, which brings tensors into the plan. polishing: move the weights of what was found by what that does to
    the images (`polish`). A plan with either, or with fitted weights, cannot be stretched.

    path: a file, written after every trial; an interrupted tuning goes on from it. The same arguments give the same
    plans (a time, as long as it comes to as many steps). Of several processes (torchrun, accelerate launch), each
    samples its share of the batches, and all return the same. on_start: called with the number of model calls to come;
    on_step: after each; on_trial: after each schedule. Raises SearchFileError if ``path`` holds another tuning,
    InputError for a budget that no schedule fits.
    """
    source = as_source(target)
    labels, others = check_conditions(source, conditions), check_conditions(source, held_out)
    budgets = tuple(budget) if isinstance(budget, Sequence) else (budget,)
    for name in forecasts:
        trials.forecast_of(name, Products((), num_steps))
        if trials.unmoved(name) != name:
            raise InputError(
                f"{name!r} names weights that were moved; tuning moves them itself: {trials.unmoved(name)!r}."
            )
    if not labels or not budgets or not forecasts or min(batch, number, num_steps) < 1 or longest < 2:
        raise InputError(
            "Tuning needs a condition, a budget and a forecast; a batch, a number of schedules and steps from 1 on; "
            "and a longest interval of at least 2."
        )
    if set(others) & set(labels) and seed <= held_out_seed <= seed + NOISES:
        raise InputError(
            f"held_out shares conditions and noise with what is tuned on (seeds {seed} to {seed + NOISES}): give "
            "another held_out_seed."
        )
    run = _Tuning(source, settings_of(source, labels, num_steps, guidance, seed, batch, forecasts, longest, number,
                                    search_seed), correcting, polishing, path, on_step, on_trial)  # fmt: skip
    asked = [run.counts.of(each) for each in budgets]
    if on_start is not None:
        judging = run.calls(len(others), 0) * (1 + len(asked))
        on_start(run.calls(len(labels), run.searches(asked)) + judging)
    return run.finish(asked, others, held_out_seed)


class _Tuning:
    """One tuning: samples with schedules, remembers what they did."""

    def __init__(
        self,
        source: Source,
        settings: Settings,
        correcting: bool,
        polishing: bool,
        path: str | os.PathLike[str] | None,
        on_step: OnStep | None,
        on_trial: Callable[[Trial], None] | None,
    ) -> None:
        self._world = distributed.current()
        self._source, self._settings = source, settings
        self._correct, self._polish = correcting, polishing
        self._path = Path(path) if path is not None else None
        self._on_step, self._on_trial = on_step, on_trial
        self.counts = Counts(source, settings, self._world)
        self._samples = Samples(source, settings.batch, self._world, on_step)
        self._grid: Grid = grid(source.target, settings.num_steps)
        self._how = Sampling(settings.num_steps, settings.guidance, settings.seed)
        self._known: dict[tuple[str, str, int], Trial] = self._load()
        self._uncached: dict[int, Tensor] = {}
        self._found: dict[int, tuple[Trial, Trial]] = {}
        self._products: Products

    def searches(self, asked: Sequence[int | AtLeast]) -> int:
        """How many numbers of computed steps are searched, at most."""
        return sum(len(self.counts.possible).bit_length() if isinstance(each, AtLeast) else 1 for each in asked)

    def calls(self, samples: int, searches: int) -> int:
        """Model calls of this process, at most: of a pass without a cache and of all trials."""
        batches, steps = len(starts(self._world, samples, self._settings.batch)), self._settings.num_steps
        runs = self._settings.trials + proposals.LAST + FINALISTS * NOISES
        if self._polish:
            once = 1 + len(polish.WAYS) * (steps - self.counts.possible[0]) + 1 + NOISES
            runs += polish.rounds() * once + (polish.SCHEDULES - 1) * NOISES
        return batches * steps * (1 + NOISES * bool(searches) + searches * runs)

    def finish(self, asked: Sequence[int | AtLeast], others: tuple[Condition, ...], held_out_seed: int) -> Tuned:
        """asked: computed steps, or how good the images have to be."""
        settings = self._settings
        self._products, self._uncached[0] = observe(
            self._source, settings.conditions, self._how, settings.batch, self._on_step, self._world
        )
        learned = proposals.Learned(self._products, settings.forecasts, settings.longest, self._correct)
        chosen = [
            self._cheapest(learned, each, number) if isinstance(each, AtLeast) else self._tuned(learned, each, number)
            for number, each in enumerate(asked)
        ]
        everything = tuple(learned.trials)
        unseen = self._judged([trial for trial, _ in chosen], others, held_out_seed) if others else ()
        plans = tuple(
            self._described(trial, unseen[place] if unseen else None) for place, (trial, _) in enumerate(chosen)
        )
        best, even = zip(*chosen, strict=True)
        surrogate = learned.surrogate(trials.unmoved(best[0].forecast))
        predicted = tuple(surrogate.decibels(learned.errors(trial)) for trial in everything)
        return Tuned(plans, best, even, unseen, everything, predicted, surrogate)

    def _cheapest(self, learned: proposals.Learned, wanted: AtLeast, number: int) -> tuple[Trial, Trial]:
        """The best trial of the fewest computed steps that reach so many dB, found by halving what is possible."""
        found, left = None, self.counts.possible
        while left:
            middle = len(left) // 2
            tuned = self._tuned(learned, left[middle], number)
            if tuned[0].psnr >= wanted.decibels:
                found, left = tuned, left[:middle]
            else:
                left = left[middle + 1 :]
        if found is None:
            best = max((each for each, _ in self._found.values()), key=lambda trial: trial.psnr)
            raise InputError(
                f"At least {wanted.decibels:g} dB were asked for, and no plan comes to that: the best had "
                f"{best.psnr:.2f} dB with {best.computed} of {len(best.pattern)} steps computed. Ask for less, or "
                "sample without a cache; with path= (or --out) nothing that was sampled is lost to other budgets."
            )
        return found

    def _tuned(self, learned: proposals.Learned, count: int, number: int) -> tuple[Trial, Trial]:
        """The best trial of a budget, and the best one with an even schedule, both judged on more noise.

        What is best of many on few samples is partly luck, so the finalists are sampled with again.
        """
        if count not in self._found:
            search = proposals.Search(learned, count, self._settings.trials, self._settings.search_seed + number)
            while (proposed := search.propose()) is not None:
                search.tell(self._try(*proposed))
            judged = [self._again(trial) for trial in search.finalists(FINALISTS)]
            even = [trial for trial in judged if search.is_even(trial)]
            best = max(judged, key=lambda trial: trial.psnr)
            best = self._polished_of(best, search) if self._polish else best
            self._found[count] = best, max(even, key=lambda trial: trial.psnr)
        return self._found[count]

    def _polished_of(self, best: Trial, search: proposals.Search) -> Trial:
        """The best trial or one with another schedule, whichever is best after a round, polished to the end."""
        others = [trial for trial in search.schedules(polish.SCHEDULES) if trial.pattern != best.pattern]
        tried = [best, *map(self._again, others[: polish.SCHEDULES - 1])]
        once = [self._polished(trial, 1) for trial in tried]
        return self._polished(max(once, key=lambda trial: trial.psnr), polish.ROUNDS - 1)

    def _polished(self, trial: Trial, rounds: int) -> Trial:
        """The trial with the weights of its steps moved, as long as that is better on all noise."""
        labels = self._settings.conditions
        for _ in range(rounds):
            plan = self._plan(trial.pattern, trial.forecast)
            places = polish.movable(plan)
            if not places:
                break
            slopes = polish.Slopes(self._sampled(plan, labels, self._how), self._uncached[0])
            for place in places:
                by = polish.MOVE[place[0]]
                alone = self._plan(trial.pattern, trials.moved(trial.forecast, trial.pattern, {place: by}))
                slopes.add(self._sampled(alone, labels, self._how), by)
            found = polish.step(self._world.totals(slopes.sums()), [polish.MOST[way] for way, _ in places])
            moves = dict(zip(places, found, strict=True))
            tried = self._again(replace(trial, forecast=trials.moved(trial.forecast, trial.pattern, moves)))
            if tried.psnr <= trial.psnr:
                break
            trial = tried
        return trial

    def _again(self, trial: Trial) -> Trial:
        """The trial with the mean PSNR over all noise."""
        found = [self._try(trial.pattern, trial.forecast, noise).psnr for noise in range(NOISES + 1)]
        return replace(trial, psnr=sum(found) / len(found))

    def _try(self, pattern: str, forecast: str, noise: int = 0) -> Trial:
        if (pattern, forecast, noise) in self._known:
            return self._known[pattern, forecast, noise]
        labels, how = self._settings.conditions, replace(self._how, seed=self._settings.seed + noise)
        if noise not in self._uncached:
            self._uncached[noise] = self._samples.images(labels, how)
        near = self._near(self._plan(pattern, forecast), labels, how, self._uncached[noise])
        trial = Trial(pattern, forecast, near, noise)
        self._known[trial.key] = trial
        if self._path is not None and self._world.leads:
            trials.write(self._path, plain(self._settings), self._known)
        if self._on_trial is not None:
            self._on_trial(trial)
        return trial

    def _sampled(self, plan: Plan, labels: Sequence[Condition], how: Sampling) -> Tensor:
        with apply(self._source.target, plan):
            return self._samples.images(labels, how)

    def _near(self, plan: Plan, labels: Sequence[Condition], how: Sampling, uncached: Tensor) -> float:
        return self._samples.psnr(self._sampled(plan, labels, how), uncached)

    def _plan(self, pattern: str, forecast: str) -> Plan:
        base = explicit(pattern=pattern)
        found = trials.forecast_of(forecast, self._products)
        moves = trials.moves_of(forecast, pattern)
        method = Method(
            f"tuned({pattern!r}, {trials.told(forecast)!r})",
            base.schedule,
            polish.Moved(found, moves) if moves else found,
            correction=trials.correction_of(forecast, self._products),
        )
        return method.plan(self._grid)

    def _judged(self, found: Sequence[Trial], others: tuple[Condition, ...], seed: int) -> tuple[float, ...]:
        how = replace(self._how, seed=seed)
        uncached = self._samples.images(others, how)
        plans = [self._plan(trial.pattern, trial.forecast) for trial in found]
        return tuple(self._near(plan, others, how, uncached) for plan in plans)

    def _described(self, trial: Trial, unseen: float | None) -> Plan:
        mine = [each for each in self._known.values() if each.computed == trial.computed and not each.noise]
        tried = sum(trials.unmoved(each.forecast) == each.forecast for each in mine)
        plan = self._plan(trial.pattern, trial.forecast)
        return replace(plan, provenance={**plan.provenance, **provenance(self._settings, trial, tried, NOISES, unseen)})

    def _load(self) -> dict[tuple[str, str, int], Trial]:
        if self._path is None or not self._path.exists():
            return {}
        settings, known = trials.read(self._path)
        mine = plain(self._settings)
        differ = [name for name in mine if name != "fingerprint" and settings.get(name) != mine[name]]
        if not is_same(str(settings.get("fingerprint")), self._settings.fingerprint):
            differ.append("fingerprint")
        if differ:
            raise SearchFileError(
                f"{self._path} holds another tuning ({', '.join(differ)} differ): write to another file, or delete it "
                "first."
            )
        if strange := [each.pattern for each in known.values() if len(each.pattern) != self._settings.num_steps]:
            raise SearchFileError(f"{self._path} has a pattern of another length, {strange[0]}: delete it.")
        return known
