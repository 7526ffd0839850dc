"""A model of what a schedule does to the images: the sum over steps of the features' squared error times a gain.

An error at a step matters for the image by its way through the rest of the trajectory. That an error's way is nearly
linear is measured (docs/tuning.md); so errors of different steps add up, and a gain for every step says how much. The
gains are those that explain measured samples best: smooth over the steps, never negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forecache.fit.tuning.products import Table

KNOTS = 12
"""The gains are a line through at most so many points, evenly spaced over the steps."""
TRIALS_PER_KNOT = 4
"""Fewer points, as long as fewer schedules were sampled with."""
FLOOR = 0.1
"""No gain is below this share of the median one: that a step does not matter at all is an accident of few trials."""
RIDGE = 0.3
"""How strongly equal shares of the knots are preferred, where the measured samples do not say otherwise."""
SWEEPS = 400


@dataclass(frozen=True)
class Surrogate:
    """gains: (T,), what a squared error at each step adds to the squared error of an image."""

    gains: Table

    def predict(self, errors: Table) -> float:
        """The expected squared error of an image; errors: (T,) as `Products.errors` gives them."""
        return float(errors @ self.gains)

    def decibels(self, errors: Table) -> float:
        """The expected PSNR to the uncached image."""
        return float(-10 * np.log10(max(self.predict(errors), 1e-10)))

    def jittered(self, rng: np.random.Generator, strength: float = 0.35) -> Surrogate:
        """Gains that are off by a random smooth factor: what else might be true."""
        hats = basis(len(self.gains))
        factors = np.exp(hats @ rng.normal(0, strength, hats.shape[1]))
        return Surrogate(self.gains * factors)


def basis(num_steps: int, knots: int = KNOTS) -> Table:
    """Hat functions (T, knots) over the steps."""
    places = np.linspace(0, num_steps - 1, min(knots, num_steps))
    return np.stack([np.interp(np.arange(num_steps), places, hat) for hat in np.eye(len(places))], 1)


def fit(errors: Sequence[Table], decibels: Sequence[float]) -> Surrogate:
    """The gains that explain measured schedules: their errors (T,) each, and their PSNR to the uncached images.

    Errors count relative to what they explain, and the better schedules count more.
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


def uninformed(products: Table) -> Surrogate:
    """Before anything is measured: an error counts by its share of the feature."""
    return Surrogate(1 / np.maximum(np.diag(products), 1e-30))


def nonnegative(system: Table, target: Table) -> Table:
    """The x >= 0 that makes ``|system x - target|`` least, entry by entry in turn (a convex problem)."""
    square, right = system.T @ system, system.T @ target
    found = np.zeros(len(right))
    for _ in range(SWEEPS):
        for entry in range(len(found)):
            rest = right[entry] - square[entry] @ found + square[entry, entry] * found[entry]
            found[entry] = max(0.0, rest / square[entry, entry])
    return found
