"""Schedules written out by hand, and warm-up."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from forecache.errors import PlanError
from forecache.parts import schedules
from forecache.plan.method import Method


def explicit(
    *,
    skip: Collection[int] | None = None,
    compute: Collection[int] | None = None,
    pattern: str | Sequence[int] | None = None,
) -> Method:
    """The steps written out: those to skip, those to compute, or all of them as a pattern. Reuse in between.

    pattern: one entry a step, as `schedules.by_step` reads it: ``"#...#..#"``.
    """
    if (skip, compute, pattern).count(None) != 2:
        raise PlanError("explicit() takes the steps to skip, the steps to compute, or a pattern: one of the three.")
    if pattern is not None:
        schedule = schedules.by_step(pattern)
        return Method(f"explicit(pattern={schedules.picture(schedule, len(pattern))!r})", schedule)
    if skip is not None:
        return Method(f"explicit(skip={sorted(skip)})", schedules.except_on(skip))
    return Method(f"explicit(compute={sorted(compute or ())})", schedules.on(compute or ()))


def warmup(base: Method, steps: int) -> Method:
    """``base`` with its first ``steps`` steps computed."""
    schedule = schedules.either(schedules.first(steps), base.schedule)
    return replace(base, name=f"warmup({base.name}, {steps})", schedule=schedule)
