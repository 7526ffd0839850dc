"""SmoothCache's schedules (arXiv 2411.10510): found by calibration, or read from a published file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from forecache.errors import PlanFileError
from forecache.io import files
from forecache.parts import schedules
from forecache.parts.grid import Action, Grid, Schedule, Site
from forecache.parts.statistics import Statistics
from forecache.plan.method import Method


def smoothcache(stats: Statistics, threshold: float) -> Method:
    """Reuse while the feature's mean relative L1 change stays below ``threshold`` (SmoothCache, arXiv 2411.10510).

    The change is averaged over the branches of one kind, so that all attentions share a schedule, and all MLPs. A step
    is skipped if the change since the last computed one is below the threshold, and the gap is one that was measured
    (``gaps`` of `forecache.calibrate`).
    """
    kinds = dict.fromkeys(site.kind for site in stats.sites)
    schedule = _by_kind({kind: _computed(stats, kind, threshold) for kind in kinds})

    def checked(step: int, site: Site, grid: Grid) -> Action:
        stats.check(grid)
        return schedule(step, site, grid)

    return Method(f"smoothcache(threshold={threshold:g})", checked)


def _computed(stats: Statistics, kind: str, threshold: float) -> list[bool]:
    """For each step, whether the sites of a kind are computed."""
    chosen = [index for index, site in enumerate(stats.sites) if site.kind == kind]
    error = stats.changes[:, chosen].mean(1).tolist()  # [step][gap - 1]
    computed, last = [True], 0
    for step in range(1, stats.num_steps):
        gap = step - last
        computed.append(gap > len(error[step]) or error[step][gap - 1] >= threshold)
        if computed[step]:
            last = step
    return computed


def _by_kind(rows: Mapping[str, Sequence[bool]]) -> Schedule:
    """A row of booleans (computed or not) per kind of branch; other kinds are always computed."""
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
"""What SmoothCache's schedule files call the kinds of branches."""


def smoothcache_file(path: str | os.PathLike[str]) -> Method:
    """A published SmoothCache schedule: JSON of ``{"attn1": [1, 0, ...], "ff": [1, 0, ...]}``, 1 where computed.

    Branches of kinds that the file does not name are always computed. Raises PlanFileError for anything else.
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
    return Method(f"smoothcache_file({path.name!r})", _by_kind(by_kind))
