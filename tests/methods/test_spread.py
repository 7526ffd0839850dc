"""Schedules by a share of computed steps: pictures, and every length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import forecache as fc
from forecache.parts import schedules


@pytest.mark.parametrize(
    ("speedup", "how", "steps", "picture"),
    [
        (2, {}, 8, "#.#.#.#."),
        (2.5, {}, 8, "#.#.#.#."),  # 3.2 steps, rounded up
        (2.5, {}, 20, "#..#.#..#.#..#.#..#."),
        (1.3, {}, 8, "#.######"),
        (3, {"last": True}, 12, "#...#...#..#"),
        (3, {"first": 2}, 12, "##...#...#.."),
        (2, {"bend": 0.4}, 12, "#.#.##.#..#."),
        (2, {"bend": -0.4}, 12, "#..#..#.##.#"),
        (5, {"first": 3}, 8, "##......"),  # as many as the share allows
        (4, {"last": True}, 3, "#.."),  # one step in all, the first
    ],
)
def test_pictures(speedup, how, steps, picture):
    assert schedules.picture(schedules.spread(speedup, **how), steps) == picture


@given(st.integers(1, 6), st.integers(1, 12))
def test_a_whole_speedup_that_divides_the_run_is_fora(interval, count):
    steps = interval * count
    assert schedules.picture(schedules.spread(interval), steps) == schedules.picture(schedules.every(interval), steps)


@given(st.integers(1, 60), st.floats(1, 9), st.integers(1, 4), st.booleans(), st.floats(-0.9, 0.9))
def test_the_share_is_exact_at_any_length(steps, speedup, first, last, bend):
    picture = schedules.picture(schedules.spread(speedup, first=first, last=last, bend=bend), steps)
    count = next(count for count in range(1, steps + 1) if count * speedup >= steps - 1e-8)
    assert picture.count("#") == count
    assert picture.startswith("#" * min(first, count))
    assert not last or count <= first or picture.endswith("#")


@given(st.integers(12, 60), st.floats(1.5, 5), st.floats(0.3, 0.9))
def test_a_bend_moves_computed_steps_to_one_end(steps, speedup, bend):
    def centre(bend):
        picture = schedules.picture(schedules.spread(speedup, bend=bend), steps)
        places = [step for step, sign in enumerate(picture) if sign == "#"]
        return sum(places) / len(places)

    assert centre(bend) <= centre(0) <= centre(-bend)


@pytest.mark.parametrize("how", [{"speedup": 0.5}, {"speedup": True}, {"speedup": float("inf")}, {"speedup": "2"}])
def test_what_is_no_speedup_is_refused(how):
    with pytest.raises(fc.errors.PlanError, match="one step in 1 or more"):
        schedules.spread(**how)


def test_other_values_are_refused():
    with pytest.raises(fc.errors.PlanError, match="first=0"):
        schedules.spread(2, first=0)
    with pytest.raises(fc.errors.PlanError, match="between -1 and 1"):
        schedules.spread(2, bend=1)
