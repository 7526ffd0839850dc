"""What a session refuses, or falls back from, for those who run plans that others made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from forecache.errors import PlanError, PlanMismatchError
from forecache.parts.grid import Grid
from forecache.parts.identity import is_same
from forecache.plan.plan import Plan


@dataclass(frozen=True)
class Guards:
    """Limits of a session: ``fc.apply(pipe, plan, guards=fc.runtime.Guards(max_error=0.5))``. Each is off by default.

    max_error: the most by which an estimate may differ from the newest feature that it is made from, as the ratio of
    their L2 norms, sample by sample. A sample whose estimate differs by more, or is not finite, gets that feature as
    it is (reuse), and is counted in ``session.stats.fallbacks``. No GPU is waited for. Reuse is its own fallback.
    min_computed: the least share of cells that a plan computes, 0 to 1. same_model, same_scheduler: refuse a plan
    that was made on other weights, or for another scheduler or other settings of it, than those it is applied to.
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

        grid: gives the grid of what the plan is applied to; called where it is needed, as it reads the weights.
        """
        if plan.computed_share < self.min_computed:
            raise PlanError(
                f"The plan computes {plan.computed_share:.1%} of the features, and min_computed asks for "
                f"{self.min_computed:.1%}: take a plan that skips less, or lower the guard."
            )
        if not (self.same_model or self.same_scheduler):
            return
        made, found = plan.grid, grid()
        same_model = bool(made.fingerprint) and is_same(made.fingerprint, found.fingerprint)
        pairs = {
            "model's weights": (self.same_model and not same_model, made.fingerprint, found.fingerprint),
            "scheduler": (self.same_scheduler and made.scheduler != found.scheduler, made.scheduler, found.scheduler),
        }
        for what, (differ, before, now) in pairs.items():
            if differ:
                raise PlanMismatchError(
                    f"The plan was made for another {what} ({before or 'it does not say which'}) than it is applied to "
                    f"({now or 'none is known here'}): make the plan again, on forecache.grid(pipe, num_steps), or "
                    "leave that guard out."
                )


OPEN = Guards()


def limited(estimate: Tensor, newest: Tensor, max_error: float) -> tuple[Tensor, Tensor]:
    """The estimate (B, ...), and ``newest`` for each sample of which it is too far; and how many those are.

    The number is a tensor where they are, so that nothing is waited for.
    """
    every = tuple(range(1, newest.ndim))
    wide = torch.promote_types(newest.dtype, torch.float32)
    error = (estimate - newest).to(wide).square().sum(every, keepdim=True)
    size = newest.to(wide).square().sum(every, keepdim=True)
    near = error <= max_error**2 * size  # False where it is not a number
    return torch.where(near, estimate, newest), (~near).sum()
