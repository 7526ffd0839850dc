"""TaylorSeer (arXiv 2503.06923), and the same with feedback."""

from __future__ import annotations

from forecache.parts.forecasts import Feedback, Taylor
from forecache.plan.method import Method


def taylorseer(base: Method, order: int = 1) -> Method:
    """Taylor expansion of the feature around its last computed value (TaylorSeer, arXiv 2503.06923).

    order 0 is reuse, 1 a straight line, 2 adds the second difference. The order is lowered while a feature was
    computed fewer than order + 1 times; the paper computes the first steps: `warmup(base, 3)`.
    """
    return base.with_forecast(f"taylorseer({base.name}, order={order})", Taylor(order))


def feedback(base: Method, order: int = 2, strength: float = 0.5) -> Method:
    """A Taylor forecast that pays back a share of the error of its last estimates (ours), see `forecasts.Feedback`.

    Of few steps, order 2 overshoots in long gaps, as Taylor's does: on digits at N = 4 of 20 steps the images are
    spoilt. There take order 1, or let `forecache.tune` choose.
    """
    name = f"feedback({base.name}, order={order}, strength={strength:g})"
    return base.with_forecast(name, Feedback(order, strength))
