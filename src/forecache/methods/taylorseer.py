"""TaylorSeer (arXiv 2503.06923), and the same forecast with feedback."""

from __future__ import annotations

from typing import Annotated

from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts.forecasts import Feedback, Taylor
from forecache.plan.method import Method

Order = Annotated[int, Range(least=0, slider=(0, 4, 1))]


@register
def taylorseer(base: Method, order: Order = 1) -> Method:
    """Taylor expansion of the feature around its last computed value (TaylorSeer, arXiv 2503.06923).

    The order is lowered while a feature was computed fewer than order + 1 times; the paper computes the first steps:
    `warmup(base, 3)`.

    base: schedule, with plain reuse
    order: of the expansion; 0 is reuse, 1 a straight line, 2 adds the second difference
    """
    return base.with_forecast("taylorseer", Taylor(order))


@register
def feedback(
    base: Method,
    order: Order = 2,
    strength: Annotated[float, Range(least=0, most=1, slider=(0, 1, 0.05))] = 0.5,
) -> Method:
    """Taylor forecast that pays back a share of the error of its last estimates (ours, see `forecasts.Feedback`).

    With few computed steps, order 2 overshoots in long gaps, as Taylor's does: on digits, 4 computed of 20 steps spoil
    the images. Take order 1 there, or let `forecache.tune` choose.

    base: schedule, with plain reuse
    order: of the Taylor expansion; 0 is reuse, 1 a straight line, 2 adds the second difference
    strength: share of the error that is paid back, 0 to 1; 0 is the Taylor forecast
    """
    return base.with_forecast("feedback", Feedback(order, strength))
