"""The cost of a tuning, in images without a cache in the pipeline's own steps.

An image with a plan counts by the share of its steps that are computed, one in fine steps by how many more they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forecache.errors import InputError
from forecache.sampling import fine
from forecache.sampling.fine import FineRun

QUICK_IMAGES = 100
"""Largest cost of a quick search, in images, for all budgets together."""
QUICK_SAMPLES = 3
"""Samples of a quick search, the first ones."""
FEWEST = 6
"""Smallest number of trials of a budget that a quick search is worth."""


@dataclass
class Meter:
    """The images that a tuning has sampled so far, without those that judge the result on held-out samples.

    num_steps: of the pipeline's own run, which one image is counted by.
    """

    num_steps: int
    images: float = 0.0

    def add(self, samples: int, calls: float) -> None:
        """Counts samples with so many computed model calls each."""
        self.images += samples * calls / self.num_steps


def of_finding(run: FineRun | None, num_steps: int, judges: int) -> float:
    """The images of a search for the fine run: the pipeline's own, and runs of twice the steps each."""
    if run is None:
        return 0.0
    doubled = 2 * run.num_steps - max(fine.LEAST_STEPS, 2 * num_steps)
    return judges * (num_steps + doubled) / num_steps


def fixed(run: FineRun | None, num_steps: int, judges: int, samples: int, noises: int) -> float:
    """The images that a search begins with: the fine run, and on every noise those without a cache and converged."""
    steps = run.num_steps if run is not None else 0
    return of_finding(run, num_steps, judges) + samples * (1 + noises) * (1 + steps / num_steps)


def quick_trials(run: FineRun | None, num_steps: int, samples: int, counts: Sequence[int]) -> int:
    """The trials of each budget of a quick search, whose whole cost then keeps to `QUICK_IMAGES`.

    counts: computed steps, one for each search. Raises InputError where fewer than `FEWEST` are left.
    """
    return trials_left(fixed(run, num_steps, 1, samples, 0), counts, num_steps, samples)


def trials_left(begun: float, counts: Sequence[int], num_steps: int, samples: int) -> int:
    """The trials of each search of a quick one, after what it begins with.

    begun: in images. counts: computed steps, one for each search. Raises InputError where fewer than `FEWEST` are left.
    """
    trials = int((QUICK_IMAGES - begun) / (samples * sum(counts) / num_steps))
    if trials < FEWEST:
        raise InputError(
            f"A quick search of {QUICK_IMAGES} images leaves {max(0, trials)} trials for each of {len(counts)} "
            f"searches, after {begun:.0f} images for what they are compared with: give fewer budgets, samplers or "
            "numbers of steps, or tune without quick (--no-quick)."
        )
    return trials
