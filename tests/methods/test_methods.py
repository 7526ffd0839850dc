"""Methods by their names in the papers: the plans they make, and the error feedback of GOC on a straight line."""

from collections import deque

import pytest

import forecache as fc
from forecache.methods.goc import gate_of
from forecache.parts import gates, schedules

SITES = tuple(fc.parts.Site(f"blocks.{i}.{kind}", i, kind) for i in range(2) for kind in ("attn", "mlp"))


def plan(method, num_steps=20):
    return method.plan(fc.Grid(num_steps, SITES))


def reads(method, num_steps):
    """What each step of the first site reads, as {step: weight}; empty where it is computed."""
    return [dict(cell.reads) for cell in plan(method, num_steps).rows[0]]


def errors(method, num_steps):
    """Estimate minus truth at the skipped steps, for the feature g(c) = c: a plan's cells, evaluated on numbers."""
    emitted = []
    for step, cell in enumerate(plan(method, num_steps).rows[0]):
        emitted.append(sum(w * emitted[source] for source, w in cell.reads) if cell.reads else float(step))
    return [value - step for step, value in enumerate(emitted) if reads(method, num_steps)[step]]


@pytest.mark.parametrize(
    ("method", "drawn"),
    [
        (fc.fora(2), "#.#.#.#."),
        (fc.fora(3, anchor="end"), "##..#..#"),
        (fc.explicit(skip=[1, 4]), "#.##.###"),
        (fc.explicit(compute=[0, 4]), "#...#..."),
        (fc.explicit(pattern="#...#..#"), "#...#..#"),
        (fc.explicit(pattern=[1, 0, 0, 1, 0, 0, 1, 0]), "#..#..#."),
        (fc.warmup(fc.fora(4), 3), "###.#..."),
        (fc.goc(fc.fora(2), 0.8), "#.#~#~#~"),
        (fc.goc(fc.fora(2), 0.8, steps=[5]), "#.#.#~#."),
        (fc.goc(fc.fora(3), 0.8), "#..#~~#~"),
        (fc.goc(fc.fora(3), 0.8, gate=gates.on_steps((4,)), history="computed"), "#..#~.#."),
        (fc.goc(fc.fora(2), 0.0), "#.#.#.#."),  # eta 0 is plain reuse
        (fc.taylorseer(fc.fora(3), 1), "#..#~~#~"),
        (fc.taylorseer(fc.fora(3), 0), "#..#..#."),
        (fc.taylorseer(fc.warmup(fc.fora(4), 2), 2), "##~~#~~~"),
    ],
)
def test_a_method_draws_as(method, drawn):
    assert plan(method, 8).picture() == drawn


@pytest.mark.parametrize(
    ("level", "skipped"),
    [
        (50, {1, 3, 5, 7, 9, 11, 13, 15, 17, 19}),
        (25, {1, 3, 5, 7, 9}),
        (75, set(range(20)) - {0, 4, 8, 12, 16}),
    ],
)
def test_the_papers_levels_skip_these_steps_of_20(level, skipped):
    made = plan(fc.methods.fora_paper(level))
    assert {step for step, sign in enumerate(made.picture()) if sign != "#"} == skipped
    assert made.computed_share == pytest.approx(1 - level / 100)


def test_the_goc_papers_steps():
    assert fc.methods.goc_paper_steps(50) == (3, 5, 7, 9, 11, 13, 15, 19)
    assert fc.methods.goc_paper_steps(25) == (3, 5, 7, 9)
    assert (
        plan(fc.goc(fc.methods.fora_paper(50), 1.2, steps=fc.methods.goc_paper_steps(50))).picture()
        == "#.#~#~#~#~#~#~#~#.#~"
    )
    assert (
        plan(fc.goc(fc.methods.fora_paper(25), 1.9, steps=fc.methods.goc_paper_steps(25))).picture()
        == "#.#~#~#~#~##########"
    )


def test_fora_reads_the_last_computed_step():
    assert reads(fc.fora(3), 8) == [{}, {0: 1}, {0: 1}, {}, {3: 1}, {3: 1}, {}, {6: 1}]


# ---- GOC's queue ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.5, 0.8, 1.0, 1.2])
def test_the_emitted_queue_feeds_its_error_back_on_a_straight_line(eta):
    """Each error e becomes eta * (1 - e) - 1: the change that is seen is 1 - e, and 1 is what it should cover."""
    expected = [-1.0]
    while len(expected) < 10:
        expected.append(eta * (1 - expected[-1]) - 1)
    assert errors(fc.goc(fc.fora(2), eta), 20) == pytest.approx(expected)


def test_the_emitted_queue_at_eta_one_alternates():
    assert errors(fc.goc(fc.fora(2), 1.0), 12) == pytest.approx([-1, 1, -1, 1, -1, 1])


def test_the_emitted_queue_at_eta_above_one_grows():
    found = errors(fc.goc(fc.fora(2), 1.2), 40)
    assert found[:4] == pytest.approx([-1, 1.4, -1.48, 1.976])
    assert abs(found[-1]) > abs(found[-3]) > 5 * abs(found[0])


def test_the_computed_queue_at_eta_one_half_is_exact():
    first, *rest = errors(fc.goc(fc.fora(2), 0.5, history="computed"), 20)
    assert first == -1  # one feature only: reused
    assert rest == pytest.approx([0] * 9, abs=1e-12)


def test_the_emitted_queue_reads_the_estimate_before_the_last_computed_step():
    assert reads(fc.goc(fc.fora(2), 0.5), 6)[5] == {4: 1.5, 3: -0.5}


def test_the_computed_queue_reads_computed_steps_only():
    assert reads(fc.goc(fc.fora(3), 0.5, history="computed"), 9)[7:] == [{6: 1.5, 3: -0.5}] * 2


def test_the_emitted_queue_stands_still_within_a_gap():
    assert reads(fc.goc(fc.fora(3), 0.5), 9)[7:] == [{6: 1.25, 5: -0.25}] * 2


@pytest.mark.parametrize("interval", [2, 3, 4, 6])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_emitted_queue_never_errs_more_than_reuse_on_a_straight_line(interval, eta):
    """In a gap of L steps the last reused one errs by L; divided by L, the feedback stays within that."""
    found = errors(fc.goc(fc.fora(interval), eta), 10 * interval)
    assert max(map(abs, found)) <= interval - 1 + 1e-9
    settled = found[-(interval - 1) :]  # the mean error of the last gap is nearer to zero than by reuse
    if eta < 1:  # at 1 the errors alternate for ever
        assert abs(sum(settled)) < sum(range(1, interval))


def test_the_emitted_queue_divides_eta_by_the_gap_before():
    """Computed 0, 1, 5, 7, 8: no step was skipped before 1 and 8, three before 5, one before 7."""
    found = reads(fc.goc(fc.explicit(compute=[0, 1, 5, 7, 8]), 0.6), 10)
    assert found[2] == pytest.approx({1: 1.6, 0: -0.6})
    assert found[6] == pytest.approx({5: 1.2, 4: -0.2})
    assert found[9] == pytest.approx({8: 1.6, 7: -0.6})


def test_what_a_reused_step_emitted_is_read_where_it_was_computed():
    """Step 2 emitted the feature of step 0, so step 4 reads step 0, and nothing is kept twice."""
    assert reads(fc.goc(fc.fora(3), 0.5), 6)[4:] == [{3: 1.25, 0: -0.25}] * 2


def by_the_papers_queue(features, computed, eta):
    """What a run emits whose queue of two receives the output of every call; the last entry alone is reused."""
    queue, emitted = deque(maxlen=2), []
    for step, feature in enumerate(features):
        if step not in computed:
            feature = queue[-1] + eta * (queue[-1] - queue[0]) if len(queue) == 2 else queue[-1]
        queue.append(feature)
        emitted.append(feature)
    return emitted


@pytest.mark.parametrize("interval", [2, 3, 4])
def test_the_papers_queue_goes_on_within_a_gap(interval):
    features = [((7 * step * step) % 11) / 3 for step in range(16)]
    emitted = []
    for step, cell in enumerate(plan(fc.goc(fc.fora(interval), 0.7, gaps="paper"), 16).rows[0]):
        emitted.append(sum(w * emitted[source] for source, w in cell.reads) if cell.reads else features[step])
    assert emitted == pytest.approx(by_the_papers_queue(features, range(0, 16, interval), 0.7))


def test_the_papers_queue_reads_its_own_estimates_with_eta_whole():
    assert reads(fc.goc(fc.fora(3), 0.5, gaps="paper"), 9)[7:] == [{6: 1.5, 5: -0.5}, {7: 1.5, 6: -0.5}]
    assert reads(fc.goc(fc.fora(2), 0.5, gaps="paper"), 9) == reads(fc.goc(fc.fora(2), 0.5), 9)


def test_the_papers_queue_has_estimates_in_it():
    with pytest.raises(fc.errors.PlanError, match="gaps='paper' is the paper's queue.*leave history='computed' out"):
        fc.goc(fc.fora(3), 0.5, gaps="paper", history="computed")


class Measured:
    """Statistics of 20 steps in which features change fast at the last one."""

    inverse_shares = (0.0,) * 20
    inverse_counts = (0,) * 20
    mean_changes = (0.0, *[0.1] * 18, 0.3)

    def check(self, grid):
        pass


def test_statistics_propose_what_is_not_given():
    """Which values the gate gets: all proposed, one of them given, both given, blocks counted."""
    stats = Measured()
    limit = 18.5 / 19
    expected = {
        (None, None): (0.5 / (limit + 0.5), 0.5 * limit / (limit + 0.5)),
        (0.25, None): (0.25, 0.25 * limit),
        (None, 0.4): (0.5, 0.4),
        (0.3, 0.4): (0.3, 0.4),
    }
    for given, values in expected.items():
        gate = gate_of(stats, *given)
        assert (gate.gamma, gate.threshold, gate.counted) == (*map(pytest.approx, values), "branches")
    assert gate_of(stats, 0.3, 4.0, "blocks").counted == "blocks"
    with pytest.raises(fc.errors.PlanError, match="proposed for N as a share of branches: give one for counted blocks"):
        gate_of(stats, None, None, "blocks")


@pytest.mark.parametrize("given", [{"gamma": 0.5}, {"threshold": 0.6}, {"inverse": "blocks"}])
def test_parameters_of_the_gate_need_statistics(given):
    with pytest.raises(fc.errors.PlanError, match="belong to the gate by statistics: give stats to goc"):
        fc.goc(fc.fora(2), 0.8, **given)


# ---- names and refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (fc.fora(2), "fora(interval=2)"),
        (fc.fora(3, anchor="end"), "fora(interval=3, anchor='end')"),
        (fc.explicit(skip={3, 1}), "explicit(skip=[1, 3])"),
        (fc.explicit(pattern=[1, 0] * 10), "explicit(pattern='#.#.#.#.#.#.#.#.#.#.')"),
        (fc.goc(fc.fora(interval=2), 1.2), "goc(fora(interval=2), eta=1.2)"),
        (fc.goc(fc.methods.fora_paper(50), 1, steps=(3,)), "goc(fora_paper(level=50), eta=1, steps=[3])"),
        (fc.goc(fc.fora(2), 0.5, history="computed"), "goc(fora(interval=2), eta=0.5, history='computed')"),
        (fc.taylorseer(fc.warmup(fc.fora(4), 3), 2), "taylorseer(warmup(fora(interval=4), steps=3), order=2)"),
    ],
)
def test_a_plan_remembers_the_expression_that_made_it(method, name):
    assert plan(method).provenance["method"] == name


def test_any_schedule_is_a_base():
    by_kind = fc.Method("by_kind", schedules.at(schedules.kind("mlp"), schedules.every(3), schedules.every(2)))
    assert set(plan(fc.goc(by_kind, 1.0, whole_blocks=False), 6).picture().split("\n")) == {"#.#~#~", "#..#~~"}


def test_goc_corrects_whole_blocks():
    """As published on Learning-to-Cache: only where all branches of a block are skipped, here steps 1 and 5."""
    by_kind = fc.Method("by_kind", schedules.at(schedules.kind("mlp"), schedules.every(3), schedules.every(2)))
    assert set(plan(fc.goc(by_kind, 1.0), 6).picture().split("\n")) == {"#.#.#~", "#..#.~"}


@pytest.mark.parametrize("level", [0, 30, 100])
def test_a_level_that_the_papers_do_not_have_is_refused(level):
    with pytest.raises(fc.errors.PlanError, match=f"levels are 25, 50 and 75; {level} was asked for"):
        fc.methods.fora_paper(level)


def test_a_level_without_a_list_of_steps_is_refused():
    with pytest.raises(fc.errors.PlanError, match="lists steps for the levels 25 and 50; 75 was asked for"):
        fc.methods.goc_paper_steps(75)


def test_the_papers_levels_are_for_20_steps():
    with pytest.raises(fc.errors.PlanError, match="published schedule of 20 steps, and the run has 50"):
        plan(fc.methods.fora_paper(50), 50)


def test_steps_and_gate_together_are_refused():
    with pytest.raises(fc.errors.PlanError, match="steps to correct, or statistics of its gate, or a gate"):
        fc.goc(fc.fora(2), 1.0, steps=[3], gate=gates.always)


@pytest.mark.parametrize("given", [{}, {"skip": [1], "compute": [0]}])
def test_explicit_takes_one_of_three(given):
    with pytest.raises(
        fc.errors.PlanError, match="steps to skip, the steps to compute, or a pattern: one of the three"
    ):
        fc.explicit(**given)


@pytest.mark.parametrize("eta", [float("nan"), float("inf")])
def test_an_eta_that_is_no_number_is_refused(eta):
    with pytest.raises(fc.errors.PlanError, match="must be finite, and not huge"):
        plan(fc.goc(fc.fora(2), eta))


def test_skipping_before_computing_is_refused():
    with pytest.raises(fc.errors.PlanError, match=r"skips blocks\.0\.attn at step 0, before it was ever computed"):
        plan(fc.explicit(skip=[0, 1]))


def test_a_schedule_that_does_not_return_an_action_is_refused():
    with pytest.raises(fc.errors.PlanError, match="gave True; a schedule returns an Action"):
        plan(fc.Method("mine", lambda step, site, grid: True))


@pytest.mark.parametrize("correct", [lambda base: fc.goc(base, 1.0), lambda base: fc.taylorseer(base, 1)])
def test_a_correction_does_not_silently_replace_another(correct):
    with pytest.raises(fc.errors.PlanError, match="has a forecast already"):
        correct(fc.goc(fc.fora(2), 1.0, steps=[3]))


@pytest.mark.parametrize("weights", [{}, {0: 0.0}])
def test_a_forecast_that_reads_nothing_is_refused(weights):
    """It would be a cell that is computed."""

    class Nothing:
        def reads(self, step, computed, site):
            return weights

    with pytest.raises(fc.errors.PlanError, match="reads nothing for .* at step 1"):
        plan(fc.Method("nothing", fc.parts.schedules.every(2), Nothing()))
