"""Looking at a model while it samples without a cache: every feature of the first lane, call by call."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from forecache.models.layout import Layout
from forecache.plan.plan import Plan
from forecache.runtime.session import Session


class Observed(Session):
    """A session that shows every feature of the first lane to ``see(step, site, feature)``."""

    def __init__(self, layout: Layout, plan: Plan, see: Callable[[int, int, Tensor], None]) -> None:
        super().__init__(layout, plan)
        self._see = see
        self._steps.see = self._shown

    def check_complete(self) -> None:
        """Raises StepCountError if the last generation made fewer calls than there are steps."""
        for lane in self._generations.running().lanes.values():
            if self._generations.is_short(lane):
                raise self._generations.too_short(lane)

    def _shown(self, site: int, output: Tensor) -> None:
        run, lane = self._generations.running(), self._local.lane
        if lane is not None and run.lane == next(iter(run.lanes)):
            self._see(lane.step, site, output)
