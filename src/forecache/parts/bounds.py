"""Bounds of decisions at run time: which steps are computed or skipped whatever a rule says. No tensors here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from forecache.errors import PlanError


class Decision(Enum):
    """What is done with a whole step; the value is its sign in a picture."""

    COMPUTE = "#"
    SKIP = "."


@dataclass(frozen=True)
class Bounds:
    """What a decider has no choice about.

    first: steps computed at the start, at least 1 [1]
    last: steps computed at the end [0]
    max_gap: most steps skipped in a row; None [default] for no bound
    at_least: fewest computed steps of a run; None [default] for no bound. What is left is spent at the end
    at_most: most computed steps of a run; None [default] for no bound. Those that are forced later are set aside
    """

    first: int = 1
    last: int = 0
    max_gap: int | None = None
    at_least: int | None = None
    at_most: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("first", 1), ("last", 0), ("max_gap", 0), ("at_least", 0), ("at_most", 1)):
            value = getattr(self, name)
            if value is None and name not in ("first", "last"):
                continue
            if type(value) is not int or value < least:
                raise PlanError(f"{name} is a whole number of steps from {least} on; {value!r} was given.")

    def ends(self, num_steps: int) -> frozenset[int]:
        """The first and the last steps, which are computed."""
        return frozenset(step for step in range(num_steps) if step < self.first or step >= num_steps - self.last)

    def check(self, num_steps: int, fixed: Collection[int]) -> None:
        """Raises PlanError for bounds that no run of this length can keep. fixed: steps that are computed anyway."""
        forced = self.fewest(0, 0, num_steps, fixed)
        if self.at_most is not None and forced > self.at_most:
            raise PlanError(
                f"At most {self.at_most} of {num_steps} steps are to be computed, and first, last, max_gap and warm-up "
                f"alone compute {forced}: raise at_most or the budget, or lower the others."
            )
        if self.at_least is not None and self.at_least > min(num_steps, self.at_most or num_steps):
            raise PlanError(
                f"At least {self.at_least} steps are to be computed, of {num_steps} in all, and at most "
                f"{self.at_most or num_steps}: lower at_least or the budget."
            )

    def fewest(self, step: int, gap: int, num_steps: int, fixed: Collection[int]) -> int:
        """The fewest steps that can be computed from a step on, before which ``gap`` steps were skipped in a row."""
        count = 0
        for later in range(step, num_steps):
            if later in fixed or gap == self.max_gap:
                count, gap = count + 1, 0
            else:
                gap += 1
        return count

    def forced(self, step: int, computed: Sequence[int], num_steps: int, fixed: Collection[int]) -> Decision | None:
        """What is left of a choice about a step; None for all of it.

        computed: the steps computed so far. fixed: steps that are computed anyway, `ends` and warm-up among them.
        """
        gap = step - 1 - max(computed, default=-1)
        if step in fixed or gap == self.max_gap:
            return Decision.COMPUTE
        if self.at_least is not None and len(computed) + num_steps - step - 1 < self.at_least:
            return Decision.COMPUTE
        if self.at_most is not None:
            needed = self.fewest(step + 1, 0, num_steps, fixed)
            if len(computed) + 1 + needed > self.at_most:
                return Decision.SKIP
        return None

    def run(self, num_steps: int, fixed: Collection[int], eager: bool) -> tuple[Decision, ...]:
        """The decisions of a run that computes whatever is free (eager), or skips it."""
        free = Decision.COMPUTE if eager else Decision.SKIP
        decisions: list[Decision] = []
        computed: list[int] = []
        for step in range(num_steps):
            decision = self.forced(step, computed, num_steps, fixed) or free
            decisions.append(decision)
            if decision is Decision.COMPUTE:
                computed.append(step)
        return tuple(decisions)
