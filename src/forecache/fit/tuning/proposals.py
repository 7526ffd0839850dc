"""Which schedule to sample with next: even and random ones first, then those that the surrogate expects to be best.

A search for one number of computed steps goes through stages: the even schedule under every forecast; random smooth
schedules, from which the surrogate learns; the optimal schedule under gains that are a little off, round by round; then
neighbours of the best one, in the surrogate's order. The forecast is that of the best trial, and when the schedules are
used up, feedback and correction of the best one are made stronger and weaker once more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from forecache.fit.tuning import surrogate
from forecache.fit.tuning.forecasts import ForecastSpec, scheduling_forecast
from forecache.fit.tuning.gram import Array, Gram
from forecache.fit.tuning.optimal import OptimalSchedules
from forecache.fit.tuning.surrogate import Surrogate
from forecache.fit.tuning.trials import Trial
from forecache.parts import patterns
from forecache.parts.forecasts import Forecast

Proposal = tuple[str, ForecastSpec]
"""Pattern and forecast."""
RANDOM = 6
"""Random schedules of the first search; half as many in the later ones, which know its trials."""
DRAWS = 200
"""Draws of a random schedule before the search takes an even one, because the intervals were always too long."""
ROUND = 3
"""Schedules that are proposed before the surrogate learns again."""
OPTIMAL_SHARE = 0.45
"""Share of the trials after the random ones that are optimal under the surrogate; the rest are neighbours."""
ENOUGH = 8
"""Trials of one forecast from which its gains are learned without the trials of the others."""
STRETCH = 1.75
"""Longest interval of a schedule proposed as optimal, in mean intervals; over longer ones errors are large."""
LAST = 12
"""Largest number of trials of a search after its schedules."""
MOVES = (-2, -1, 1, 2)
"""How far a neighbour moves a computed step, in steps."""


class TrialHistory:
    """All trials of a tuning, and what they teach about every number of computed steps.

    gram: the Gram matrices of the model's features.
    forecasts: the forecasts to choose from.
    longest: longest interval between computed steps, in steps.
    correcting: whether EOC's correction is tried.
    trials: the trials so far, in order.
    """

    def __init__(self, gram: Gram, forecasts: Sequence[ForecastSpec], longest: int, correcting: bool = True) -> None:
        self.gram, self.forecasts, self.longest, self.correcting = gram, tuple(forecasts), longest, correcting
        self.trials: list[Trial] = []
        self._forecasts: dict[ForecastSpec, Forecast] = {}
        self._errors: dict[Proposal, Array] = {}
        self._optimal: dict[tuple[ForecastSpec, int], OptimalSchedules] = {}

    def forecast(self, spec: ForecastSpec) -> Forecast:
        """The forecast of a spec, built once."""
        if spec not in self._forecasts:
            self._forecasts[spec] = spec.forecast(self.gram)
        return self._forecasts[spec]

    def add(self, trial: Trial) -> None:
        """Adds a trial, unless it is there."""
        if trial not in self.trials:
            self.trials.append(trial)

    def errors(self, pattern: str, forecast: ForecastSpec) -> Array:
        """The expected squared errors (T,) of the features under a pattern and a forecast."""
        if (pattern, forecast) not in self._errors:
            self._errors[pattern, forecast] = self.gram.errors(pattern, self.forecast(forecast))
        return self._errors[pattern, forecast]

    def surrogate(self, forecast: ForecastSpec) -> Surrogate:
        """The surrogate learned from the trials of a forecast, or from all trials where it has few.

        Feedback lets errors cancel, so that the same error counts for less than under another forecast.
        """
        own = [trial for trial in self.trials if trial.forecast == forecast]
        trials = own if len(own) >= ENOUGH else self.trials
        if len(trials) < 2:
            return surrogate.uninformed(self.gram.pooled)
        errors = [self.errors(trial.pattern, trial.forecast) for trial in trials]
        return surrogate.fit(errors, [trial.own for trial in trials])

    def optimal(self, forecast: ForecastSpec, longest: int) -> OptimalSchedules:
        """The optimal schedules under a forecast, computed once."""
        if (forecast, longest) not in self._optimal:
            rule = scheduling_forecast(self.forecast(forecast))
            self._optimal[forecast, longest] = OptimalSchedules(self.gram, rule, longest)
        return self._optimal[forecast, longest]


class ScheduleSearch:
    """The search for one number of computed steps: `propose` names the next trial, `tell` hands in its outcome."""

    def __init__(self, history: TrialHistory, count: int, number: int, seed: int, last: int | None = None) -> None:
        self._last = LAST if last is None else last
        self._history, self._count, self._number = history, count, number
        self._rng = np.random.default_rng([seed, count])
        self._trials: list[Trial] = []
        self._proposed: set[Proposal] = set()
        self._stages, self._last_stage = self._all_stages(), self._strengths()

    @property
    def best(self) -> Trial:
        """The best trial so far."""
        return max(self._trials, key=lambda trial: trial.psnr)

    def is_even(self, trial: Trial) -> bool:
        """Whether the trial's schedule is an even one."""
        return trial.pattern in self._even()

    def finalists(self, count: int) -> list[Trial]:
        """The best trials, at most ``count``, the best two with an even schedule among them."""
        ranked = sorted(self._trials, key=lambda trial: -trial.psnr)
        even = [trial for trial in ranked if self.is_even(trial)][:2]
        others = [trial for trial in ranked if trial not in even]
        return [*even, *others[: max(0, count - len(even))]]

    def best_by_schedule(self, count: int) -> list[Trial]:
        """The best trial of each of the ``count`` best schedules."""
        best: dict[str, Trial] = {}
        for trial in sorted(self._trials, key=lambda trial: -trial.psnr):
            best.setdefault(trial.pattern, trial)
        return list(best.values())[:count]

    def propose(self) -> Proposal | None:
        """A pattern and a forecast that were not proposed before; None when the search is over."""
        stages = self._stages if len(self._trials) < self._number else self._last_stage
        for proposal in stages if len(self._trials) < self._number + self._last else ():
            if proposal not in self._proposed:
                self._proposed.add(proposal)
                return proposal
        return None

    def tell(self, trial: Trial) -> None:
        """Hands in the outcome of the last proposal."""
        self._trials.append(trial)
        self._history.add(trial)

    def _all_stages(self) -> Iterator[Proposal]:
        for forecast in self._history.forecasts:
            for pattern in self._even():
                yield pattern, forecast
        informed = len(self._history.trials) > len(self._trials)
        for _ in range(RANDOM // 2 if informed else RANDOM):
            yield self.random(), self.best.forecast
        last = len(self._trials) + OPTIMAL_SHARE * (self._number - len(self._trials))
        idle = 0
        while len(self._trials) < last and idle < 8:
            before = len(self._trials)
            yield from self._optimal()
            idle = idle + 1 if len(self._trials) == before else 0
        for forecast in self._history.forecasts:
            yield self.best.pattern, forecast
        yield from self._strengths()
        reach = 0
        while reach < 3:
            best = self.best
            yield from self._neighbours(reach)
            reach = 0 if self.best is not best else reach + 1
            if reach == 1:
                yield from self._strengths()

    def _even(self) -> tuple[str, ...]:
        """The evenly spread schedule, and FORA's before it if an interval gives that number of computed steps."""
        num_steps = self._history.gram.num_steps
        spread = {round(number * num_steps / self._count - 1e-9) for number in range(self._count)}
        fora = set(range(0, num_steps, -(-num_steps // self._count)))
        schedules = [steps for steps in (fora, spread) if len(steps) == self._count]
        return tuple(dict.fromkeys(patterns.from_steps(steps, num_steps) for steps in schedules))

    def random(self) -> str:
        """A schedule with a random smooth density of computed steps; an even one where hardly any is allowed."""
        num_steps = self._history.gram.num_steps
        for _ in range(DRAWS):
            knots = self._rng.normal(0, 0.5, 5)
            density = np.exp(np.interp(np.arange(num_steps), np.linspace(0, num_steps - 1, 5), knots))
            share = np.cumsum(density) / density.sum()
            wanted = (np.arange(1, self._count) + self._rng.uniform(-0.3, 0.3, self._count - 1)) / self._count
            computed = {0, *np.searchsorted(share, wanted).tolist()}
            spare = [step for step in range(num_steps) if step not in computed]
            computed |= set(self._rng.permutation(spare)[: self._count - len(computed)].tolist())
            pattern = patterns.from_steps(computed, num_steps)
            if self._is_allowed(pattern):
                return pattern
        return self._even()[0]

    def _is_allowed(self, pattern: str) -> bool:
        return max(map(len, pattern.split("#"))) < self._history.longest

    def _optimal(self) -> Iterator[Proposal]:
        """The optimal schedule under the surrogate, then under others that might be true."""
        forecast = self.best.forecast
        learned = self._history.surrogate(forecast)
        mean = len(learned.gains) / self._count
        optimal = self._history.optimal(forecast, min(self._history.longest, math.ceil(STRETCH * mean)))
        for number in range(ROUND):
            gains = learned.gains if number == 0 else learned.jittered(self._rng).gains
            yield optimal.pattern(gains, self._count), forecast

    def _strengths(self) -> Iterator[Proposal]:
        """The best schedule with more feedback, and with less, as long as that helps; then the correction likewise."""
        changes = [(ForecastSpec.strengthened, 0.15), (ForecastSpec.strengthened, -0.15)]
        if self._history.correcting:
            changes += [(ForecastSpec.corrected, 0.3), (ForecastSpec.corrected, -0.3)]
        for change, by in changes:
            best = None
            while best is not self.best:
                best = self.best
                forecast = change(best.forecast, by)
                if forecast is not None:
                    yield best.pattern, forecast

    def _neighbours(self, reach: int) -> Iterator[Proposal]:
        """The next schedules, in the surrogate's order, that move one or (reach > 0) two computed steps of the best."""
        best = self.best
        learned = self._history.surrogate(best.forecast)
        steps = patterns.computed(best.pattern)
        neighbours = [self._moved(steps, index, by) for index in range(1, len(steps)) for by in MOVES]
        if reach:
            pairs = self._rng.integers(1, len(steps), (200, 2)) if len(steps) > 1 else []
            moves = self._rng.choice(MOVES, (len(pairs), 2))
            neighbours += [
                self._moved(patterns.computed(self._moved(steps, a, int(x)) or best.pattern), b, int(y))
                for (a, b), (x, y) in zip(pairs, moves, strict=True)
            ]
        fresh = {
            pattern
            for pattern in neighbours
            if pattern and (pattern, best.forecast) not in self._proposed and self._is_allowed(pattern)
        }
        expected = {pattern: learned.predict(self._history.errors(pattern, best.forecast)) for pattern in fresh}
        for pattern in sorted(fresh, key=lambda pattern: (expected[pattern], pattern))[: 2 * ROUND]:
            yield pattern, best.forecast
            if self.best is not best:
                return

    def _moved(self, computed: Sequence[int], index: int, by: int) -> str | None:
        """The pattern with one computed step moved; None if it would leave the run or meet another one."""
        num_steps, step = self._history.gram.num_steps, computed[index] + by
        if not 0 < step < num_steps or step in computed:
            return None
        return patterns.from_steps({*computed[:index], *computed[index + 1 :], step}, num_steps)
