"""Guards of a session, for those who run plans that others made: plans it refuses, estimates it does not trust."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from forecache.errors import PlanError, PlanMismatchError
from forecache.parts.grid import Grid
from forecache.parts.identity import is_same
from forecache.plan.plan import Plan


@dataclass(frozen=True)
class Guards:
    """Limits of a session: ``fc.apply(pipe, plan, guards=fc.runtime.Guards(max_error=0.5))``. By default none is set.

    max_error: the most by which an estimate may differ from the newest feature that it is made from, as the ratio of
        their L2 norms, sample by sample. A sample whose estimate differs by more, or is not finite, gets that feature
        as it is (reuse), and is counted in ``session.stats.fallbacks``. No GPU is waited for. Plain reuse has no error.
        None, the default, is no limit.
    min_computed: the least share of cells that a plan computes, 0 to 1; 0 by default.
    same_model: whether a plan that was made on other weights is refused; False by default.
    same_scheduler: whether a plan that was made for another scheduler, or for other settings of it, is refused; False
        by default.
    """

    max_error: float | None = None
    min_computed: float = 0.0
    same_model: bool = False
    same_scheduler: bool = False

    def __post_init__(self) -> None:
        if self.max_error is not None and not (0 < self.max_error < math.inf):
            raise PlanError(f"max_error is a ratio over 0, such as 0.5; {self.max_error!r} was asked for.")
        if not 0 <= self.min_computed <= 1:
            raise PlanError(f"min_computed is a share, 0 to 1; {self.min_computed!r} was asked for.")

    def check(self, plan: Plan, grid: Callable[[], Grid]) -> None:
        """PlanError for a plan that computes too little, PlanMismatchError for one of another model or scheduler.

        grid: gives the grid of the model that the plan is applied to. It reads the weights, so it is called only if
        a guard needs it.
        """
        if plan.computed_share < self.min_computed:
            raise PlanError(
                f"The plan computes {plan.computed_share:.1%} of the features, and min_computed asks for "
                f"{self.min_computed:.1%}: take a plan that skips less, or lower the guard."
            )
        if not (self.same_model or self.same_scheduler):
            return
        now, before = grid(), plan.grid
        same_model = bool(before.fingerprint) and is_same(before.fingerprint, now.fingerprint)
        same_scheduler = before.scheduler == now.scheduler
        comparisons = {
            "model's weights": (self.same_model and not same_model, before.fingerprint, now.fingerprint),
            "scheduler": (self.same_scheduler and not same_scheduler, before.scheduler, now.scheduler),
        }
        for what, (is_refused, of_plan, of_target) in comparisons.items():
            if is_refused:
                raise PlanMismatchError(
                    f"The plan was made for another {what} ({of_plan or 'it does not say which'}) than it is applied "
                    f"to ({of_target or 'none is known here'}): make the plan again, on forecache.grid(pipe, "
                    "num_steps), or leave that guard out."
                )


OPEN = Guards()
