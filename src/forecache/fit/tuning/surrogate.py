"""A model of what a schedule does to the images: the sum over steps of the features' squared error times a gain.

An error at a step reaches the image through the rest of the trajectory, and does so nearly linearly (docs/tuning.md has
the measurement). So errors of different steps add up, with one gain for every step. The gains are those that explain
the measured samples best: smooth over the steps, never negative.

T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forecache.fit.tuning.gram import Array

KNOTS = 12
"""Largest number of points, evenly spaced over the steps, that the gains are interpolated between."""
TRIALS_PER_KNOT = 4
"""Trials for every point beyond the first three."""
FLOOR = 0.1
"""Smallest gain, as a share of the median one: few trials may show by accident that a step does not matter."""
RIDGE = 0.3
"""Strength of the preference for equal shares of the points, where the measured samples do not decide."""
SWEEPS = 400
"""Sweeps of coordinate descent."""


@dataclass(frozen=True)
class Surrogate:
    """The expected error of an image.

    gains: (T,), what a squared error of the features at each step adds to the squared error of an image.
    """

    gains: Array

    def predict(self, errors: Array) -> float:
        """The expected squared error of an image; errors: (T,), as `Gram.errors` gives them."""
        return float(errors @ self.gains)

    def decibels(self, errors: Array) -> float:
        """The expected PSNR to the uncached image, in dB."""
        return float(-10 * np.log10(max(self.predict(errors), 1e-10)))

    def jittered(self, rng: np.random.Generator, strength: float = 0.35) -> Surrogate:
        """A surrogate whose gains differ by a random smooth factor: another one that might be true."""
        hats = basis(len(self.gains))
        factors = np.exp(hats @ rng.normal(0, strength, hats.shape[1]))
        return Surrogate(self.gains * factors)


def basis(num_steps: int, knots: int = KNOTS) -> Array:
    """Hat functions (T, knots) over the steps."""
    places = np.linspace(0, num_steps - 1, min(knots, num_steps))
    return np.stack([np.interp(np.arange(num_steps), places, hat) for hat in np.eye(len(places))], 1)


def fit(errors: Sequence[Array], decibels: Sequence[float]) -> Surrogate:
    """The gains that explain measured schedules, given the errors (T,) of each and its PSNR to the uncached images.

    Deviations count relative to the measured error, and better schedules count more.
    """
    rows = np.stack(errors)
    hats = basis(rows.shape[1], min(KNOTS, 3 + len(rows) // TRIALS_PER_KNOT))
    measured = 10 ** (-np.asarray(decibels) / 10)
    weights = np.sqrt(measured.min() / measured)
    explained = rows @ hats / measured[:, None]
    scale = explained.mean(0) + 1e-30
    knots = hats.shape[1]
    even = np.full(knots, RIDGE / knots)
    system = np.vstack([explained / scale * weights[:, None], RIDGE * np.eye(knots)])
    gains = hats @ (nonnegative(system, np.concatenate([weights, even])) / scale)
    return Surrogate(np.maximum(gains, FLOOR * np.median(gains)))


def uninformed(gram: Array) -> Surrogate:
    """The surrogate before anything is measured: an error counts by its share of the feature; gram: (T, T)."""
    return Surrogate(1 / np.maximum(np.diag(gram), 1e-30))


def nonnegative(system: Array, target: Array) -> Array:
    """The x >= 0 that minimises ``|system x - target|``, by coordinate descent (the problem is convex)."""
    square, right = system.T @ system, system.T @ target
    solution = np.zeros(len(right))
    for _ in range(SWEEPS):
        for entry in range(len(solution)):
            rest = right[entry] - square[entry] @ solution + square[entry, entry] * solution[entry]
            solution[entry] = max(0.0, rest / square[entry, entry])
    return solution
