"""Timing: clocks, alternating rounds, quartiles; never how long something takes."""

import statistics

import torch

from forecache.sampling.timing import Clock, Spread, alternate, seconds_of, timed


def test_the_spread_is_the_quartiles():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert Spread.of(values) == Spread(3, 2, 4, 5)
    assert Spread.of(values[:1]) == Spread(5, 5, 5, 1)
    assert Spread.of(iter(values)).median == statistics.median(values)


def test_ratios_are_formed_within_a_round():
    """A machine that gets slower changes no ratio, and the ratio of medians would be another number."""
    assert Spread.of_ratios([2.0, 20.0, 6.0], [1.0, 10.0, 3.0]) == Spread(2, 2, 2, 3)


def test_calls_alternate_and_the_warm_up_does_not_count():
    order, numbers = [], iter(range(100))

    def call():
        return next(numbers)

    results = alternate({"a": call, "b": call}, 2, warmup=1, on_call=order.append)
    assert order == ["a", "b"] * 3
    assert results == {"a": [2, 4], "b": [3, 5]}
    assert alternate({"a": call}, 2, warmup=0) == {"a": [6, 7]}


def test_a_call_is_timed_with_its_result():
    result, seconds = timed(lambda: 3)
    assert result == 3
    assert seconds >= 0
    assert seconds_of(lambda: 3) >= 0


def test_a_clock_gives_the_seconds_between_its_marks():
    clock = Clock(torch.device("cpu"))
    for _ in range(3):
        clock.mark()
    assert len(clock.seconds()) == 2
    assert all(seconds >= 0 for seconds in clock.seconds())
