"""The folding of features into sums: a site keeps as few tensors between its steps as later steps need.

Every estimate is a weighted sum of computed features, even if its cell reads other estimates, because those are sums,
too. So no estimate is materialised for a later step to read. After a computed step, later cells need some weighted sums
of all features so far. The rank of their weights is the number of tensors that have to be kept, and each of these is a
tensor kept before plus multiples of tensors that are let go (the minimal realisation of a linear system). GOC with
N = 2 keeps one tensor a site instead of a feature and an estimate. Shifts add up in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forecache.parts.grid import MAX_WEIGHT, Cell
from forecache.plan.ops import OUT, KeptSum, Op, Shift, Terms

Matrix = NDArray[np.float64]

NEGLIGIBLE = 1e-9
"""Weights below this share of the largest one are zero: features in float32 cannot show them."""
MAX_FOLD_WEIGHT = 8.0
"""Largest weight a folded tensor may have; larger ones amplify rounding errors."""


def folded_where_smaller(row: Sequence[Cell]) -> list[Op]:
    """The operations of a row: folded where that keeps no more tensors, else as the cells are written."""
    written = as_written(row)
    if any(cell.gain is not None or cell.tokens is not None for cell in row):
        return written
    if not any(row[source].reads for cell in row for source, _ in cell.reads):
        return written
    ops = folded(row)
    return written if ops is None or _peak(ops) > _peak(written) else ops


def as_written(row: Sequence[Cell]) -> list[Op]:
    """The operations of a row as its cells say: every output that a later cell reads is kept, in the slot of its step.

    The newest feature is read first. Slots are not freed here: see `forecache.plan.slots`.
    """
    read = {source for cell in row for source, _ in cell.reads}
    return [
        Op(
            tuple(sorted(cell.reads, reverse=True)),
            (KeptSum(step, OUT),) if step in read else (),
            gain=cell.gain,
            shift=((cell.shift, 1.0),) if cell.shift is not None else (),
        )
        for step, cell in enumerate(row)
    ]


def folded(row: Sequence[Cell]) -> list[Op] | None:
    """The operations of a row that keep nothing but sums of computed features; None where its weights forbid that."""
    weights, shifts = _in_computed_features(row)
    if np.abs(weights).max() >= MAX_WEIGHT:
        return None
    ops: list[Op] = []
    slots: list[int] = []  # of the tensors that are kept now
    needs = np.zeros((len(row), 0))  # (steps, kept tensors): the weight that each later step gives to each
    next_slot = num_computed = 0
    for step, cell in enumerate(row):
        if not cell.computed:
            reads = _terms(slots, needs[step])
            if not reads:
                return None
            ops.append(Op(reads, shift=shifts[step]))
            continue
        needs = np.column_stack([needs, weights[:, num_computed]])
        num_computed += 1
        columns, sums = _fewest_columns(needs[step + 1 :])
        sources, slots, keeps = [*slots, OUT], list[int](), list[KeptSum]()
        for column, weight in zip(columns, sums, strict=True):
            base, adds = sources[column], _terms(sources, weight * (np.arange(len(weight)) != column))
            if adds or base == OUT:
                keeps.append(KeptSum(next_slot, base, adds))
                base, next_slot = next_slot, next_slot + 1
            slots.append(base)
        needs = needs[:, columns]
        ops.append(Op(keeps=tuple(keeps)))
    return ops


def _in_computed_features(row: Sequence[Cell]) -> tuple[Matrix, list[Shift]]:
    """Every estimate as weights of computed features, (steps, computed steps), and of constants.

    The rows of computed steps are zero, because nothing has to be kept for them.
    """
    computed = [step for step, cell in enumerate(row) if cell.computed]
    outputs = np.zeros((len(row), len(computed)))
    outputs[computed, range(len(computed))] = 1.0
    shifts: list[dict[str, float]] = []
    for step, cell in enumerate(row):
        shift: dict[str, float] = {}
        for source, weight in cell.reads:
            outputs[step] += weight * outputs[source]
            for name, share in shifts[source].items():
                shift[name] = shift.get(name, 0.0) + weight * share
        if cell.shift is not None:
            shift[cell.shift] = shift.get(cell.shift, 0.0) + 1.0
        shifts.append({name: share for name, share in shift.items() if abs(share) > NEGLIGIBLE})
    outputs[computed] = 0.0
    return outputs, [tuple(shift.items()) for shift in shifts]


def _fewest_columns(needs: Matrix) -> tuple[list[int], Matrix]:
    """The columns of ``needs`` (later steps, tensors) that remain after the dependent ones are folded into the others.

    Also the matrix (remaining columns, tensors) of the sums to keep: ``needs`` is the product of its remaining columns
    and that matrix.
    """
    count = needs.shape[1]
    columns, sums = list(range(count)), np.eye(count)
    smaller = needs
    if len(needs) > count:
        smaller = np.asarray(np.linalg.qr(needs, mode="r"), dtype=np.float64)  # the same dependencies in fewer rows
    while columns and (folds := [fold for column in columns if (fold := _fold(smaller, columns, column)) is not None]):
        column, weights = min(folds, key=_work)
        index = columns.index(column)
        columns.pop(index)
        sums = np.asarray(np.delete(sums, index, 0) + np.outer(weights, sums[index]), dtype=np.float64)
    return columns, sums


def _work(fold: tuple[int, Matrix]) -> tuple[int, float]:
    """The additions that a fold takes, then its largest weight; the oldest of equal folds is taken."""
    return int(np.count_nonzero(fold[1])), round(float(np.abs(fold[1]).max(initial=0)), 6)


def _fold(needs: Matrix, columns: Sequence[int], column: int) -> tuple[int, Matrix] | None:
    """A column as weights of the others, (others,); None where it does not depend on them."""
    others, own = needs[:, [other for other in columns if other != column]], needs[:, column]
    least = NEGLIGIBLE * np.abs(needs).max(initial=0)
    if not others.shape[1] or np.abs(own).max(initial=0) <= least:
        return (column, np.zeros(others.shape[1])) if np.abs(own).max(initial=0) <= least else None
    weights = np.asarray(np.linalg.lstsq(others, own, rcond=None)[0], dtype=np.float64)
    weights[np.abs(weights) <= NEGLIGIBLE] = 0.0
    depends = np.abs(others @ weights - own).max() <= least and np.abs(weights).max() <= MAX_FOLD_WEIGHT
    return (column, weights) if depends else None


def _terms(slots: Sequence[int], weights: Matrix) -> Terms:
    """Slots and their weights, the newest first, without negligible ones."""
    least = NEGLIGIBLE * np.abs(weights).max(initial=0)
    terms = [(slot, float(weight)) for slot, weight in zip(slots, weights, strict=True) if abs(weight) > least]
    return tuple(reversed(terms))


def _peak(ops: Sequence[Op]) -> int:
    """The most tensors that are kept at once."""
    last = last_reads(ops)
    held = most = 0
    for step, op in enumerate(ops):
        held += sum(kept.slot in last for kept in op.keeps) - sum(last[slot] == step for slot in op.slots_read)
        most = max(most, held)
    return most


def last_reads(ops: Sequence[Op]) -> dict[int, int]:
    """Virtual slot -> the last step that reads it."""
    return {slot: step for step, op in enumerate(ops) for slot in op.slots_read}
