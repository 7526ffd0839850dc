"""Which features are alive when: a plan's row turned into slots, as a compiler allocates registers.

A feature is kept from the step that emits it to the last step that reads it, and not at all if none does. Because a
plan is static this is known before the run: the session only follows it, and `Plan.cost` predicts from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forecache._core import Cell


@dataclass(frozen=True)
class Op:
    """One cell, ready to run: read these slots, then free those, correct the sum, then store the result.

    reads: (slot, weight) pairs, empty for a computed cell. frees: slots whose feature was read for the last time.
    store: the slot that keeps the result, or None if no later step reads it. gain, shift: the cell's constants.
    """

    reads: tuple[tuple[int, float], ...]
    frees: tuple[int, ...]
    store: int | None
    gain: str | None = None
    shift: str | None = None


def allocate(row: Sequence[Cell]) -> tuple[Op, ...]:
    """The row of one site as operations on as few slots as it ever keeps features."""
    last_reader = {source: step for step, cell in enumerate(row) for source, _ in cell.reads}
    slot_of: dict[int, int] = {}
    free: list[int] = []
    ops = []
    for step, cell in enumerate(row):
        reads = tuple((slot_of[source], weight) for source, weight in cell.reads)
        frees = tuple(slot_of.pop(source) for source, _ in cell.reads if last_reader[source] == step)
        free.extend(frees)
        store = None
        if step in last_reader:
            # len(slot_of) slots are in use; with none free, the next number is new
            store = slot_of[step] = free.pop() if free else len(slot_of)
        ops.append(Op(reads, frees, store, cell.gain, cell.shift))
    return tuple(ops)


def slots(ops: Sequence[Op]) -> int:
    """How many slots the operations use."""
    return 1 + max((op.store for op in ops if op.store is not None), default=-1)


def alive(rows: Sequence[Sequence[Op]], sizes: Sequence[int]) -> tuple[int, ...]:
    """The peak bytes held during each step, sites in order of execution; ``sizes`` gives bytes per feature and site."""
    held = 0
    peaks = []
    for step in range(len(rows[0])):
        peak = held
        for ops, size in zip(rows, sizes, strict=True):
            op = ops[step]
            held += size * ((op.store is not None) - len(op.frees))
            peak = max(peak, held)
        peaks.append(peak)
    return tuple(peaks)
