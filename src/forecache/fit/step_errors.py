"""The error of a plan's estimates by step and site, from the features of one run without a cache.

T steps, S sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from forecache.fit.tuning.gram import Array, Gram, measure_gram
from forecache.parts.grid import Cell, Grid
from forecache.plan.plan import Plan
from forecache.sampling.sources import Condition, OnStep, Sampling, Source

Table = list[list[float | None]]
"""[site][step]; None for a cell whose error is not known."""


def measured_features(
    source: Source,
    conditions: Sequence[Condition],
    how: Sampling,
    batch: int,
    on_step: OnStep | None = None,
    sites: Grid | None = None,
) -> Gram:
    """The Gram matrices of the features of one run without a cache, from which the errors of any plan follow.

    sites: the grid of these plans; the model's finest sites by default.
    """
    return measure_gram(source, conditions, how, batch, on_step, sites=sites)[0]


def step_errors(gram: Gram, plan: Plan) -> Table:
    """The relative L2 error of every estimate: |estimate - feature| / |feature|, 0 where the feature is computed.

    The estimate is made of the features of a run without a cache, so that the error is the forecast's own, without what
    earlier errors did to the sample. None where a plan adds measured tensors, computes some tokens, or decides in the
    run; and for a feature that is zero.
    """
    gram.check(plan.grid)
    return [_of_site(gram.matrices[site], row) for site, row in enumerate(plan.rows)]


def document(gram: Gram, plan: Plan) -> dict[str, Any]:
    """The errors with the names of the sites, for a JSON file."""
    rounded = [[None if value is None else float(f"{value:.4g}") for value in row] for row in step_errors(gram, plan)]
    return {"sites": [site.name for site in plan.grid.sites], "relative_l2": rounded}


def _of_site(matrix_TT: Array, row: Sequence[Cell]) -> list[float | None]:
    own_TT = np.eye(len(row))
    emitted: list[Array | None] = []  # by step, what it emits as weights of computed features; None where not known
    errors: list[float | None] = []
    for step, cell in enumerate(row):
        emitted.append(own_TT[step] if cell.computed else _estimate(cell, emitted))
        errors.append(_relative(matrix_TT, step, emitted[step]))
    return errors


def _estimate(cell: Cell, emitted: Sequence[Array | None]) -> Array | None:
    """The weights of a skipped cell's estimate, which reads what earlier steps emitted."""
    if cell.constants or cell.tokens is not None:
        return None
    terms = [(weight, emitted[source]) for source, weight in cell.reads]
    known = [weight * vector for weight, vector in terms if vector is not None]
    return np.sum(known, axis=0) if len(known) == len(terms) else None


def _relative(matrix_TT: Array, step: int, weights_T: Array | None) -> float | None:
    size = float(matrix_TT[step, step])
    if weights_T is None or size <= 0:
        return None
    residual_T = -weights_T
    residual_T[step] += 1
    return max(0.0, float(residual_T @ matrix_TT @ residual_T) / size) ** 0.5
