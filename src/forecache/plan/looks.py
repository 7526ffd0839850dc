"""Looks back: computed steps of a plan that are estimated as well, to pay back what the gap before them was off.

A look is a column of the grid of its own, before the column of the computed step: it reads features, and nothing else
reads it. So the allocation of slots, the folding of features and the cost of a run need to know nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from forecache.errors import PlanError, PlanFileError
from forecache.io.text import short
from forecache.parts.grid import Cell, check_reads

Rows = Sequence[tuple[Cell, ...]]
T = TypeVar("T")


@dataclass(frozen=True)
class Look:
    """What happens at a computed step beside its computation.

    step: the computed step.
    shares: (step, share) pairs, in order: the skipped steps before it, and how much of the error that is found is paid
        back for each.
    cells: one a site: the estimate of the step, as if it were skipped.
    """

    step: int
    shares: tuple[tuple[int, float], ...]
    cells: tuple[Cell, ...]

    def check(self, rows: Rows) -> None:
        """Raises PlanError for a look that is not one of a plan with these rows."""
        if len(self.cells) != len(rows) or not 0 < self.step < len(rows[0]):
            raise PlanError(f"The look at step {self.step} has {len(self.cells)} cells for {len(rows)} sites.")
        if not all(row[self.step].computed for row in rows):
            raise PlanError(f"Step {self.step} is looked back from, so it has to be computed at every site.")
        steps = [step for step, _ in self.shares]
        if (
            not steps
            or steps != list(range(steps[0], self.step))
            or any(row[step].computed for row in rows for step in steps)
        ):
            raise PlanError(
                f"The look at step {self.step} pays back for the skipped steps just before it, not {steps}."
            )
        if not all(math.isfinite(share) for _, share in self.shares):
            raise PlanError(f"The shares of the look at step {self.step} must be finite; they are {self.shares}.")
        for cell in self.cells:
            if cell.undecided or cell.tokens is not None:
                raise PlanError(f"The look at step {self.step} is an estimate of known weights for all tokens.")
            check_reads(cell.reads, self.step)

    def as_document(self, encode: Callable[[Cell], Any]) -> dict[str, Any]:
        """The look as plain data; encode: of a cell."""
        groups: dict[Cell, list[int]] = {}
        for site, cell in enumerate(self.cells):
            groups.setdefault(cell, []).append(site)
        cells = [{"sites": sites, "cell": encode(cell)} for cell, sites in groups.items()]
        return {"step": self.step, "shares": [list(pair) for pair in self.shares], "cells": cells}


def look_of(document: Any, num_sites: int, decode: Callable[[Any, int], Cell]) -> Look:
    """The look of such a document; PlanFileError for anything else. decode: of a cell, and of its step."""
    wrong = PlanFileError(f"a look back must have step, shares and cells for {num_sites} sites, not {short(document)}")
    if not isinstance(document, Mapping) or set(document) != {"step", "shares", "cells"}:
        raise wrong
    step, pairs, groups = document["step"], document["shares"], document["cells"]
    if type(step) is not int or not isinstance(pairs, list) or not isinstance(groups, list):
        raise wrong
    shares: list[tuple[int, float]] = []
    for pair in pairs:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or type(pair[0]) is not int
            or type(pair[1]) not in (int, float)
        ):
            raise wrong
        shares.append((pair[0], float(pair[1])))
    cells: dict[int, Cell] = {}
    for group in groups:
        if not isinstance(group, Mapping) or set(group) != {"sites", "cell"} or not isinstance(group["sites"], list):
            raise wrong
        for site in group["sites"]:
            if type(site) is not int or site in cells:
                raise wrong
            cells[site] = decode(group["cell"], step)
    if sorted(cells) != list(range(num_sites)):
        raise wrong
    return Look(step, tuple(shares), tuple(cells[site] for site in range(num_sites)))


@dataclass(frozen=True)
class Columns:
    """The columns of a run: its steps, with a look before every step that has one.

    steps: the step of every column.
    looks: the columns that are looks.
    """

    steps: tuple[int, ...]
    looks: frozenset[int]

    @classmethod
    def of(cls, num_steps: int, looks: Iterable[Look]) -> Columns:
        """The columns of a run of so many steps with these looks."""
        looked = {look.step for look in looks}
        steps = [step for step in range(num_steps) for _ in range(1 + (step in looked))]
        first = {column for column, step in enumerate(steps) if step in steps[column + 1 : column + 2]}
        return cls(tuple(steps), frozenset(first))

    def of_steps(self, values: Sequence[T]) -> list[T]:
        """The values of the columns that are steps."""
        return [value for column, value in enumerate(values) if column not in self.looks]

    def of_looks(self, values: Sequence[T]) -> dict[int, T]:
        """The values of the columns that are looks, by step."""
        return {self.steps[column]: values[column] for column in sorted(self.looks)}

    def merged(self, values: Sequence[int], merge: Callable[[Iterable[int]], int]) -> tuple[int, ...]:
        """One value a step: that of its column, or of both its columns."""
        by_step: dict[int, list[int]] = {}
        for step, value in zip(self.steps, values, strict=True):
            by_step.setdefault(step, []).append(value)
        return tuple(merge(part) for part in by_step.values())

    def with_outputs(self, peaks: Sequence[int], output_bytes: int) -> list[int]:
        """Peak bytes of columns, with the output of a look, which is kept while its step is computed."""
        return [peak + output_bytes * (column - 1 in self.looks) for column, peak in enumerate(peaks)]


def expanded(rows: Rows, looks: Sequence[Look]) -> list[tuple[Cell, ...]]:
    """The rows of a plan with the columns of its looks; what cells read is renumbered."""
    if not looks:
        return list(rows)
    columns = Columns.of(len(rows[0]), looks)
    place = {step: column for column, step in enumerate(columns.steps) if column not in columns.looks}
    cells = {look.step: look.cells for look in looks}

    def moved(cell: Cell) -> Cell:
        return replace(cell, reads=tuple((place[step], weight) for step, weight in cell.reads))

    return [
        tuple(
            moved(cells[step][site] if column in columns.looks else row[step])
            for column, step in enumerate(columns.steps)
        )
        for site, row in enumerate(rows)
    ]
