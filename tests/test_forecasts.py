"""Forecasts are weights over past features: what they add up to, and what they reproduce."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecache import PlanError
from forecache.forecasts import Gradient, Reuse, Taylor

steps = st.lists(st.integers(0, 60), min_size=2, max_size=6, unique=True).map(lambda each: sorted(each, reverse=True))
"""A skipped step and the steps before it, newest first, at any spacing."""

forecasts = st.one_of(
    st.just(Reuse()),
    st.builds(Gradient, st.floats(-3, 3), st.sampled_from(["computed", "emitted"])),
    st.builds(Taylor, st.integers(0, 5)),
)


def estimate(forecast, step, past, feature):
    """The forecast of a feature that is a plain function of the step."""
    seen = past[: forecast.length]
    return math.fsum(w * feature(c) for w, c in zip(forecast.weights(step, seen), seen, strict=True))


@given(forecasts, steps)
def test_weights_sum_to_one_at_any_spacing(forecast, drawn):
    step, *past = drawn
    weights = forecast.weights(step, past[: forecast.length])
    assert len(weights) == min(len(past), forecast.length)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-9 * max(map(abs, weights)))


@given(st.integers(1, 5), steps.filter(lambda each: len(each) > 2), st.integers(-9, 9), st.integers(-9, 9))
def test_taylor_of_order_one_and_above_reproduces_straight_lines(order, drawn, slope, height):
    step, *past = drawn
    forecast = Taylor(order)
    scale = max(map(abs, forecast.weights(step, past[: forecast.length])))
    line = estimate(forecast, step, past, lambda c: slope * c + height)
    assert line == pytest.approx(slope * step + height, abs=1e-9 * 600 * scale)


@given(st.integers(0, 4), steps, st.lists(st.integers(-20, 20), min_size=5, max_size=5))
def test_taylor_equals_the_papers_recursion_on_numbers(order, drawn, values):
    """Every new feature renews the derivatives by differences to the old ones; then the series is summed."""
    step, *past = drawn
    past = past[: order + 1]
    feature = dict(zip(past, values, strict=False))
    derivatives, at = [], None
    for c in reversed(past):
        renewed = [float(feature[c])]
        for lower in range(min(order, len(derivatives))):
            renewed.append((renewed[lower] - derivatives[lower]) / (c - at))
        derivatives, at = renewed, c
    series = sum(d * (step - at) ** i / math.factorial(i) for i, d in enumerate(derivatives))
    scale = max(map(abs, Taylor(order).weights(step, past)))
    assert estimate(Taylor(order), step, past, feature.get) == pytest.approx(series, abs=1e-9 * 20 * scale)


@pytest.mark.parametrize(
    ("forecast", "step", "past", "weights"),
    [
        (Reuse(), 7, [4], (1,)),
        (Gradient(0.5), 3, [2], (1,)),
        (Gradient(0.5), 3, [2, 1], (1.5, -0.5)),
        (Gradient(0.5), 9, [6, 1], (1.5, -0.5)),  # the change is taken as it is, whatever it spans
        (Gradient(0.0), 3, [2, 1], (1, 0)),
        (Taylor(0), 9, [6], (1,)),
        (Taylor(1), 5, [4, 2], (1.5, -0.5)),
        (Taylor(1), 9, [6, 3], (2, -1)),
        (Taylor(2), 3, [2, 1, 0], (2.5, -2, 0.5)),  # f + f' + f''/2 with f' = f2 - f1, f'' = f2 - 2 f1 + f0
        (Taylor(2), 5, [4, 2], (1.5, -0.5)),  # two features: order 1
        (Taylor(2), 5, [4], (1,)),
        (Taylor(2), 7, [6, 4, 0], (1.625, -0.6875, 0.0625)),  # f' = (f6 - f4)/2, f'' = (f' - (f4 - f0)/4)/2
    ],
)
def test_weights_written_out(forecast, step, past, weights):
    assert forecast.weights(step, past) == pytest.approx(weights)


def test_taylor_of_order_two_is_not_exact_on_parabolas_but_nearer_than_order_one():
    """Backward differences lag by half a step; the second one still removes most of the curve."""
    errors = [abs(estimate(Taylor(order), 8, [6, 4, 2], lambda c: c * c) - 64) for order in (0, 1, 2)]
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize(
    ("forecast", "history", "length"),
    [
        (Reuse(), "computed", 1),
        (Gradient(1.0), "emitted", 2),
        (Gradient(1.0, "computed"), "computed", 2),
        (Taylor(0), "computed", 1),
        (Taylor(3), "computed", 4),
    ],
)
def test_a_forecast_says_what_it_reads(forecast, history, length):
    assert (forecast.history, forecast.length) == (history, length)


def test_a_negative_order_is_refused():
    with pytest.raises(PlanError, match=r"whole order of at least 0 \(reuse\); -1 was asked for"):
        Taylor(-1)


def test_an_unknown_history_is_refused():
    with pytest.raises(PlanError, match="'computed' or 'emitted', not 'both'"):
        Gradient(1.0, "both")
