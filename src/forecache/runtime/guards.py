"""Guards of a session: plans it refuses, estimates it does not trust, runs that leave what was calibrated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from forecache.errors import PlanError, PlanMismatchError
from forecache.parts.drift import Changes
from forecache.parts.grid import Grid
from forecache.parts.identity import is_same
from forecache.plan.plan import Plan
from forecache.runtime.drift import DriftLimit

OnDrift = Literal["compute", "raise"]
"""What becomes of a run that has left what was calibrated."""


@dataclass(frozen=True)
class Guards:
    """Limits of a session: ``fc.apply(pipe, plan, guards=fc.runtime.Guards(max_error=0.5))``. By default none is set.

    max_error: the most by which an estimate may differ from the newest feature that it is made from, as the ratio of
        their L2 norms, sample by sample. A sample whose estimate differs by more, or is not finite, gets that feature
        as it is (reuse), and is counted in ``session.stats.fallbacks``. No GPU is waited for. Plain reuse has no error.
        None, the default, is no limit.
    max_drift: the most by which a run may change faster than the runs that were calibrated, as the ratio of what the
        model's output changes between two computed steps to the calibrated change; the sample that changes most
        counts. None, the default, is no limit. It reads one number off the device at every computed step.
    changes: the calibrated changes for it, `Signals.output_changes` of the statistics of `forecache.calibrate`. A run
        of another number of steps is compared at equal shares of the run.
    on_drift: "compute", the default, computes what is left of a run that exceeds ``max_drift``, and counts it in
        ``session.stats.drifted``; "raise" raises DriftError.
    min_computed: the least share of cells that a plan computes, 0 to 1; 0 by default.
    same_model: whether a plan that was made on other weights is refused; False by default.
    same_scheduler: whether a plan that was made for another scheduler, or for other settings of it, is refused; False
        by default.
    """

    max_error: float | None = None
    max_drift: float | None = None
    changes: tuple[float, ...] = ()
    on_drift: OnDrift = "compute"
    min_computed: float = 0.0
    same_model: bool = False
    same_scheduler: bool = False

    def __post_init__(self) -> None:
        if self.max_error is not None and not (0 < self.max_error < math.inf):
            raise PlanError(f"max_error is a ratio over 0, such as 0.5; {self.max_error!r} was asked for.")
        if self.max_drift is not None and not (0 < self.max_drift < math.inf):
            raise PlanError(f"max_drift is a ratio over 0, such as 2; {self.max_drift!r} was asked for.")
        if self.on_drift not in get_args(OnDrift):
            raise PlanError(f'on_drift is "compute" or "raise"; {self.on_drift!r} was asked for.')
        if self.changes and self.max_drift is None:
            raise PlanError("Calibrated changes are for a guard against drift, and there is none: give max_drift=.")
        if self.changes:
            Changes(tuple(self.changes))  # refuses what is no table
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
        if self.max_drift is not None:
            self._check_drift(plan)
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

    def _check_drift(self, plan: Plan) -> None:
        """Raises PlanError for a plan whose drift cannot be seen."""
        if not self.changes:
            raise PlanError(
                f"max_drift={self.max_drift:g} compares a run with calibrated changes, and there are none: give "
                "changes=forecache.calibrate(pipe, conditions, num_steps=20).known_signals().output_changes()."
            )
        computed = sum(all(cell.computed for cell in cells) for cells in zip(*plan.rows, strict=True))
        if computed < 2 and plan.num_steps > 1 and not plan.is_undecided:
            raise PlanError(
                f"The drift of a run is seen between steps at which every site is computed, and this plan has "
                f"{computed} of them: take one with two or more, or leave max_drift out."
            )

    @property
    def drift(self) -> DriftLimit | None:
        """What the runs of a session are held to; None for nothing."""
        if self.max_drift is None or not self.changes:  # what is missing is refused by `check`
            return None
        return DriftLimit(self.max_drift, Changes(tuple(self.changes)), self.on_drift == "raise")


OPEN = Guards()
