"""Budgets: the cost that a plan may have, as a number of computed steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from forecache.distributed import World
from forecache.errors import InputError
from forecache.fit.tuning.settings import Settings
from forecache.methods.explicit import explicit
from forecache.parts.grid import Grid
from forecache.runtime.apply import apply
from forecache.sampling.sources import Sampling, Source, call_inputs
from forecache.sampling.timing import Spread, alternate, seconds_of

ROUNDS = 3
"""Timed rounds, after one that warms up; their median counts."""


@dataclass(frozen=True)
class Milliseconds:
    """A budget in time: the latency of a batch of images on this machine, decoding included.

    value: in milliseconds.
    """

    value: float


@dataclass(frozen=True)
class AtLeast:
    """A budget in quality: the cheapest plan whose images are that close to the reference of the tuning.

    decibels: mean PSNR in dB.
    """

    decibels: float


@dataclass(frozen=True)
class Calls:
    """A budget in model calls that are computed, the same for every sampler and number of steps.

    value: their number.
    """

    value: int


Budget = float | Milliseconds | AtLeast | Calls
"""A number is a share of the multiply-accumulates of a run without a cache."""


def by_name(
    speedups: Sequence[float] = (),
    milliseconds: Sequence[float] = (),
    decibels: Sequence[float] = (),
    calls: Sequence[int] = (),
) -> dict[str, Budget]:
    """Budgets by names such as ``2x``, ``30ms``, ``40dB`` and ``10calls``; three times fewer MACs if none is asked for.

    speedups: MAC reductions. milliseconds: latencies of a batch. decibels: lowest mean PSNR. calls: computed calls.
    """
    budgets: dict[str, Budget] = {f"{speedup:g}x": 1 / speedup for speedup in speedups}
    budgets |= {f"{latency:g}ms": Milliseconds(latency) for latency in milliseconds}
    budgets |= {f"{psnr:g}dB": AtLeast(psnr) for psnr in decibels}
    budgets |= {f"{count}calls": Calls(count) for count in calls}
    return budgets or {"3x": 1 / 3}


class BudgetConverter:
    """Converts budgets to numbers of computed steps, for a source and the settings of a tuning.

    possible: the numbers of computed steps that the longest interval allows.
    """

    def __init__(self, source: Source, settings: Settings, world: World) -> None:
        self._source, self._settings, self._world = source, settings, world
        self._grid: Grid = settings.grid(source)
        self.possible = range(-(-settings.num_steps // settings.longest), settings.num_steps)

    @property
    def num_steps(self) -> int:
        """Steps of a run."""
        return self._settings.num_steps

    def uncached_calls(self, milliseconds: float) -> int:
        """The model calls of a run without a cache that take so long; 0 where one takes longer."""
        return int(milliseconds / self._milliseconds[0] * self.num_steps + 1e-9)

    def computed_steps(self, budget: Budget) -> int | AtLeast:
        """The number of computed steps; an `AtLeast` unchanged, whose number the tuning has to find.

        Raises InputError for a budget that no schedule fits, or that a run without a cache keeps.
        """
        match budget:
            case Milliseconds(amount) | AtLeast(amount) if not 0 < amount < math.inf:
                raise InputError(f"{budget!r} was asked for; milliseconds and decibels are numbers over 0.")
            case AtLeast():
                return budget
            case Milliseconds(amount):
                return self._in_time(amount)
            case Calls(count):
                return self._in_calls(count)
            case share:
                return self._in_macs(share)

    def _in_calls(self, count: int) -> int:
        if count not in self.possible:
            raise InputError(
                f"{count} computed calls were asked for; of {self._settings.num_steps} steps, with intervals of at "
                f"most {self._settings.longest}, plans compute {self.possible[0]} to {self.possible[-1]}: choose "
                "another budget, another number of steps, or a longer interval."
            )
        return count

    def _in_macs(self, budget: float) -> int:
        steps = self._settings.num_steps
        if not 0 < budget < 1:
            raise InputError(f"A budget is a share of the MACs between 0 and 1, such as 1/3; {budget!r} was asked for.")
        count = int((budget * steps - self._skipped_share * steps) / (1 - self._skipped_share) + 1e-9)
        if count not in self.possible:
            raise InputError(
                f"A budget of {budget:.3g} of the MACs ({1 / budget:.3g}x fewer) computes {count} of {steps} steps; "
                f"intervals of at most {self._settings.longest} need {self.possible[0]} to {self.possible[-1]}: choose "
                "another budget, or a longer interval."
            )
        return count

    @cached_property
    def _skipped_share(self) -> float:
        """MACs of a skipped step as a share of those of a computed one; 0 where they cannot be counted."""
        steps, paired = self._settings.num_steps, self._settings.guidance > 1
        try:
            plan = explicit(compute=[0]).plan(self._grid)
            cost = plan.cost(self._source.target, guidance=paired, inputs=call_inputs(self._source, 1 + paired))
        except InputError:
            return 0.0
        return (steps / cost.speedup - 1) / (steps - 1) if steps > 1 else 0.0

    def _in_time(self, budget: float) -> int:
        steps, (full, least) = self._settings.num_steps, self._milliseconds
        count = 1 + int((budget - least) / (full - least) * (steps - 1) + 1e-9) if full > least else 0
        if count not in self.possible:
            size = min(self._settings.batch, len(self._settings.conditions))
            between = [least + (full - least) * (count - 1) / (steps - 1) for count in self.possible]
            raise InputError(
                f"{budget:.4g} ms were asked for; {size} images take {full:.4g} ms here without a cache, and "
                f"{between[0]:.4g} to {between[-1]:.4g} ms with {self.possible[0]} to {self.possible[-1]} of {steps} "
                "steps computed: choose a time between these."
            )
        return count

    @cached_property
    def _milliseconds(self) -> tuple[float, float]:
        """Latency of a batch without a cache, and with only its first step computed, in the process that leads."""
        one = explicit(compute=[0]).plan(self._grid)

        def cached() -> float:
            with apply(self._source.target, one):
                return self._batch_milliseconds()

        runs: dict[str, Callable[[], float]] = {"uncached": self._batch_milliseconds, "cached": cached}
        medians = [0.0, 0.0]
        if self._world.leads:
            medians = [Spread.of(times).median for times in alternate(runs, ROUNDS).values()]
        full, least = self._world.totals(np.array(medians))
        return float(full), float(least)

    def _batch_milliseconds(self) -> float:
        how = Sampling(self._settings.num_steps, self._settings.guidance, self._settings.seed)
        batch = self._settings.conditions[: self._settings.batch]
        return 1e3 * seconds_of(lambda: self._source.generate(batch, how, 0))
