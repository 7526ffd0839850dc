"""What a plan may cost, as a number of computed steps."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from forecache.distributed import World
from forecache.errors import InputError
from forecache.fit.tuning.settings import Settings
from forecache.methods.explicit import explicit
from forecache.models.find import find, grid
from forecache.parts.grid import Grid
from forecache.runtime.apply import apply
from forecache.sampling.sources import Sampling, Source, call_inputs

TIMED = 3
"""So many runs of each kind are timed; their median counts."""


@dataclass(frozen=True)
class Milliseconds:
    """A batch of images may take so long on this machine, decoding and all."""

    value: float


@dataclass(frozen=True)
class AtLeast:
    """The cheapest plan whose images come so close to those without a cache: mean PSNR in dB."""

    decibels: float


Budget = float | Milliseconds | AtLeast
"""A number is a share of the multiply-accumulates of a run without a cache."""


class Counts:
    """How many steps a budget computes, for a source and the settings of a tuning."""

    def __init__(self, source: Source, settings: Settings, world: World) -> None:
        self._source, self._settings, self._world = source, settings, world
        self._grid: Grid = grid(source.target, settings.num_steps)
        self.possible = range(-(-settings.num_steps // settings.longest), settings.num_steps)

    def of(self, budget: Budget) -> int | AtLeast:
        """Computed steps; AtLeast as it is. InputError for what no schedule fits, or a run without a cache keeps."""
        match budget:
            case Milliseconds(amount) | AtLeast(amount) if not 0 < amount < math.inf:
                raise InputError(f"{budget!r} was asked for; milliseconds and decibels are numbers over 0.")
            case AtLeast():
                return budget
            case Milliseconds(amount):
                return self._in_time(amount)
            case share:
                return self._in_macs(share)

    def _in_macs(self, budget: float) -> int:
        steps = self._settings.num_steps
        if not 0 < budget < 1:
            raise InputError(f"A budget is a share of the MACs between 0 and 1, such as 1/3; {budget!r} was asked for.")
        found = int((budget * steps - self._skipped_share * steps) / (1 - self._skipped_share) + 1e-9)
        if found not in self.possible:
            raise InputError(
                f"A budget of {budget:.3g} of the MACs ({1 / budget:.3g}x fewer) computes {found} of {steps} steps; "
                f"intervals of at most {self._settings.longest} need {self.possible[0]} to {self.possible[-1]}: choose "
                "another budget, or a longer interval."
            )
        return found

    @cached_property
    def _skipped_share(self) -> float:
        """What a skipped step costs, as a share of a computed one; 0 where nobody knows."""
        steps, paired = self._settings.num_steps, self._settings.guidance > 1
        try:
            plan = explicit(compute=[0]).plan(self._grid)
            cost = plan.cost(self._source.target, guidance=paired, inputs=call_inputs(self._source, 1 + paired))
        except InputError:
            return 0.0
        return (steps / cost.speedup - 1) / (steps - 1) if steps > 1 else 0.0

    def _in_time(self, budget: float) -> int:
        steps, (full, least) = self._settings.num_steps, self._milliseconds
        found = 1 + int((budget - least) / (full - least) * (steps - 1) + 1e-9) if full > least else 0
        if found not in self.possible:
            size = min(self._settings.batch, len(self._settings.conditions))
            between = [least + (full - least) * (count - 1) / (steps - 1) for count in self.possible]
            raise InputError(
                f"{budget:.4g} ms were asked for; {size} images take {full:.4g} ms here without a cache, and "
                f"{between[0]:.4g} to {between[-1]:.4g} ms with {self.possible[0]} to {self.possible[-1]} of {steps} "
                "steps computed: choose a time between these."
            )
        return found

    @cached_property
    def _milliseconds(self) -> tuple[float, float]:
        """Of a batch without a cache, and with its first step alone computed; of the process that leads."""
        how = Sampling(self._settings.num_steps, self._settings.guidance, self._settings.seed)
        one = explicit(compute=[0]).plan(self._grid)
        rounds: list[tuple[float, float]] = []
        for _ in range(1 + TIMED if self._world.leads else 0):
            without = self._timed(how)
            with apply(self._source.target, one):
                rounds.append((without, self._timed(how)))
        full, least = zip(*rounds[1:], strict=True) if rounds else ((0.0,), (0.0,))  # the first round warms up
        found = self._world.totals(np.array([statistics.median(full), statistics.median(least)]))
        return float(found[0]), float(found[1])

    def _timed(self, how: Sampling) -> float:
        labels = self._settings.conditions[: self._settings.batch]
        started = time.perf_counter()
        self._source.generate(labels, how, 0)
        if next(find(self._source.target).parameters()).is_cuda:
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - started)
