"""Schedules and weights that are best under measured gains, without sampling.

A move shifts weight from one computed feature to the one before it, at one skipped step and all sites: the newest and
the one before, and that one and the one before it. Moves keep the sum of the weights. The error is linear in them, so
that they are a least-squares problem; its ridge is the one that is best on samples that were left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from forecache.errors import InputError
from forecache.fit.gains.gains import Array, Gains, estimates_of
from forecache.parts import patterns
from forecache.parts.forecasts import Forecast
from forecache.parts.grid import Site

RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Ridges to choose from, as shares of the error for moves of `MOVE`."""
MOVE = 0.1
"""The size of a move at which the ridge costs its share."""
FOLDS = 4
"""Parts of the samples, each left out once."""
RESTARTS = 4
"""Random schedules that the search also starts from."""


@dataclass(frozen=True)
class Moved:
    """A forecast with weight moved between the computed features that it reads.

    forecast: the forecast before.
    by: for a skipped step, the weights that move to the newest from the one before, and from that to the one before it.
    """

    forecast: Forecast
    by: Mapping[int, tuple[float, float]] = field(default_factory=dict)

    def reads(self, step: int, computed: Sequence[int], site: Site) -> Mapping[int, float]:
        reads = dict(self.forecast.reads(step, computed, site))
        for place, amount in enumerate(self.by.get(step, ())):
            if amount:
                reads[computed[place]] = reads.get(computed[place], 0.0) + amount
                reads[computed[place + 1]] = reads.get(computed[place + 1], 0.0) - amount
        return reads


def solve(gains: Gains, pattern: str, forecast: Forecast) -> Moved:
    """The forecast with the moves that make the error of a pattern least.

    The ridge is chosen by leaving out a fourth of the samples at a time; no move at all is among the choices. The
    forecast has to read computed features alone, as reuse and Taylor's do. Raises InputError for gains of fewer than 4
    samples.
    """
    if gains.count < FOLDS:
        raise InputError(f"Weights are solved on at least {FOLDS} samples; the gains are of {gains.count}.")
    numbers, columns = _columns(gains, pattern)
    rest = gains.projections_of(pattern, forecast)
    if not numbers:
        return Moved(forecast)
    folds = np.repeat(np.arange(gains.count) % FOLDS, gains.origin.directions)
    left = {ridge: _left_out(columns, rest, ridge, folds) for ridge in RIDGES}
    ridge = min(RIDGES, key=lambda candidate: left[candidate])
    if left[ridge] >= float(np.square(rest).sum()):
        return Moved(forecast)
    by: dict[int, list[float]] = {}
    for (step, place), amount in zip(numbers, _least_squares(columns, rest, ridge), strict=True):
        by.setdefault(step, [0.0, 0.0])[place] = float(amount)
    return Moved(forecast, {step: (amounts[0], amounts[1]) for step, amounts in by.items()})


def _columns(gains: Gains, pattern: str) -> tuple[list[tuple[int, int]], Array]:
    """The possible moves, as (step, place), and the projections (B * D, moves) of what each does."""
    numbers, columns = [], []
    computed: list[int] = []
    for step, sign in enumerate(pattern):
        if sign == "#":
            computed.insert(0, step)
            continue
        for place, (newer, older) in enumerate(pairwise(computed[:3])):
            if step - older <= gains.origin.reach:
                numbers.append((step, place))
                columns.append(gains.pooled[step, step - newer] - gains.pooled[step, step - older])
    return numbers, np.stack(columns, 1) if columns else np.zeros((0, 0))


def _least_squares(columns: Array, rest: Array, ridge: float) -> Array:
    penalty = ridge * float(np.square(rest).sum()) / (MOVE**2 * columns.shape[1])
    return -np.linalg.solve(columns.T @ columns + penalty * np.eye(columns.shape[1]), columns.T @ rest)


def _left_out(columns: Array, rest: Array, ridge: float, folds: npt.NDArray[np.int_]) -> float:
    """The squared error on the samples that were left out, over all folds."""
    total = 0.0
    for fold in range(FOLDS):
        out = folds == fold
        moves = _least_squares(columns[~out], rest[~out], ridge)
        total += float(np.square(rest[out] + columns[out] @ moves).sum())
    return total


def best_schedule(gains: Gains, count: int, forecast: Forecast, *, longest: int | None = None, seed: int = 0) -> str:
    """The pattern of ``count`` computed steps with the least predicted error that a local search finds.

    Errors of different steps may cancel, so that no exact recursion exists. The search starts from the even schedule
    and from random ones and moves one computed step at a time, to wherever that is best, until nothing is better.
    longest: longest interval; by default whatever the gains reach back to under this forecast.
    """
    steps = gains.num_steps
    if not 1 <= count <= steps:
        raise InputError(f"A schedule of {steps} steps computes 1 to {steps} of them; {count} were asked for.")
    rng, scores = np.random.default_rng(seed), {}
    allowed = longest or gains.origin.reach

    def score(computed: frozenset[int]) -> float:
        if computed not in scores:
            scores[computed] = _score(gains, patterns.from_steps(computed, steps), forecast, allowed)
        return scores[computed]

    even = frozenset(round(number * steps / count - 1e-9) for number in range(count))
    starts = [even] if len(even) == count else []
    while len(starts) <= RESTARTS:
        starts.append(frozenset({0, *(1 + rng.permutation(steps - 1)[: count - 1]).tolist()}))
    best = min((_climbed(start, steps, score) for start in starts), key=score)
    if score(best) == np.inf:
        raise InputError(
            f"No schedule with {count} of {steps} computed steps keeps to intervals of {allowed} and to the "
            f"{gains.origin.reach} steps that gains reach back: measure them with a larger reach."
        )
    return patterns.from_steps(best, steps)


def _climbed(computed: frozenset[int], steps: int, score: Callable[[frozenset[int]], float]) -> frozenset[int]:
    while True:
        moved = [
            computed - {one} | {other} for one in computed - {0} for other in range(1, steps) if other not in computed
        ]
        best = min([computed, *moved], key=score)
        if score(best) >= score(computed):
            return computed
        computed = best


def _score(gains: Gains, pattern: str, forecast: Forecast, longest: int) -> float:
    """The predicted squared error; infinite where an interval is too long or gains do not reach."""
    if max(map(len, pattern.split("#"))) >= longest:
        return float("inf")
    total = gains.start.copy()
    for step, weights in estimates_of(pattern, forecast, gains.sites[0]):
        if any(step - source > gains.origin.reach for source, weight in weights.items() if weight):
            return float("inf")
        total += gains.change(gains.pooled, step, weights)
    return float(np.square(total).mean())
