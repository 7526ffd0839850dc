"""The space of a search: counted, enumerated and sampled, against a brute force that knows nothing of how."""

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import forecache as fc
from forecache.parts.grid import Action, Cell, Tokens
from forecache.parts.patterns import (
    SIGNS,
    UNDECIDED,
    Constraints,
    computed,
    distinct,
    from_segments,
    from_steps,
    intervals,
    is_pattern,
    legend,
    line,
    skipped,
)
from forecache.parts.schedules import by_step, picture

PUBLISHED = {
    (50, 17, 1, 3): 9,
    (50, 13, 1, 4): 25,
    (50, 11, 2, 5): 21,
    (50, 17, 1, 4): 30,
    (20, 7, 1, 3): 4,
}
"""ProCache's spaces (steps, budget, v_min, v_max) and their sizes."""


def brute_force(num_steps, budget, v_min, v_max, monotone):
    """The definition, on every line of signs that there is."""
    found = set()
    for signs in product("#.", repeat=num_steps):
        pattern = "".join(signs)
        first, *zeros = [len(part) for part in pattern.split("#")]
        fits = first == 0 and len(zeros) == budget and all(v_min <= v <= v_max for v in zeros)
        if fits and (not monotone or all(zeros[i + 1] <= zeros[i] for i in range(budget - 1))):
            found.add(pattern)
    return found


@pytest.mark.parametrize("space", PUBLISHED, ids=str)
def test_the_published_spaces_have_the_published_sizes(space):
    constraints = Constraints(*space)
    assert constraints.count() == len(list(constraints.enumerate())) == len(set(constraints.enumerate()))
    assert constraints.count() == PUBLISHED[space]


def test_the_documented_sizes_are_those_that_are_counted():
    page = (Path(__file__).parent.parent.parent / "docs/search.md").read_text(encoding="utf-8")
    table = page.split("<!-- counts -->")[1].split("<!-- /counts -->")[0]
    rows = [[int(cell.replace(",", "")) for cell in line.strip("|").split("|")] for line in table.split("\n")[3:-1]]
    assert {tuple(row[:4]): row[4] for row in rows} == PUBLISHED
    for *space, _, any_order in rows:
        assert Constraints(*space, monotone=False).count() == any_order


def test_the_published_pattern_is_found():
    """4 x 6, 3 x 4 and 2 x 7 steps; its activations as they are listed."""
    steps = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 38, 40, 42, 44, 46, 48)
    found = [pattern for pattern in Constraints(50, 17, 1, 3).enumerate() if computed(pattern) == steps]
    assert [intervals(pattern) for pattern in found] == [(3,) * 6 + (2,) * 4 + (1,) * 7]


def test_a_small_space_is_drawn_as():
    assert list(Constraints(9, 3, 1, 3).enumerate()) == ["#...#..#.", "#..#..#.."]
    assert list(Constraints(6, 2, 1, 3, monotone=False).enumerate()) == ["#...#.", "#..#..", "#.#..."]


@pytest.mark.parametrize("monotone", [True, False])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 9, 11])
def test_enumeration_is_what_brute_force_finds(num_steps, monotone):
    """For every budget and every limits; where there is nothing to find, the constraints are refused."""
    for budget, v_min, v_max in product(range(1, num_steps + 1), range(4), range(5)):
        expected = brute_force(num_steps, budget, v_min, v_max, monotone) if num_steps < 9 or budget < 5 else None
        if expected is None or v_max < v_min:
            continue
        if not expected:
            with pytest.raises(fc.errors.PlanError, match="No pattern of"):
                Constraints(num_steps, budget, v_min, v_max, monotone)
            continue
        constraints = Constraints(num_steps, budget, v_min, v_max, monotone)
        made = list(constraints.enumerate())
        assert set(made) == expected
        assert len(made) == len(expected) == constraints.count()


@given(text=st.text("#.", min_size=1, max_size=30))
def test_a_pattern_its_steps_and_its_segments_say_the_same(text):
    pattern = "#" + text
    assert is_pattern(pattern)
    assert from_steps(set(computed(pattern)), len(pattern)) == pattern
    assert from_segments(gap + 1 for gap in intervals(pattern)) == pattern
    assert sorted((*computed(pattern), *skipped(pattern))) == list(range(len(pattern)))


@pytest.mark.parametrize("text", ["", ".#", "#o", "#~.", "#. ", "1001"])
def test_what_is_no_pattern(text):
    assert not is_pattern(text)
    with pytest.raises(fc.errors.PlanError, match="starts with '#'"):
        intervals(text)


def test_a_picture_has_a_sign_for_every_kind_of_cell_and_the_legend_names_it():
    cells = [
        Cell(),
        Cell(((0, 1.0),)),
        Cell(((0, 1.5), (1, -0.5))),
        Cell(((0, 1.0),), gain="a/3/gain"),
        Cell(((0, 1.0),), tokens=Tokens(0.5, "random")),
    ]
    assert line(cells) == "#.~+o" == "".join(SIGNS)
    assert legend() == "# computed   . reused   ~ forecast   + corrected   o some tokens computed"
    assert legend("#.") == "# computed   . reused"
    assert {action.value for action in Action} <= {*SIGNS, UNDECIDED}


def test_distinct_lines_stand_in_the_order_of_their_frequency():
    assert distinct(["#..", "#.#", "###", "#.#", "###", "#.#"]) == "#.#\n###\n#.."


@st.composite
def spaces(draw):
    """Constraints that fit by construction: the segments are drawn first, and what they need is allowed."""
    zeros = draw(st.lists(st.integers(0, 6), min_size=1, max_size=12))
    below, above = draw(st.integers(0, min(zeros))), draw(st.integers(0, 3))
    return Constraints(sum(zeros) + len(zeros), len(zeros), below, max(zeros) + above, draw(st.booleans()))


@given(space=spaces(), seed=st.integers(0, 5))
def test_samples_are_distinct_allowed_and_repeatable(space, seed):
    count = max(1, min(4, space.count() // 4))
    found = space.sample(count, seed)
    assert len(set(found)) == len(found) == count
    for pattern in found:
        zeros = [len(part) for part in pattern.split("#")][1:]
        assert len(pattern) == space.num_steps
        assert len(zeros) == space.budget
        assert all(space.v_min <= v <= space.v_max for v in zeros)
        assert not space.monotone or zeros == sorted(zeros, reverse=True)
        assert space.allows(pattern)
        assert picture(by_step(pattern), space.num_steps) == pattern
    assert space.sample(count, seed) == found
    assert space.sample(1, seed) == found[:1]


@given(space=spaces())
def test_the_count_is_the_number_of_what_is_enumerated(space):
    if space.count() <= 2000:
        made = list(space.enumerate())
        assert len(made) == len(set(made)) == space.count()
        assert all(map(space.allows, made))


@given(space=spaces(), signs=st.text("#.", max_size=12))
def test_only_what_is_enumerated_is_allowed(space, signs):
    if space.count() <= 2000:
        assert space.allows("#" + signs) == ("#" + signs in set(space.enumerate()))


def test_every_pattern_can_be_drawn():
    for monotone in (True, False):
        space = Constraints(12, 4, 1, 4, monotone)
        assert set(space.sample(space.count(), 3)) == set(space.enumerate())


def test_another_seed_draws_others():
    space = Constraints(50, 17, 0, 8)
    assert space.sample(5, 0) != space.sample(5, 1)


def test_a_space_is_enumerated_up_to_the_limit_and_sampled_above_it():
    space = Constraints(50, 13, 1, 4)
    assert space.choose(25, 7) == tuple(space.enumerate())
    assert space.choose(10, 7) == space.sample(10, 7)


def test_a_huge_space_is_counted_and_sampled_without_being_made():
    huge = Constraints(1000, 300, 0, 30, monotone=False)
    assert huge.count() > 10**200
    assert huge.allows(huge.sample(1)[0])
    assert Constraints(1000, 990, 0, 1).count() == 1
    assert len(list(Constraints(1000, 990, 0, 1).enumerate())) == 1


INFEASIBLE = {
    "too many": ((50, 17, 3, 4), "68 to 85 steps; for 50 steps, take a budget of 10 to 12, or a smaller v_min"),
    "too few": ((20, 2, 1, 3), "4 to 8 steps; for 20 steps, take a budget of 5 to 10, or a larger v_max"),
    "one budget": ((20, 7, 4, 4), "35 steps; for 20 steps, take a budget of 4, or a smaller v_min"),
    "no budget": ((5, 2, 3, 3), "8 steps; no budget fits 5 steps: take a smaller v_min"),
}


@pytest.mark.parametrize(("space", "sentence"), INFEASIBLE.values(), ids=INFEASIBLE)
def test_constraints_that_nothing_fits_are_explained(space, sentence):
    with pytest.raises(
        fc.errors.PlanError, match=rf"No pattern of {space[0]} steps has {space[1]} computed ones.*{sentence}"
    ):
        Constraints(*space)


@pytest.mark.parametrize("space", [(0, 1, 0, 1), (5, 0, 0, 9), (5, 2, -1, 9), (5, 2.0, 0, 9), (True, 1, 0, 0)])
def test_constraints_are_whole_numbers(space):
    with pytest.raises(fc.errors.PlanError, match="whole numbers"):
        Constraints(*space)


def test_limits_in_the_wrong_order_are_refused():
    with pytest.raises(fc.errors.PlanError, match="v_max is at least v_min; v_min=3, v_max=1"):
        Constraints(20, 7, 3, 1)


def test_more_than_there_are_cannot_be_sampled():
    with pytest.raises(fc.errors.PlanError, match="1 to 4 of these patterns can be sampled; 5 were"):
        Constraints(20, 7, 1, 3).sample(5)
    with pytest.raises(fc.errors.PlanError, match="0 were asked for"):
        Constraints(20, 7, 1, 3).sample(0)


def test_a_search_for_the_last_patterns_gives_up(monkeypatch):
    monkeypatch.setattr("forecache.parts.patterns.TRIES", 1)
    with pytest.raises(
        fc.errors.PlanError, match=r"9 broken sticks gave \d distinct patterns, 9 were .* or enumerate all 9"
    ):
        Constraints(50, 17, 1, 3).sample(9)


@pytest.mark.parametrize("pattern", ["", ".#", "#x", "~"])
def test_a_pattern_is_computed_at_first(pattern):
    with pytest.raises(fc.errors.PlanError, match="A pattern starts with '#'"):
        intervals(pattern)
