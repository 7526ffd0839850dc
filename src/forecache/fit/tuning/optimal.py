"""The schedule with the least expected error, by dynamic programming over the last three computed steps.

The error of a forecast from computed features depends on the step and on the computed steps before it; weighted with
gains, errors of different steps add up. So the best way to a state is the best way to a state before it and one more
gap. T steps.
"""

from __future__ import annotations

import numpy as np

from forecache.fit.tuning.gram import Array, Gram
from forecache.parts import patterns
from forecache.parts.forecasts import Forecast

LONGEST = 8
"""Longest interval between computed steps that is considered, in steps."""


class OptimalSchedules:
    """The schedules of least expected error under a forecast that reads up to three computed features."""

    def __init__(self, gram: Gram, forecast: Forecast, longest: int = LONGEST) -> None:
        self.longest = longest
        self._steps = gram.num_steps
        self._errors = self._error_table(gram, forecast)

    def _error_table(self, gram: Gram, forecast: Forecast) -> Array:
        """(T, L+1, L+1, L), entry [c, a, b, d]: the error at step c + d after the computed steps c, c - a, c - a - b.

        a or b is 0 where fewer steps were computed; infinite where the state cannot occur.
        """
        size = self.longest
        table = np.full((self._steps, size + 1, size + 1, size), np.inf)
        for newest in range(self._steps):
            for second in range(min(newest, size) + 1):
                for third in range(min(newest - second, size) + 1 if second else 1):
                    computed = [newest, newest - second, newest - second - third][: 1 + (second > 0) + (third > 0)]
                    if min(computed) > 0 and len(computed) < 3:
                        continue  # step 0 is always computed: there are fewer than three only if step 0 is among them
                    table[newest, second, third, 0] = 0.0
                    for ahead in range(1, min(size, self._steps - newest)):
                        table[newest, second, third, ahead] = gram.error(newest + ahead, computed, forecast)
        return table

    def pattern(self, gains: Array, count: int) -> str:
        """The pattern with ``count`` computed steps whose sum of errors times gains (T,) is least."""
        costs = self._costs(gains)
        size = self.longest
        best = np.full((count, self._steps, size + 1, size + 1), np.inf)
        previous_third = np.zeros((count, self._steps, size + 1, size + 1), dtype=np.int64)
        best[0, 0, 0, 0] = 0.0
        for number in range(1, count):
            for newest in range(self._steps):
                for gap in range(1, min(size, self._steps - 1 - newest) + 1):
                    total = best[number - 1, newest] + costs[newest, :, :, gap - 1]
                    previous_third[number, newest + gap, gap] = total.argmin(1)
                    best[number, newest + gap, gap] = total.min(1)
        complete = best[-1] + np.stack([self._cost_of_the_rest(costs, newest) for newest in range(self._steps)])
        return self._backtrack(previous_third, np.unravel_index(int(complete.argmin()), complete.shape), count)

    def _costs(self, gains: Array) -> Array:
        """Entry [c, a, b, k]: the cost of the k skipped steps after c, together."""
        costs = np.zeros_like(self._errors)
        for ahead in range(1, self.longest):
            after = np.minimum(np.arange(self._steps) + ahead, self._steps - 1)
            with np.errstate(invalid="ignore"):  # an infinite error times a gain of zero
                costs[..., ahead] = costs[..., ahead - 1] + self._errors[..., ahead] * gains[after, None, None]
        costs[np.isnan(costs)] = np.inf
        return np.where(np.isinf(self._errors[..., :1]), np.inf, costs)

    def _cost_of_the_rest(self, costs: Array, newest: int) -> Array:
        """The cost of the steps that are skipped after the last computed one, by state."""
        left = self._steps - 1 - newest
        return costs[newest, :, :, left] if left < self.longest else np.full(costs.shape[1:3], np.inf)

    def _backtrack(self, previous_third: np.ndarray, state: tuple[np.intp, ...], count: int) -> str:
        newest, second, third = (int(index) for index in state)
        computed = {newest}
        for number in range(count - 1, 0, -1):
            newest, second, third = newest - second, third, int(previous_third[number, newest, second, third])
            computed.add(newest)
        return patterns.from_steps(computed, self._steps)
