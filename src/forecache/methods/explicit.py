"""Schedules written out by hand, and warm-up."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Annotated

from forecache.errors import PlanError
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts import schedules
from forecache.plan.method import Method


@register
def explicit(
    *,
    skip: Collection[int] | None = None,
    compute: Collection[int] | None = None,
    pattern: str | Sequence[int] | None = None,
) -> Method:
    """Steps written out by hand, reuse in between: one of the three parameters says which.

    skip: skipped steps; the others are computed
    compute: computed steps; the others are skipped
    pattern: one entry a step, as `schedules.by_step` reads it: ``"#...#..#"``
    """
    if (skip, compute, pattern).count(None) != 2:
        raise PlanError("explicit() takes the steps to skip, the steps to compute, or a pattern: one of the three.")
    if pattern is not None:
        return Method("explicit", schedules.by_step(pattern))
    return Method("explicit", schedules.except_on(skip) if skip is not None else schedules.on(compute or ()))


@register
def warmup(base: Method, steps: Annotated[int, Range(least=0, usual=3, slider=(0, 10, 1))]) -> Method:
    """The first steps computed, then the schedule of the base.

    base: schedule of the steps after the first
    steps: number of first steps to compute
    """
    return replace(base, schedule=schedules.either(schedules.first(steps), base.schedule))
