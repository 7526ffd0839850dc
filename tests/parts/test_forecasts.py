"""Forecasts are weights over past features: what they add up to, and what they reproduce."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import forecache as fc
from forecache.errors import PlanError
from forecache.parts.forecasts import Feedback, Gradient, Reuse, Taylor

steps = st.lists(st.integers(0, 60), min_size=2, max_size=6, unique=True).map(lambda drawn: sorted(drawn, reverse=True))
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


COMPUTED = (9, 5, 2)
"""Computed steps, newest first; 10 is estimated, and three steps were skipped before 9."""


@pytest.mark.parametrize(
    ("forecast", "reads"),
    [
        (Reuse(), {9: 1}),
        (Gradient(0.6), {9: 1.2, 8: -0.2}),  # the estimate emitted before it, eta divided by the gap
        (Gradient(0.6, "computed"), {9: 1.6, 5: -0.6}),
        (Taylor(0), {9: 1}),
        (Taylor(1), {9: 1.25, 5: -0.25}),
        (Feedback(0, 0.6), {9: 1.3, 8: -0.2, 7: -0.2, 6: -0.2, 5: 0.3}),  # 1 + 0.2 * (3 + 2 + 1) / 4, ...
    ],
    ids=str,
)
def test_the_steps_that_a_forecast_reads(forecast, reads):
    found = forecast.reads(10, COMPUTED, None)
    assert list(found) == list(reads), "newest first"
    assert found == pytest.approx(reads)


rules = st.one_of(
    forecasts,
    st.builds(Feedback, st.integers(0, 4), st.floats(0, 1)),
)
linear = st.one_of(st.builds(Taylor, st.integers(1, 5)), st.builds(Feedback, st.integers(1, 4), st.floats(0, 1)))
"""Forecasts that know a slope."""


@given(rules, steps)
def test_what_a_rule_reads_was_emitted_before_and_its_weights_sum_to_one(rule, drawn):
    step, *computed = drawn
    reads = rule.reads(step, computed, None)
    assert list(reads) == sorted(reads, reverse=True)
    assert all(0 <= source <= computed[0] for source in reads)
    assert math.fsum(reads.values()) == pytest.approx(1, abs=1e-9 * max(map(abs, reads.values())))


@given(linear, steps.filter(lambda drawn: len(drawn) > 2), st.integers(-9, 9), st.integers(-9, 9))
def test_a_rule_that_knows_a_slope_continues_a_straight_line_at_any_spacing(rule, drawn, slope, height):
    """Whatever it reads lies on the line: computed features, and estimates that were right."""
    step, *computed = drawn
    reads = rule.reads(step, computed, None)
    line = math.fsum(weight * (slope * source + height) for source, weight in reads.items())
    assert line == pytest.approx(slope * step + height, abs=1e-9 * 600 * max(map(abs, reads.values())))


def test_a_negative_order_is_refused():
    with pytest.raises(PlanError, match=r"whole order of at least 0 \(reuse\); -1 was asked for"):
        Taylor(-1)


def test_an_unknown_history_is_refused():
    with pytest.raises(PlanError, match="'computed' or 'emitted', not 'both'"):
        Gradient(1.0, "both")


def written_out(pattern, order, strength, feature):
    """What a run with feedback gives out at every step, on numbers: a list of estimates and a list of errors."""
    given, computed, error = [], [], 0.0
    for step, sign in enumerate(pattern):
        if sign == "#":
            gap = range(computed[-1] + 1, step) if computed else range(0)
            if gap:
                line = {
                    c: feature(computed[-1])
                    + (feature(step) - feature(computed[-1])) * (c - gap[0] + 1) / (len(gap) + 1)
                    for c in gap
                }
                error = sum(given[c] - line[c] for c in gap) / len(gap)
            else:
                error = 0.0
            computed.append(step)
            given.append(feature(step))
        else:
            past = computed[::-1][: order + 1]
            taylor = estimate(Taylor(order), step, past, feature)
            given.append(taylor - strength * error)
    return given


@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=6),
    st.integers(1, 3),
    st.floats(0, 1),
    st.lists(st.integers(-20, 20), min_size=30, max_size=30),
)
def test_feedback_equals_a_run_written_out_on_numbers(intervals, order, strength, values):
    pattern = "".join("#" + "." * (interval - 1) for interval in intervals)
    grid = fc.Grid(len(pattern), (fc.parts.Site("blocks.0.attn", 0, "attn"),))
    if "." not in pattern:
        return
    (row,) = fc.feedback(fc.explicit(pattern=pattern), order, strength).plan(grid).rows
    given_out = []
    for step, cell in enumerate(row):
        emitted = math.fsum(weight * given_out[source] for source, weight in cell.reads)
        given_out.append(emitted if cell.reads else values[step])
    expected = written_out(pattern, order, strength, values.__getitem__)
    scale = max(map(abs, expected))
    assert given_out == pytest.approx(expected, abs=1e-7 * (1 + scale))


@pytest.mark.parametrize("steps_", [6, 7, 20])
def test_feedback_of_order_one_and_strength_one_is_goc_at_an_interval_of_two(steps_):
    grid = fc.Grid(steps_, (fc.parts.Site("blocks.0.attn", 0, "attn"),))
    ours = fc.feedback(fc.fora(2), order=1, strength=1).plan(grid).rows
    published = fc.goc(fc.fora(2), eta=1.0).plan(grid).rows
    for cell, other in zip(ours[0][3:], published[0][3:], strict=True):
        assert [source for source, _ in cell.reads] == [source for source, _ in other.reads]
        assert [weight for _, weight in cell.reads] == pytest.approx([weight for _, weight in other.reads])


@pytest.mark.parametrize(("order", "interval"), [(order, interval) for order in (1, 2, 3) for interval in (2, 3, 5)])
@pytest.mark.parametrize("strength", [0.25, 0.5, 0.9])
def test_an_error_fades_by_the_strength_from_gap_to_gap(order, interval, strength):
    """A feature that is zero but for one computed value: once that left the history, only the feedback knows of it."""
    pattern = ("#" + "." * (interval - 1)) * 12
    grid = fc.Grid(len(pattern), (fc.parts.Site("blocks.0.attn", 0, "attn"),))
    (row,) = fc.feedback(fc.explicit(pattern=pattern), order, strength).plan(grid).rows
    given_out = []
    for step, cell in enumerate(row):
        emitted = math.fsum(weight * given_out[source] for source, weight in cell.reads)
        given_out.append(emitted if cell.reads else float(step == 3 * interval))
    first = [given_out[gap * interval + 1] for gap in range(3 + order + 2, 12)]
    assert abs(first[0]) > 1e-6
    for before, after in pairwise(first):
        assert after == pytest.approx(-strength * before)


@pytest.mark.parametrize(("order", "strength"), [(-1, 0.5), (2, -0.1), (2, 1.01), (2, math.nan)])
def test_feedback_that_grows_is_refused(order, strength):
    with pytest.raises(PlanError):
        Feedback(order, strength)
