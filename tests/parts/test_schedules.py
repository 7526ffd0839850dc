"""Schedules, by their pictures: # computed, . skipped, one sign a step."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecache import Grid
from forecache.errors import PlanError
from forecache.parts.grid import Action, Site
from forecache.parts.schedules import (
    at,
    by_step,
    depth,
    either,
    every,
    except_on,
    first,
    inject,
    kind,
    last,
    lookup,
    on,
    picture,
)

ATTN, MLP = Site("blocks.0.attn", 0, "attn"), Site("blocks.2.mlp", 2, "mlp")


@pytest.mark.parametrize(
    ("schedule", "drawn"),
    [
        (every(1), "########"),
        (every(2), "#.#.#.#."),
        (every(3), "#..#..#."),
        (every(3, anchor="start"), "#..#..#."),
        (every(2, anchor="end"), "##.#.#.#"),
        (every(3, anchor="end"), "##..#..#"),
        (every(5, anchor="end"), "#.#....#"),
        (every(99), "#......."),
        (every(99, anchor="end"), "#......#"),
        (on([0, 3, 4]), "#..##..."),
        (on([]), "........"),
        (except_on([1, 7]), "#.#####."),
        (except_on([]), "########"),
        (first(3), "###....."),
        (first(0), "........"),
        (last(2), "......##"),
        (either(first(3), every(4)), "###.#..."),
        (either(first(1), every(3), last(1)), "#..#..##"),
        (by_step("#..#.##."), "#..#.##."),
        (by_step([1, 0, 2, 0, 1, 0, 2, 1]), "#.o.#.o#"),
        (inject(by_step([1, 0, 0, 0, 1, 0, 0, 1])), "#.o.#.o#"),
        (inject(every(6)), "#.o.o.#."),
        (inject(every(4), every=3), "#..o#..o"),
        (inject(every(4), every=1), "#ooo#ooo"),
        (inject(every(2)), "#.#.#.#."),
        (either(first(3), inject(every(4))), "###.#.o."),
        (by_step([True, False, False, True, False, True, True, False]), "#..#.##."),
    ],
)
def test_a_schedule_draws_as(schedule, drawn):
    assert picture(schedule, 8) == drawn


def test_fora_official_computes_these_steps_of_20():
    drawn = picture(every(3, anchor="end"), 20)
    assert {step for step, sign in enumerate(drawn) if sign == "#"} == {0, 1, 4, 7, 10, 13, 16, 19}


@given(num_steps=st.integers(1, 60), interval=st.integers(1, 70), anchor=st.sampled_from(["start", "end"]))
def test_every_starts_with_a_computed_step_and_keeps_its_distance(num_steps, interval, anchor):
    computed = [step for step, sign in enumerate(picture(every(interval, anchor=anchor), num_steps)) if sign == "#"]
    assert computed[0] == 0
    distances = [after - before for before, after in pairwise(computed)]
    if anchor == "start":
        assert set(distances) <= {interval}
        assert num_steps - computed[-1] <= interval
    else:
        assert computed[-1] == num_steps - 1
        assert set(distances[1:]) <= {interval}
        assert all(distance <= interval for distance in distances[:1])


@given(num_steps=st.integers(1, 30), data=st.data())
def test_except_on_skips_what_on_computes(num_steps, data):
    steps = data.draw(st.sets(st.integers(0, num_steps - 1)))
    swapped = picture(except_on(steps), num_steps).translate(str.maketrans("#.", ".#"))
    assert picture(on(steps), num_steps) == swapped


def test_at_gives_each_kind_of_site_its_schedule():
    schedule = at(kind("mlp"), every(3), every(2))
    assert picture(schedule, 6, MLP) == "#..#.."
    assert picture(schedule, 6, ATTN) == "#.#.#."
    assert picture(at(kind("attn", "mlp"), every(3), every(2)), 6, ATTN) == "#..#.."


def test_depth_speaks_of_blocks_low_to_high_minus_one():
    sites = [Site(f"blocks.{i}.mlp", i, "mlp") for i in range(5)]
    assert [site.depth for site in sites if depth(1, 3)(site)] == [1, 2]


def test_lookup_reads_the_row_of_its_site():
    schedule = lookup({ATTN.name: [True, False, True], MLP.name: [True, True, False]})
    assert picture(schedule, 3, ATTN) == "#.#"
    assert picture(schedule, 3, MLP) == "##."


def test_a_schedule_is_asked_with_step_site_and_grid():
    grid = Grid(4, (ATTN, MLP))
    assert every(2)(1, ATTN, grid) is Action.SKIP
    assert every(2)(2, MLP, grid) is Action.COMPUTE


@pytest.mark.parametrize("interval", [0, -1])
def test_an_interval_below_one_is_refused(interval):
    with pytest.raises(PlanError, match=r"at least 1.*-?\d was asked for"):
        every(interval)


def test_an_unknown_anchor_is_refused():
    with pytest.raises(PlanError, match="'start' or 'end', not 'middle'"):
        every(2, anchor="middle")


@pytest.mark.parametrize("make", [on, except_on])
@pytest.mark.parametrize("step", [-1, 4])
def test_steps_outside_the_run_are_refused(make, step):
    with pytest.raises(PlanError, match=rf"Steps \[{step}\] lie outside a run of 4 steps \(0 to 3\)"):
        picture(make([0, step]), 4)


def test_a_pattern_of_other_signs_is_refused():
    with pytest.raises(PlanError, match=r"'o' \(some tokens\), or with 1, 0 and 2; it has 'x', '~'"):
        by_step("#.~x")


@pytest.mark.parametrize("interval", [0, -1, 1.5, "2"])
def test_inject_takes_whole_intervals(interval):
    with pytest.raises(PlanError, match="one skipped step in every"):
        inject(every(2), interval)


@pytest.mark.parametrize("pattern", ["#.#", [True] * 5])
def test_a_pattern_of_another_length_is_refused(pattern):
    with pytest.raises(PlanError, match="the run 4 steps: write one entry a step"):
        picture(by_step(pattern), 4)


def test_a_table_without_the_site_is_refused():
    with pytest.raises(PlanError, match=r"no row for blocks\.2\.mlp: it was made for another model"):
        picture(lookup({ATTN.name: [True]}), 1, MLP)


def test_a_table_of_another_length_is_refused():
    with pytest.raises(PlanError, match=r"row of blocks\.0\.attn has 2 entries, the run 3 steps"):
        picture(lookup({ATTN.name: [True, False]}), 3, ATTN)
