"""SmoothCache's schedules (arXiv 2411.10510): found by calibration, or read from a published file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from forecache.errors import PlanFileError
from forecache.io import files
from forecache.methods.ingredients import statistics_of
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts import schedules
from forecache.parts.grid import Action, Grid, Schedule, Site
from forecache.parts.statistics import Statistics
from forecache.plan.method import Method


@register
def smoothcache(
    stats: Statistics | str | os.PathLike[str],
    threshold: Annotated[float, Range(least=0, usual=0.3, slider=(0, 1, 0.01))],
) -> Method:
    """Reuse while the mean relative L1 change of the feature is small (SmoothCache, arXiv 2411.10510).

    The change is averaged over the branches of one kind, so that all attentions share a schedule, and all MLPs. A step
    is skipped if the change since the last computed one is below the threshold, and the gap is one that was measured
    (``gaps`` of `forecache.calibrate`).

    stats: statistics of this model, scheduler and number of steps, from `forecache.calibrate`
    threshold: change below which a feature is reused
    """
    measured = statistics_of(stats)
    kinds = dict.fromkeys(site.kind for site in measured.sites)
    by_kind = _by_kind({kind: _computed(measured, kind, threshold) for kind in kinds})

    def schedule(step: int, site: Site, grid: Grid) -> Action:
        measured.check(grid)
        return by_kind(step, site, grid)

    return Method("smoothcache", schedule)


def _computed(stats: Statistics, kind: str, threshold: float) -> list[bool]:
    """For each step, whether the sites of a kind are computed."""
    indices = [index for index, site in enumerate(stats.sites) if site.kind == kind]
    error = stats.changes[:, indices].mean(1).tolist()  # [step][gap - 1]
    computed, last = [True], 0
    for step in range(1, stats.num_steps):
        gap = step - last
        computed.append(gap > len(error[step]) or error[step][gap - 1] >= threshold)
        if computed[step]:
            last = step
    return computed


def _by_kind(rows: Mapping[str, Sequence[bool]]) -> Schedule:
    """A schedule with one row of booleans (computed or not) per kind of branch; other kinds are always computed."""
    schedule = schedules.every(1)
    for kind, row in rows.items():
        schedule = schedules.at(schedules.kind(kind), schedules.by_step(row), schedule)
    return schedule


SMOOTHCACHE_KINDS = {
    "attn1": "attn",
    "attn": "attn",
    "attn2": "cross",
    "cross_attn": "cross",
    "ff": "mlp",
    "mlp": "mlp",
}
"""Kinds of branches by their names in SmoothCache's schedule files."""


@register
def smoothcache_file(path: str | os.PathLike[str]) -> Method:
    """Published schedule of SmoothCache (arXiv 2411.10510), a JSON file.

    It maps kinds to rows, ``{"attn1": [1, 0, ...], "ff": [1, 0, ...]}``, 1 where computed. Branches of other kinds are
    always computed. Raises PlanFileError for any other file.

    path: of the file
    """
    path = Path(path)
    try:
        table = files.document(path, 2**20)
    except OSError as error:
        raise PlanFileError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise PlanFileError(f"{path} is not JSON that can be read: {str(error).rstrip('.')}.") from error
    rows = list(table.values()) if isinstance(table, dict) and all(name in SMOOTHCACHE_KINDS for name in table) else []
    if not rows or not all(isinstance(row, list) and row and all(entry in (0, 1) for entry in row) for row in rows):
        raise PlanFileError(
            f"{path} is not a SmoothCache schedule: it must map {', '.join(SMOOTHCACHE_KINDS)} to lists of 0 and 1."
        )
    kinds = [SMOOTHCACHE_KINDS[name] for name in table or ()]
    if twice := [kind for kind in set(kinds) if kinds.count(kind) > 1]:
        raise PlanFileError(f"{path} names {twice[0]} twice, as {' and '.join(table or ())}: keep one of them.")
    by_kind = {SMOOTHCACHE_KINDS[name]: [bool(entry) for entry in row] for name, row in dict(table or {}).items()}
    return Method("smoothcache_file", _by_kind(by_kind))
