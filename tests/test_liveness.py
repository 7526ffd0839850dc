"""Liveness: a feature is kept from the step that emits it to the last step that reads it, and not a step longer."""

import math
import weakref

import pytest
from conftest import generate
from hypothesis import given
from hypothesis import strategies as st
from plans import methods, rows

import forecache as fc
from forecache.liveness import Op, alive, allocate, slots

SITES = tuple(fc.Site(f"blocks.{i}.{kind}", i, kind) for i in range(2) for kind in ("attn", "mlp"))
any_row = st.integers(1, 14).flatmap(rows)


def emitted(row, features):
    """What every step emits, with all of the past at hand."""
    out = []
    for step, cell in enumerate(row):
        out.append(math.fsum(w * out[c] for c, w in cell.reads) if cell.reads else features[step])
    return out


def executed(ops, features):
    """What every step emits when only the slots are at hand, and how many of them are full after each step."""
    kept, out, full = {}, [], []
    for step, op in enumerate(ops):
        out.append(math.fsum(w * kept[slot] for slot, w in op.reads) if op.reads else features[step])
        for slot in op.frees:
            del kept[slot]
        if op.store is not None:
            assert op.store not in kept, "a live feature was overwritten"
            kept[op.store] = out[-1]
        full.append(len(kept))
    return out, full


def needed(row):
    """How many features a later step still reads, after each step: no cache can hold fewer."""
    readers = [{later for later, cell in enumerate(row) if step in dict(cell.reads)} for step in range(len(row))]
    return [sum(any(reader > now for reader in readers[step]) for step in range(now + 1)) for now in range(len(row))]


@given(any_row)
def test_slots_give_what_the_whole_past_would_give(row):
    features = [float(3**step) for step in range(len(row))]
    assert executed(allocate(row), features)[0] == emitted(row, features)


@given(any_row)
def test_exactly_the_features_with_a_later_reader_are_kept(row):
    ops = allocate(row)
    assert executed(ops, [0.0] * len(row))[1] == needed(row)
    assert slots(ops) == max(needed(row))


@given(methods(), st.integers(1, 20))
def test_the_rows_of_methods_run_on_as_few_slots(method, num_steps):
    for row in method.plan(fc.Grid(num_steps, SITES[:1])).rows:
        features = [float(2**step) for step in range(num_steps)]
        assert executed(allocate(row), features) == (emitted(row, features), needed(row))


@given(st.integers(1, 8).flatmap(lambda steps: st.lists(rows(steps), min_size=1, max_size=4)), st.data())
def test_alive_is_the_peak_of_each_step_with_the_sites_run_in_order(table, data):
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
    assert alive([allocate(row) for row in table], sizes, [0] * len(table)) == tuple(peaks)


def row_of(method, num_steps=20):
    return method.plan(fc.Grid(num_steps, SITES)).rows[0]


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        (fc.fora(1), 0),
        (fc.fora(2), 1),
        (fc.fora(4), 1),
        (fc.goc(fc.fora(2), 1.0), 2),
        (fc.goc(fc.fora(3), 1.0), 2),
        (fc.goc(fc.fora(3), 1.0, history="computed"), 2),
        (fc.taylorseer(fc.fora(3), 1), 2),
        (fc.taylorseer(fc.fora(3), 2), 3),
        (fc.taylorseer(fc.fora(3), 3), 4),
    ],
)
def test_a_method_keeps_as_many_features_of_a_site_as_its_forecast_reads(method, kept):
    assert slots(allocate(row_of(method))) == kept


def test_fora_keeps_a_feature_for_the_skipped_steps_after_it_alone():
    ops = allocate(row_of(fc.fora(3), 7))
    assert executed(ops, range(7))[1] == [1, 1, 0, 1, 1, 0, 0]


def test_fora_25_percent_holds_nothing_after_step_9():
    held = executed(allocate(row_of(fc.fora_paper(25))), range(20))[1]
    assert held == [1, 0] * 5 + [0] * 10


def test_all_compute_stores_nothing():
    assert allocate((fc.Cell(),) * 4) == (Op((), (), None),) * 4


def test_a_freed_slot_is_taken_again_in_the_same_step():
    """Step 1 reads step 0 for the last time and is read itself: one slot serves both."""
    row = (fc.Cell(), fc.Cell(((0, 1.0),)), fc.Cell(((1, 1.0),)))
    assert allocate(row) == (
        Op((), (), 0),
        Op(((0, 1.0),), (0,), 0),
        Op(((0, 1.0),), (0,), None),
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
    with fc.apply(dit, fc.fora_paper(25).plan(fc.grid(dit, 20))):
        generate(dit, 20)
    assert held == [3, 0] * 5 + [0] * 10
