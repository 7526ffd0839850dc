"""Drift: how much faster a run changes than the runs that were calibrated.

B batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from forecache.errors import PlanError


@dataclass(frozen=True)
class Changes:
    """The calibrated changes of the model's output between all pairs of steps.

    values: mean|v_t - v_s| / mean|v_t| of all steps s < t, in the order (0, 1), (0, 2), ..., (1, 2), ...

    Raises PlanError for values that are no such table.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        steps = self.num_steps
        if steps < 2 or steps * (steps - 1) // 2 != len(self.values):
            raise PlanError(
                "Calibrated changes are a number for every pair of steps, such as 190 for 20 steps; "
                f"{len(self.values)} were given: measure them, "
                "forecache.calibrate(pipe, conditions, num_steps=20).known_signals().output_changes()."
            )
        if not all(0 <= value < math.inf for value in self.values):
            raise PlanError(
                "Calibrated changes are finite numbers from 0 on, and some of these are not: measure again."
            )

    @property
    def num_steps(self) -> int:
        """Steps of the runs that were measured."""
        return (1 + math.isqrt(1 + 8 * len(self.values))) // 2

    @cached_property
    def _rates(self) -> np.ndarray:
        """Change per step between two steps, (num_steps, num_steps), the same in both directions."""
        steps = self.num_steps
        rates = np.zeros((steps, steps))
        earlier, later = np.triu_indices(steps, 1)
        rates[earlier, later] = rates[later, earlier] = np.asarray(self.values) / (later - earlier)
        beside = np.diag(rates, 1)
        rates[range(steps), range(steps)] = (np.append(beside, beside[-1]) + np.insert(beside, 0, beside[0])) / 2
        return rates

    def between(self, earlier: int, later: int, num_steps: int) -> float:
        """The calibrated change from one step of a run to a later one.

        num_steps: of the run. Where it is not that of the runs that were measured, steps are at the same share of the
            run, and the change per step is linear between those that were measured.
        """
        scale = (self.num_steps - 1) / (num_steps - 1)
        low, high = earlier * scale, later * scale
        rate = 0.0
        for row, in_row in _around(low, self.num_steps):
            for column, in_column in _around(high, self.num_steps):
                rate += in_row * in_column * self._rates[row, column]
        return float(rate * (high - low))


def _around(place: float, length: int) -> list[tuple[int, float]]:
    """The two whole numbers around a place, with its weights."""
    below = min(int(place), length - 2)
    return [(below, below + 1 - place), (below + 1, place - below)]


def change_of_sample(before: Tensor, after: Tensor) -> Tensor:
    """The largest change of a sample between two outputs (B, ...) of a model, mean|after - before| / mean|after|."""
    axes = tuple(range(1, after.ndim))
    change_B = (after - before).abs().mean(axes) / after.abs().mean(axes)
    return change_B.max()  # not a number where one of them is not
