"""The drift of a generation: whether it still changes as the runs that were calibrated."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from forecache.errors import DriftError
from forecache.parts.drift import Changes, change_of_sample
from forecache.parts.grid import Cell
from forecache.plan.constants import Constants
from forecache.plan.plan import Plan
from forecache.runtime.ranks import Ranks


@dataclass(frozen=True)
class DriftLimit:
    """How far the generations of a session may leave what was calibrated; see `Guards`.

    most: largest ratio of a run's change to the calibrated one.
    changes: the calibrated changes.
    raises: whether a generation that exceeds it fails; else what is left of it is computed.
    """

    most: float
    changes: Changes
    raises: bool


class Drift:
    """The drift of one generation; its first lane measures, and all follow.

    limit: how far it may go.
    changes: the calibrated changes.
    num_steps: model calls of the whole run.
    ranks: the processes that sample the request together; None for this one alone.
    computed_from: the step of the run from which all is computed; None while it has not drifted.
    """

    def __init__(self, limit: DriftLimit, changes: Changes, num_steps: int, ranks: Ranks | None) -> None:
        self.computed_from: int | None = None
        self._limit, self._changes, self._num_steps = limit, changes, num_steps
        self._ranks = ranks
        self._lane: object = None
        self._before: tuple[int, Tensor] | None = None

    def sees(self, lane: object, step: int, output: Tensor) -> bool:
        """Whether the output (B, ...) of a computed step shows that the generation has just drifted too far.

        lane: that the call was made in. step: of the run. Raises DriftError where that is refused.
        """
        self._lane = self._lane or lane
        if self.computed_from is not None or lane is not self._lane:
            return False
        before, self._before = self._before, (step, output.detach().clone())
        if before is None or before[1].shape != output.shape:
            return False
        earlier, other = before
        expected = self._changes.between(earlier, step, self._num_steps)
        change = float(change_of_sample(other, output))
        is_left = not change <= self._limit.most * expected  # also where it is not a number
        if self._ranks is not None:
            is_left = self._ranks.any(is_left, output.device)
        if not is_left:
            return False
        self._before, self.computed_from = None, step + 1
        if self._limit.raises:
            raise DriftError(
                f"From step {earlier} to step {step} of {self._num_steps} the model's output changed by {change:.3g} "
                f"of itself, {change / expected if expected else float('inf'):.3g} times the calibrated change, and "
                f"max_drift allows {self._limit.most:g}: sample this without a plan, or calibrate on such runs."
            )
        return True


def drift_of(limit: DriftLimit | None, num_steps: int, ranks: Ranks | None) -> Drift | None:
    """The drift of a new generation; None where nothing limits it.

    num_steps: model calls of the run. ranks: the processes that sample it together; None for this one alone.
    """
    if limit is None or num_steps < 2:
        return None
    return Drift(limit, limit.changes, num_steps, ranks)


def computed_from(plan: Plan, step: int) -> Plan:
    """The plan with all cells computed from a step on."""
    rows = tuple((*row[:step], *[Cell()] * (plan.num_steps - step)) for row in plan.rows)
    named = {name for row in rows for cell in row for name in cell.constants}
    constants = Constants({name: tensor for name, tensor in plan.constants.items() if name in named})
    return replace(plan, rows=rows, constants=constants)
