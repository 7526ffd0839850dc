"""Which schedule to sample with next: even and random ones first, then what the surrogate takes for the best.

A search for one number of computed steps goes through stages: the even schedule under every forecast; random smooth
schedules, for the surrogate to learn from; the optimal schedule under gains that are a little off, round by round; then
neighbours of the best one, those first that the surrogate likes best. The forecast follows the best trial, and when the
schedules are used up, feedback and correction of the best one are made stronger and weaker once more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from forecache.fit.tuning import surrogate
from forecache.fit.tuning.optimal import Optimal
from forecache.fit.tuning.products import Products, Table
from forecache.fit.tuning.surrogate import Surrogate
from forecache.fit.tuning.trials import Trial, corrected, forecast_of, varied
from forecache.parts.forecasts import Feedback, Forecast, Gradient, Taylor

RANDOM = 6
"""Random schedules of a search, if nothing was learned before; half of them otherwise."""
TRIES = 200
"""How often a random schedule is drawn again whose intervals are too long."""
ROUND = 3
"""Schedules that are proposed before the surrogate learns again."""
OPTIMAL_SHARE = 0.45
"""Of the trials after the random ones, so many are optimal under the surrogate; the rest are neighbours."""
ENOUGH = 8
"""Trials of one forecast from which its gains are learned by themselves."""
STRETCH = 1.75
"""A schedule that is proposed as optimal has no interval over so many times the mean one: there, errors are large."""
LAST = 12
"""Trials of a search after its schedules, at most."""
STEPS = (-2, -1, 1, 2)
"""How far a neighbour moves a computed step."""


class Learned:
    """What all trials of a tuning taught, for every number of computed steps."""

    def __init__(self, products: Products, forecasts: Sequence[str], longest: int, correcting: bool = True) -> None:
        self.products, self.forecasts, self.longest, self.correcting = products, tuple(forecasts), longest, correcting
        self.trials: list[Trial] = []
        self._made: dict[str, Forecast] = {}
        self._errors: dict[tuple[str, str], Table] = {}
        self._optimal: dict[tuple[str, int], Optimal] = {}

    def forecast(self, name: str) -> Forecast:
        if name not in self._made:
            self._made[name] = forecast_of(name, self.products)
        return self._made[name]

    def add(self, trial: Trial) -> None:
        if trial not in self.trials:
            self.trials.append(trial)

    def errors(self, trial: Trial) -> Table:
        """The errors (T,) that a trial's schedule is expected to make."""
        return self.errors_of(trial.pattern, trial.forecast)

    def errors_of(self, pattern: str, forecast: str) -> Table:
        if (pattern, forecast) not in self._errors:
            self._errors[pattern, forecast] = self.products.errors(pattern, self.forecast(forecast))
        return self._errors[pattern, forecast]

    def surrogate(self, forecast: str) -> Surrogate:
        """The gains by what is known now of one forecast, or of all as long as that is little.

        Feedback lets errors cancel, so that the same error counts for less than under another forecast.
        """
        own = [trial for trial in self.trials if trial.forecast == forecast]
        known = own if len(own) >= ENOUGH else self.trials
        if len(known) < 2:
            return surrogate.uninformed(self.products.pooled)
        return surrogate.fit([self.errors(trial) for trial in known], [trial.psnr for trial in known])

    def optimal(self, forecast: str, longest: int) -> Optimal:
        """For feedback and GOC, that of the Taylor forecast below: their estimates look back without end."""
        if (forecast, longest) not in self._optimal:
            rule = self.forecast(forecast)
            below = Taylor(min(rule.order, 2)) if isinstance(rule, Feedback) else rule
            below = Taylor(1) if isinstance(rule, Gradient) else below
            self._optimal[forecast, longest] = Optimal(self.products, below, longest)
        return self._optimal[forecast, longest]


class Search:
    """The trials of one number of computed steps: `propose` names the next, `tell` is told how it went."""

    def __init__(self, learned: Learned, count: int, number: int, seed: int) -> None:
        self._learned, self._count, self._number = learned, count, number
        self._rng = np.random.default_rng([seed, count])
        self._mine: list[Trial] = []
        self._seen: set[tuple[str, str]] = set()
        self._stages, self._last = self._all(), self._strengths()

    @property
    def best(self) -> Trial:
        return max(self._mine, key=lambda trial: trial.psnr)

    def is_even(self, trial: Trial) -> bool:
        """Whether its schedule is an even one."""
        return trial.pattern in self._even()

    def finalists(self, count: int) -> list[Trial]:
        """The best trials, at most ``count``, and among them the best two with an even schedule."""
        ranked = sorted(self._mine, key=lambda trial: -trial.psnr)
        even = [trial for trial in ranked if self.is_even(trial)][:2]
        others = [trial for trial in ranked if trial not in even]
        return [*even, *others[: max(0, count - len(even))]]

    def schedules(self, count: int) -> list[Trial]:
        """The best trial of each of the best schedules, at most ``count``."""
        best: dict[str, Trial] = {}
        for trial in sorted(self._mine, key=lambda trial: -trial.psnr):
            best.setdefault(trial.pattern, trial)
        return list(best.values())[:count]

    def propose(self) -> tuple[str, str] | None:
        """A pattern and a forecast that were not tried; None when the search is over."""
        stages = self._stages if len(self._mine) < self._number else self._last
        for proposed in stages if len(self._mine) < self._number + LAST else ():
            if proposed not in self._seen:
                self._seen.add(proposed)
                return proposed
        return None

    def tell(self, trial: Trial) -> None:
        self._mine.append(trial)
        self._learned.add(trial)

    def _all(self) -> Iterator[tuple[str, str]]:
        for forecast in self._learned.forecasts:
            for pattern in self._even():
                yield pattern, forecast
        known = len(self._learned.trials) > len(self._mine)
        for _ in range(RANDOM // 2 if known else RANDOM):
            yield self.random(), self.best.forecast
        last = len(self._mine) + OPTIMAL_SHARE * (self._number - len(self._mine))
        idle = 0
        while len(self._mine) < last and idle < 8:
            before = len(self._mine)
            yield from self._optimal()
            idle = idle + 1 if len(self._mine) == before else 0
        for forecast in self._learned.forecasts:
            yield self.best.pattern, forecast
        yield from self._strengths()
        reach = 0
        while reach < 3:
            before = self.best
            yield from self._neighbours(reach)
            reach = 0 if self.best is not before else reach + 1
            if reach == 1:
                yield from self._strengths()

    def _even(self) -> tuple[str, ...]:
        """Computed steps as evenly as they go, and FORA's if an interval gives so many."""
        steps = len(self._learned.products.pooled)
        spread = {round(number * steps / self._count - 1e-9) for number in range(self._count)}
        fora = set(range(0, steps, -(-steps // self._count)))
        return tuple(dict.fromkeys(_picture(each, steps) for each in (fora, spread) if len(each) == self._count))

    def random(self) -> str:
        """Steps of a random smooth density, no interval longer than the longest; even ones where hardly any fits."""
        steps = len(self._learned.products.pooled)
        for _ in range(TRIES):
            knots = self._rng.normal(0, 0.5, 5)
            density = np.exp(np.interp(np.arange(steps), np.linspace(0, steps - 1, 5), knots))
            share = np.cumsum(density) / density.sum()
            wanted = (np.arange(1, self._count) + self._rng.uniform(-0.3, 0.3, self._count - 1)) / self._count
            chosen = {0, *np.searchsorted(share, wanted).tolist()}
            spare = [step for step in range(steps) if step not in chosen]
            chosen |= set(self._rng.permutation(spare)[: self._count - len(chosen)].tolist())
            pattern = _picture(chosen, steps)
            if self._allowed(pattern):
                return pattern
        return self._even()[0]

    def _allowed(self, pattern: str) -> bool:
        return max(map(len, pattern.split("#"))) < self._learned.longest

    def _optimal(self) -> Iterator[tuple[str, str]]:
        """The optimal schedule by the surrogate, and by others that might be true."""
        forecast = self.best.forecast
        found = self._learned.surrogate(forecast)
        mean = len(found.gains) / self._count
        optimal = self._learned.optimal(forecast, min(self._learned.longest, math.ceil(STRETCH * mean)))
        for number in range(ROUND):
            gains = found.gains if number == 0 else found.jittered(self._rng).gains
            yield optimal.pattern(gains, self._count), forecast

    def _strengths(self) -> Iterator[tuple[str, str]]:
        """The best schedule with more feedback, and with less, as long as that helps; then EOC likewise."""
        changes = [(varied, 0.15), (varied, -0.15)]
        changes += [(corrected, 0.3), (corrected, -0.3)] if self._learned.correcting else []
        for change, by in changes:
            best = None
            while best is not self.best:
                best = self.best
                other = change(best.forecast, by)
                if other is not None:
                    yield best.pattern, other

    def _neighbours(self, reach: int) -> Iterator[tuple[str, str]]:
        """Of the schedules that move one or two computed steps of the best, the next few by the surrogate."""
        best = self.best
        found = self._learned.surrogate(best.forecast)
        steps = [step for step, sign in enumerate(best.pattern) if sign == "#"]
        moved = [self._moved(steps, at, by) for at in range(1, len(steps)) for by in STEPS]
        if reach:
            pairs = self._rng.integers(1, len(steps), (200, 2)) if len(steps) > 1 else []
            ways = self._rng.choice(STEPS, (200, 2))
            moved += [
                self._moved(_chosen(self._moved(steps, a, int(x)) or best.pattern), b, int(y))
                for (a, b), (x, y) in zip(pairs, ways, strict=True)
            ]
        fresh = {each for each in moved if each and (each, best.forecast) not in self._seen and self._allowed(each)}
        ranked = sorted(fresh, key=lambda each: (found.predict(self._learned.errors_of(each, best.forecast)), each))
        for pattern in ranked[: 2 * ROUND]:
            yield pattern, best.forecast
            if self.best is not best:
                return

    def _moved(self, chosen: list[int], at: int, by: int) -> str | None:
        steps, place = len(self._learned.products.pooled), chosen[at] + by
        if not 0 < place < steps or place in chosen:
            return None
        return _picture({*chosen[:at], *chosen[at + 1 :], place}, steps)


def _chosen(pattern: str) -> list[int]:
    return [step for step, sign in enumerate(pattern) if sign == "#"]


def _picture(chosen: set[int], steps: int) -> str:
    return "".join("#" if step in chosen else "." for step in range(steps))
