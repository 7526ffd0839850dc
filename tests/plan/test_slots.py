"""Liveness: a feature is kept from the step that emits it to the last step that reads it, and not a step longer."""

import math
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.plans import methods, rows
from support.small import generate

import forecache as fc
from forecache.plan import folding
from forecache.plan.ops import OUT, KeptSum, Op
from forecache.plan.slots import allocate, num_slots, peak_bytes

SITES = tuple(fc.parts.Site(f"blocks.{i}.{kind}", i, kind) for i in range(2) for kind in ("attn", "mlp"))
any_row = st.integers(1, 14).flatmap(rows)


def emitted(row, features):
    """The output of every step, when the outputs of all steps before it are at hand."""
    out = []
    for step, cell in enumerate(row):
        out.append(math.fsum(w * out[c] for c, w in cell.reads) if cell.reads else features[step])
    return out


def kept_sums(op, at_hand):
    """Slot -> what an operation keeps there, of the values that it reads."""
    return {kept.slot: at_hand[kept.base] + sum(w * at_hand[slot] for slot, w in kept.adds) for kept in op.keeps}


def executed(ops, features):
    """What every step emits when only the slots are at hand, and how many of them are full after each step."""
    kept, out, full = {}, [], []
    for step, op in enumerate(ops):
        out.append(math.fsum(w * kept[slot] for slot, w in op.reads) if op.reads else features[step])
        at_hand = {**kept, OUT: out[-1]}
        sums = kept_sums(op, at_hand)
        for slot in op.frees:
            del kept[slot]
        for slot, value in sums.items():
            assert slot not in kept, "a live feature was overwritten"
            kept[slot] = value
        full.append(len(kept))
    return out, full


def needed(row):
    """How many features a later step still reads, after each step: what has to be kept if estimates are."""
    readers = [{later for later, cell in enumerate(row) if step in dict(cell.reads)} for step in range(len(row))]
    return [sum(any(reader > now for reader in readers[step]) for step in range(now + 1)) for now in range(len(row))]


def ranks(row):
    """After each computed step: of how many sums of the features so far the later estimates are made.

    The weights of an estimate are its outputs when one computed step after the other emits 1 and all others emit 0.
    """
    computed = [step for step, cell in enumerate(row) if cell.computed]
    made_of = np.array([emitted(row, np.eye(len(row))[step]) for step in computed])
    made_of[:, computed] = 0
    return {step: rank(made_of[: number + 1, step + 1 :]) for number, step in enumerate(computed)}


def rank(weights):
    return np.linalg.matrix_rank(weights, tol=1e-7 * max(1.0, np.abs(weights).max(initial=0))) if weights.size else 0


def close(values, others, scale):
    return np.allclose(values, others, rtol=0, atol=1e-6 * scale)


def grown(row):
    """How large what a step emits can be with features up to one."""
    sizes = []
    for cell in row:
        sizes.append(1 + sum(abs(weight) * sizes[source] for source, weight in cell.reads))
    return max(sizes)


@given(any_row, st.integers(0, 99))
def test_slots_give_what_the_whole_past_would_give(row, seed):
    features = np.random.default_rng(seed).uniform(-1, 1, len(row))
    assert close(executed(allocate(row), features)[0], emitted(row, features), grown(row))


@given(any_row)
def test_the_cells_as_written_give_just_what_they_say(row):
    features = [float(3**step) for step in range(len(row))]
    assert executed(allocate(row, folded=False), features)[0] == emitted(row, features)


@given(any_row)
def test_as_written_exactly_the_features_with_a_later_reader_are_kept(row):
    ops = allocate(row, folded=False)
    assert executed(ops, [0.0] * len(row))[1] == needed(row)
    assert num_slots(ops) == max(needed(row))


@given(any_row)
def test_folding_never_needs_more_slots(row):
    full = executed(allocate(row), [0.0] * len(row))[1]
    assert max(full) == num_slots(allocate(row)) <= max(needed(row))


@given(any_row)
def test_folded_steps_give_the_same_and_keep_no_estimate(row):
    """Also where folding keeps more tensors, so that `folded_where_smaller` does not fold."""
    if (ops := folding.folded(row)) is None:
        return
    kept, features, out = {}, np.random.default_rng(0).uniform(-1, 1, len(row)), []
    for step, op in enumerate(ops):
        out.append(sum(w * kept[n] for n, w in op.reads) if op.reads else features[step])
        assert not (op.reads and op.keeps)
        at_hand = {**kept, OUT: out[-1]}
        kept |= kept_sums(op, at_hand)
    assert close(out, emitted(row, features), grown(row))


@given(methods(), st.integers(1, 20))
def test_the_rows_of_methods_run_on_as_few_slots(method, num_steps):
    for row in method.plan(fc.Grid(num_steps, SITES[:1])).rows:
        features = np.random.default_rng(num_steps).uniform(-1, 1, num_steps)
        ops = allocate(row)
        out, full = executed(ops, features)
        assert close(out, emitted(row, features), grown(row))
        assert num_slots(ops) == max(full)
        assert all(filled <= most for filled, most in zip(full, needed(row), strict=True))


def feedback(interval, order, strength):
    return fc.Method("feedback", fc.parts.schedules.every(interval), fc.parts.forecasts.Feedback(order, strength))


@pytest.mark.parametrize(
    ("method", "most"),
    [
        (fc.goc(fc.fora(2), 1.0), 1),
        (fc.goc(fc.fora(3), 0.5), 1),
        (feedback(2, 1, 1.0), 1),
        (feedback(2, 1, 0.5), 2),
        (feedback(4, 1, 0.5), 3),
        (feedback(4, 2, 0.5), 4),
    ],
)
def test_where_estimates_are_read_no_more_is_kept_than_the_rank_of_what_is_needed(method, most):
    row = row_of(method)
    full = executed(allocate(row), [0.0] * len(row))[1]
    expected = ranks(row)
    assert {step: full[step] for step in expected} == expected
    assert max(full) == max(expected.values()) == most
    assert not any(op.reads and op.keeps for op in allocate(row))


def sizes(row, ops):
    """The largest sum of absolute parts that an estimate is made of, in terms of features of length one."""
    kept, largest = {}, 0.0
    for step, op in enumerate(ops):
        parts = [w * kept[slot] for slot, w in op.reads]
        largest = max(largest, sum(np.abs(part).sum() for part in parts))
        at_hand = {**kept, OUT: sum(parts) if parts else np.eye(len(row))[step]}
        sums = kept_sums(op, at_hand)
        kept = {slot: value for slot, value in kept.items() if slot not in op.frees} | sums
    return largest


@pytest.mark.parametrize("interval", [2, 3, 4, 6])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("strength", [0.3, 0.65, 1.0])
def test_sums_are_not_so_large_that_rounding_shows(interval, order, strength):
    """What cancels in an estimate is not much larger than where estimates are read."""
    row = row_of(feedback(interval, order, strength), 60)
    assert sizes(row, allocate(row)) < 3 * sizes(row, allocate(row, folded=False))


def test_shifts_of_estimates_that_are_read_add_up():
    """Step 2 reads step 1, and its own shift comes on top; numbers by hand."""
    row = (fc.parts.Cell(), fc.parts.Cell(((0, 2.0),), shift="a"), fc.parts.Cell(((1, 3.0), (0, -1.0)), shift="b"))
    assert [(op.reads, op.shift) for op in allocate(row)[1:]] == [
        (((0, 2.0),), (("a", 1.0),)),
        (((0, 5.0),), (("a", 3.0), ("b", 1.0))),
    ]


@pytest.mark.parametrize(
    "odd", [fc.parts.Cell(((0, 1.0),), gain="g"), fc.parts.Cell(((0, 1.0),), tokens=fc.parts.Tokens(0.5, "random"))]
)
def test_what_is_no_weighted_sum_is_kept_as_it_was_given_out(odd):
    row = (fc.parts.Cell(), odd, fc.parts.Cell(), fc.parts.Cell(((2, 2.0), (1, -1.0))))
    assert allocate(row) == allocate(row, folded=False)


def test_weights_that_cancel_leave_the_cells_as_written():
    """Step 2 is twice the feature less its estimate, which is nothing at all: there would be nothing to read."""
    row = (fc.parts.Cell(), fc.parts.Cell(((0, 2.0),)), fc.parts.Cell(((1, 1.0), (0, -2.0))))
    assert allocate(row) == allocate(row, folded=False)


@given(st.integers(1, 8).flatmap(lambda steps: st.lists(rows(steps), min_size=1, max_size=4)), st.data())
def test_peak_bytes_are_those_of_each_step_with_the_sites_run_in_order(table, data):
    """Bytes are counted cell by cell: a step's peak may lie between its start and its end."""
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=len(table), max_size=len(table)))
    left = [[0, *needed(row)] for row in table]
    peaks = []
    for step in range(len(table[0])):
        # after the first k sites of this step: those are one step on, the others are not
        during = [
            sum(size * left[site][step + (site < k)] for site, size in enumerate(sizes)) for k in range(len(table) + 1)
        ]
        peaks.append(max(during))
    ops = [allocate(row, folded=False) for row in table]
    assert peak_bytes(ops, sizes, [0] * len(table)) == tuple(peaks)


def row_of(method, num_steps=20):
    return method.plan(fc.Grid(num_steps, SITES)).rows[0]


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        (fc.fora(1), 0),
        (fc.fora(2), 1),
        (fc.fora(4), 1),
        (fc.goc(fc.fora(2), 1.0), 1),
        (fc.goc(fc.fora(3), 1.0), 1),
        (fc.goc(fc.fora(3), 1.0, history="computed"), 2),
        (fc.taylorseer(fc.fora(3), 1), 2),
        (fc.taylorseer(fc.fora(3), 2), 3),
        (fc.taylorseer(fc.fora(3), 3), 4),
    ],
)
def test_a_method_keeps_so_many_tensors_of_a_site(method, kept):
    assert num_slots(allocate(row_of(method))) == kept


def test_fora_keeps_a_feature_for_the_skipped_steps_after_it_alone():
    ops = allocate(row_of(fc.fora(3), 7))
    assert executed(ops, range(7))[1] == [1, 1, 0, 1, 1, 0, 0]


def test_fora_25_percent_holds_nothing_after_step_9():
    held = executed(allocate(row_of(fc.methods.fora_paper(25))), range(20))[1]
    assert held == [1, 0] * 5 + [0] * 10


def test_all_compute_stores_nothing():
    assert allocate((fc.parts.Cell(),) * 4) == (Op(),) * 4


def test_a_freed_slot_is_taken_again_in_the_same_step():
    """Step 1 reads step 0 for the last time and is read itself: one slot serves both."""
    row = (fc.parts.Cell(), fc.parts.Cell(((0, 1.0),)), fc.parts.Cell(((1, 1.0),)))
    assert allocate(row, folded=False) == (
        Op(keeps=(KeptSum(0, OUT),)),
        Op(((0, 1.0),), (KeptSum(0, OUT),), (0,)),
        Op(((0, 1.0),), (), (0,)),
    )


def test_a_run_by_fora_25_percent_holds_nothing_after_step_9(dit):
    """The tensors that the attention modules gave out are followed by weak references."""
    given_out, held = [], []

    def after_attention(module, args, output):
        given_out.append(weakref.ref(output))

    def after_call(module, args, output):
        held.append(sum(ref() is not None for ref in given_out))

    for block in dit.transformer_blocks:
        block.attn1.register_forward_hook(after_attention)
    dit.register_forward_hook(after_call)
    with fc.apply(dit, fc.methods.fora_paper(25).plan(fc.grid(dit, 20))):
        generate(dit, 20)
    assert held == [3, 0] * 5 + [0] * 10
