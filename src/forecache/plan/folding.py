"""What a site keeps between its steps: as few sums of features as later steps read.

Every estimate is a weighted sum of computed features, even if its cell reads other estimates: they are sums, too. So no
estimate has to be made for a later one to read it. When a feature is computed, later cells need some weighted sums of
all features so far; the rank of these weights is how many tensors have to be kept, and each is one that was kept before
plus multiples of what is let go (the minimal realisation of a linear system). GOC at N = 2 keeps one tensor a site, not
a feature and an estimate. The constants of corrections add up beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forecache.parts.grid import MAX_WEIGHT, Cell

OUT = -1
"""What the site gives out in this step, where tensors that are kept have numbers from 0 on."""

Terms = tuple[tuple[int, float], ...]
Shift = tuple[tuple[str, float], ...]
"""Names of constants, and how much each counts."""
Matrix = NDArray[np.float64]

NOTHING = 1e-9
"""A share of the largest weight that features in float32 cannot tell from none."""
MOST = 8.0
"""No tensor is folded into others more than so many times."""


class Sum(NamedTuple):
    """A tensor that is kept under a number: another one, or OUT, and multiples of others added."""

    number: int
    base: int
    adds: Terms = ()


class Turn(NamedTuple):
    """One step of a site: the estimate reads these tensors, if the step is skipped, and these are kept after it."""

    reads: Terms
    sums: tuple[Sum, ...] = ()
    gain: str | None = None
    shift: Shift = ()


def turns(row: Sequence[Cell]) -> list[Turn]:
    """The steps of a row of cells, so that few tensors are kept and no estimate is, where estimates are sums."""
    plain = as_written(row)
    if any(cell.gain is not None or cell.tokens is not None for cell in row):
        return plain
    if not any(row[source].reads for cell in row for source, _ in cell.reads):
        return plain
    found = folded(row)
    return plain if found is None or _peak(found) > _peak(plain) else found


def as_written(row: Sequence[Cell]) -> list[Turn]:
    """The steps as their cells say: whatever is read later is kept, computed or estimated."""
    read = {source for cell in row for source, _ in cell.reads}
    return [
        Turn(
            cell.reads,
            (Sum(step, OUT),) if step in read else (),
            cell.gain,
            ((cell.shift, 1.0),) if cell.shift is not None else (),
        )
        for step, cell in enumerate(row)
    ]


def folded(row: Sequence[Cell]) -> list[Turn] | None:
    """The steps with nothing kept but sums of computed features; None where numbers do not allow it."""
    weights, shifts = _of_computed(row)
    if np.abs(weights).max() >= MAX_WEIGHT:
        return None
    found: list[Turn] = []
    numbers: list[int] = []  # of the tensors that are kept
    needs = np.zeros((len(row), 0))  # how much of each every later step reads
    made = computed = 0
    for step, cell in enumerate(row):
        if not cell.computed:
            reads = _terms(numbers, needs[step])
            if not reads:
                return None
            found.append(Turn(reads, shift=shifts[step]))
            continue
        needs = np.column_stack([needs, weights[:, computed]])
        computed += 1
        columns, sums = _fewest(needs[step + 1 :])
        sources, numbers, kept = [*numbers, OUT], list[int](), list[Sum]()
        for column, weight in zip(columns, sums, strict=True):
            base, adds = sources[column], _terms(sources, weight * (np.arange(len(weight)) != column))
            if adds or base == OUT:
                kept.append(Sum(made, base, adds))
                base, made = made, made + 1
            numbers.append(base)
        needs = needs[:, columns]
        found.append(Turn((), tuple(kept)))
    return found


def _of_computed(row: Sequence[Cell]) -> tuple[Matrix, list[Shift]]:
    """What each estimate is in terms of computed features, (steps, computed steps), and of constants.

    Rows of computed steps are zero: nothing has to be kept for them.
    """
    computed = [step for step, cell in enumerate(row) if cell.computed]
    given = np.zeros((len(row), len(computed)))  # what each step gives out
    given[computed, range(len(computed))] = 1.0
    shifts: list[dict[str, float]] = []
    for step, cell in enumerate(row):
        shift: dict[str, float] = {}
        for source, weight in cell.reads:
            given[step] += weight * given[source]
            for name, share in shifts[source].items():
                shift[name] = shift.get(name, 0.0) + weight * share
        if cell.shift is not None:
            shift[cell.shift] = shift.get(cell.shift, 0.0) + 1.0
        shifts.append({name: share for name, share in shift.items() if abs(share) > NOTHING})
    given[computed] = 0.0
    return given, [tuple(shift.items()) for shift in shifts]


def _fewest(needs: Matrix) -> tuple[list[int], Matrix]:
    """Which columns of ``needs`` (later steps, tensors) remain when those that others can stand for are folded away.

    The second: of every column that remains, the weights of all tensors in what is kept instead of it; ``needs`` is the
    product of its remaining columns with that.
    """
    count = needs.shape[1]
    columns, sums = list(range(count)), np.eye(count)
    smaller = needs
    if len(needs) > count:
        smaller = np.asarray(np.linalg.qr(needs, mode="r"), dtype=np.float64)  # the same dependencies in fewer rows
    while columns and (folds := [fold for each in columns if (fold := _fold(smaller, columns, each)) is not None]):
        column, weights = min(folds, key=_work)
        place = columns.index(column)
        columns.pop(place)
        sums = np.asarray(np.delete(sums, place, 0) + np.outer(weights, sums[place]), dtype=np.float64)
    return columns, sums


def _work(fold: tuple[int, Matrix]) -> tuple[int, float]:
    """How many additions a fold takes, and how much it multiplies; of equal ones the first is taken, the oldest."""
    return int(np.count_nonzero(fold[1])), round(float(np.abs(fold[1]).max(initial=0)), 6)


def _fold(needs: Matrix, columns: Sequence[int], column: int) -> tuple[int, Matrix] | None:
    """A column as a sum of the others, (others,); None where it is none."""
    others, own = needs[:, [each for each in columns if each != column]], needs[:, column]
    least = NOTHING * np.abs(needs).max(initial=0)
    if not others.shape[1] or np.abs(own).max(initial=0) <= least:
        return (column, np.zeros(others.shape[1])) if np.abs(own).max(initial=0) <= least else None
    weights = np.asarray(np.linalg.lstsq(others, own, rcond=None)[0], dtype=np.float64)
    weights[np.abs(weights) <= NOTHING] = 0.0
    stands = np.abs(others @ weights - own).max() <= least and np.abs(weights).max() <= MOST
    return (column, weights) if stands else None


def _terms(numbers: Sequence[int], weights: Matrix) -> Terms:
    """Tensors by their numbers, and the weights that are not nothing; the newest first."""
    least = NOTHING * np.abs(weights).max(initial=0)
    terms = [(number, float(weight)) for number, weight in zip(numbers, weights, strict=True) if abs(weight) > least]
    return tuple(reversed(terms))


def _peak(found: Sequence[Turn]) -> int:
    """The most tensors that are kept at once."""
    last = last_uses(found)
    held = most = 0
    for step, turn in enumerate(found):
        held += sum(each.number in last for each in turn.sums) - sum(last[number] == step for number in used(turn))
        most = max(most, held)
    return most


def used(turn: Turn) -> dict[int, None]:
    """The tensors that a step needs, each once, in order."""
    parts = (number for each in turn.sums for number in (each.base, *(number for number, _ in each.adds)))
    return dict.fromkeys((*(number for number, _ in turn.reads), *(number for number in parts if number != OUT)))


def last_uses(found: Sequence[Turn]) -> dict[int, int]:
    """The last step that needs each tensor."""
    return {number: step for step, turn in enumerate(found) for number in used(turn)}
