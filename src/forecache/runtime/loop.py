"""A loop of the user's own as a host: every call of the model follows the plan, and nothing is told of it.

Its calls are told apart by their timesteps and samples (`forecache.runtime.generations`); ``session.lane`` names those
of one step, and ``session.new_run`` says that a run was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import nn

from forecache.runtime.host import Host, Mount, Runs, removed
from forecache.runtime.run import PartOfRun
from forecache.runtime.stats import Counters


@dataclass(frozen=True)
class LoopHost:
    """A sampling loop of the user's own.

    lanes: names of the model calls of one step, in turn, where no ``session.lane`` names them; () by default.
    """

    lanes: tuple[str, ...] = ()
    part: PartOfRun | None = None
    is_shared: bool = False

    def allows(self, other: Host) -> bool:
        return False

    def mounts(self, model: nn.Module, runs: Runs) -> Iterable[Mount]:
        return ()

    def opened(self, runs: Runs, renew: Callable[[bool], None]) -> AbstractContextManager[object]:
        return nullcontext()

    def noise(self, timestep: float | None, sigma: float | None) -> float | None:
        return None if sigma is None else share_of_noise(sigma)

    def complaint(self, model: nn.Module, is_in_place: bool, counters: Counters) -> str | None:
        return None if is_in_place else removed(model)


def share_of_noise(sigma: float) -> float:
    """The share of noise at a sigma: itself, as in flow matching; above 1 that of a sample x + sigma noise."""
    return sigma if sigma <= 1 else sigma / (1 + sigma)
