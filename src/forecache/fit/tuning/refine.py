"""Refinement: the weights of a plan, adjusted by what that does to the images.

Weights are fitted to features, and the images are what counts. So each skipped step gets two numbers: its shift moves
weight from the older to the newest feature, its scale makes all its weights larger. Gauss-Newton finds these numbers
from images that are sampled with each of them changed alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from forecache.fit.tuning.forecasts import WAYS, Way
from forecache.fit.tuning.gram import Array
from forecache.fit.tuning.trial_runner import TrialRunner
from forecache.fit.tuning.trials import Trial
from forecache.plan.plan import Plan

ROUNDS = 3
"""Rounds of Gauss-Newton for the schedule that is refined to the end."""
SCHEDULES = 3
"""Schedules that are refined for one round, because the best schedule before it need not be the best after it."""
PROBES: Mapping[Way, float] = {"shift": 0.05, "scale": 0.02}
"""Change of a number by which its effect on the images is measured."""
LARGEST_STEP: Mapping[Way, float] = {"shift": 1.0, "scale": 0.25}
"""Largest change of a number in a round; after all rounds, no weight shrinks to nothing."""
DAMPING = 0.1
"""Damping of Gauss-Newton, as a share of the diagonal."""
PIXELS = 4096
"""Entries of each image that are looked at: a random choice, the same for all."""


def most_rounds() -> int:
    """The largest number of rounds over all schedules."""
    return ROUNDS + SCHEDULES - 1


def most_samplings(skipped_steps: int, noises: int) -> int:
    """The largest number of times that the samples are generated: ``skipped_steps`` in a pattern, ``noises`` to judge.

    Each round samples the plan, each change alone, and the result under all noises.
    """
    once = 1 + len(WAYS) * skipped_steps + 1 + noises
    return most_rounds() * once + (SCHEDULES - 1) * noises


def adjustable(plan: Plan) -> list[tuple[Way, int]]:
    """The ways and steps in which the weights of a plan can be adjusted."""
    steps = list(enumerate(zip(*plan.rows, strict=True)))
    shifts: list[tuple[Way, int]] = [
        ("shift", step) for step, cells in steps if any(len(cell.reads) > 1 for cell in cells)
    ]
    return [*shifts, *(("scale", step) for step, cells in steps if not cells[0].computed)]


class Jacobian:
    """How the images change with each number, and the normal equations of least squares.

    Every image is weighted with one over its error, which improves the mean PSNR rather than that of the worst image.
    """

    def __init__(self, images: Tensor, reference: Tensor) -> None:
        self._images = _pixels(images)
        residual = _pixels(reference) - self._images
        self._weights = 1 / residual.square().mean(1, keepdim=True).sqrt().clamp_min(1e-4)
        self._residual = (residual * self._weights).flatten().numpy()
        self._columns: list[Array] = []

    def add(self, images: Tensor, change: float) -> None:
        """The images of the same samples with the next number changed alone, by so much."""
        column = (_pixels(images) - self._images) * (self._weights / change)
        self._columns.append(column.flatten().numpy())

    def normal_equations(self) -> Array:
        """(K, K + 1): inner products of the K columns with one another and with the residual."""
        columns = np.stack(self._columns)
        return np.concatenate([columns @ columns.T, (columns @ self._residual)[:, None]], 1)


def gauss_newton_step(equations: Array, largest: Sequence[float]) -> Sequence[float]:
    """The change of each number, at most as large as ``largest`` says."""
    square, right = equations[:, :-1], equations[:, -1]
    damped = square + np.diag(DAMPING * np.diag(square) + 1e-12)
    return np.clip(np.linalg.solve(damped, right), np.negative(largest), largest).tolist()


def _pixels(images: Tensor) -> Tensor:
    if not len(images):  # this process samples none
        return torch.zeros(0, 1, dtype=torch.float64)
    flat = images.flatten(1).double()
    if flat.shape[1] <= PIXELS:
        return flat
    return flat[:, torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0))[:PIXELS]]


class Refiner:
    """Refines the weights of trials, as long as that makes their mean PSNR over all noises better."""

    def __init__(self, runner: TrialRunner) -> None:
        self._runner = runner

    def best(self, best: Trial, others: Sequence[Trial]) -> Trial:
        """Refines the best trial and the others for one round, and the one that is best then to the end.

        others: trials with other schedules; at most ``SCHEDULES`` - 1 of them are refined.
        """
        contenders = [best, *map(self._runner.judge, others[: SCHEDULES - 1])]
        after_one_round = [self.refine(trial, 1) for trial in contenders]
        return self.refine(max(after_one_round, key=lambda trial: trial.psnr), ROUNDS - 1)

    def refine(self, trial: Trial, rounds: int) -> Trial:
        """The trial after at most so many rounds of Gauss-Newton."""
        runner = self._runner
        for _ in range(rounds):
            plan = runner.plan(trial.pattern, trial.forecast)
            numbers = adjustable(plan)
            if not numbers:
                break
            jacobian = Jacobian(runner.images(plan), runner.reference_images)
            for way, step in numbers:
                probe = trial.forecast.adjusted(trial.pattern, {(way, step): PROBES[way]})
                jacobian.add(runner.images(runner.plan(trial.pattern, probe)), PROBES[way])
            equations = runner.world.totals(jacobian.normal_equations())
            changes = gauss_newton_step(equations, [LARGEST_STEP[way] for way, _ in numbers])
            adjustments = dict(zip(numbers, changes, strict=True))
            refined = replace(trial, forecast=trial.forecast.adjusted(trial.pattern, adjustments))
            refined = runner.judge(refined)
            if refined.psnr <= trial.psnr:
                break
            trial = refined
        return trial
