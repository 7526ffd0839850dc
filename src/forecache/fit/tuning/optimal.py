"""The schedule with the least expected error, by dynamic programming over the last three computed steps.

Under a forecast from computed features the error at a step depends on it and on the computed steps before it; with
gains it adds up, so the best way to a state is the best way to one before it and one more gap. T steps.
"""

from __future__ import annotations

import numpy as np

from forecache.fit.tuning.products import Products, Table
from forecache.parts.forecasts import Forecast

LONGEST = 8
"""The longest interval between computed steps that is looked at."""


class Optimal:
    """The best patterns for a forecast that reads up to three computed features."""

    def __init__(self, products: Products, forecast: Forecast, longest: int = LONGEST) -> None:
        self.longest = longest
        self._steps = products.table.shape[1]
        self._errors = self._table(products, forecast)

    def _table(self, products: Products, forecast: Forecast) -> Table:
        """Errors [c0, a, b, d]: of step c0 + d where c0, c0 - a and c0 - a - b were computed; a or b 0: not so many."""
        size = self.longest
        table = np.full((self._steps, size + 1, size + 1, size), np.inf)
        for newest in range(self._steps):
            for before in range(min(newest, size) + 1):
                for third in range(min(newest - before, size) + 1 if before else 1):
                    past = [newest, newest - before, newest - before - third][: 1 + (before > 0) + (third > 0)]
                    if min(past) > 0 and len(past) < 3:
                        continue  # step 0 is computed: the past is shorter only where it begins there
                    table[newest, before, third, 0] = 0.0
                    for ahead in range(1, min(size, self._steps - newest)):
                        table[newest, before, third, ahead] = products.error(newest + ahead, past, forecast)
        return table

    def pattern(self, gains: Table, count: int) -> str:
        """The pattern of ``count`` computed steps with the least sum of errors times gains."""
        costs = self._costs(gains)
        size = self.longest
        best = np.full((count, self._steps, size + 1, size + 1), np.inf)
        came = np.zeros((count, self._steps, size + 1, size + 1), dtype=np.int64)  # third of the state before
        best[0, 0, 0, 0] = 0.0
        for number in range(1, count):
            for newest in range(self._steps):
                for gap in range(1, min(size, self._steps - 1 - newest) + 1):
                    total = best[number - 1, newest] + costs[newest, :, :, gap - 1]
                    came[number, newest + gap, gap] = total.argmin(1)
                    best[number, newest + gap, gap] = total.min(1)
        ends = best[-1] + np.stack([self._end(costs, newest) for newest in range(self._steps)])
        return self._back(came, np.unravel_index(int(ends.argmin()), ends.shape), count)

    def _costs(self, gains: Table) -> Table:
        """[c0, a, b, k]: of the k skipped steps after c0, together."""
        costs = np.zeros_like(self._errors)
        for ahead in range(1, self.longest):
            after = np.minimum(np.arange(self._steps) + ahead, self._steps - 1)
            with np.errstate(invalid="ignore"):  # what cannot be, times a gain of zero
                costs[..., ahead] = costs[..., ahead - 1] + self._errors[..., ahead] * gains[after, None, None]
        costs[np.isnan(costs)] = np.inf
        return np.where(np.isinf(self._errors[..., :1]), np.inf, costs)

    def _end(self, costs: Table, newest: int) -> Table:
        """Of the steps that are skipped after the last computed one."""
        left = self._steps - 1 - newest
        return costs[newest, :, :, left] if left < self.longest else np.full(costs.shape[1:3], np.inf)

    def _back(self, came: np.ndarray, state: tuple[np.intp, ...], count: int) -> str:
        newest, before, third = (int(each) for each in state)
        chosen = {newest}
        for number in range(count - 1, 0, -1):
            newest, before, third = newest - before, third, int(came[number, newest, before, third])
            chosen.add(newest)
        return "".join("#" if step in chosen else "." for step in range(self._steps))
