"""Plans at hand: those that ship with the library, that lie in a folder or on the hub, or that are given as they are.

Which of them was made for a run is seen from its grid: the fingerprint of the model, the scheduler with its settings,
and the number of steps.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forecache.errors import PlanError, PlanFileError
from forecache.io.text import short
from forecache.parts.grid import Grid
from forecache.parts.identity import is_same, scheduler_differences
from forecache.plan import file, hub
from forecache.plan.plan import Plan

NEAR = 1.15
"""The largest ratio, up or down, between the speedup of a plan and the one that was asked for."""

HEAD_BYTES = 256
"""The head of a plan file, which holds its format."""

PlanPlace = Plan | str | os.PathLike[str]
"""A plan, a plan file, a folder of plan files, or a repository on the hub (``owner/name``)."""

_SHIPPED: list[Path] = []


def ship(folder: Path) -> None:
    """Add a folder to the plans that ship with the library."""
    _SHIPPED.append(folder)


def shipped() -> tuple[StoredPlan, ...]:
    """The plans that ship with the library."""
    return tuple(entry for folder in _SHIPPED for entry in _in_folder(folder))


@dataclass(frozen=True)
class StoredPlan:
    """A plan with the place that it comes from.

    origin: the place, as a sentence names it
    path: the plan file; None for a plan that was given as it is
    plan: the plan itself; None for a file
    """

    origin: str
    path: Path | None = None
    plan: Plan | None = None

    def load(self) -> Plan:
        """The plan; raises PlanFileError for a file that cannot be read."""
        if self.plan is not None:
            return self.plan
        assert self.path is not None
        return Plan.load(self.path)

    def may_be_of(self, fingerprint: str) -> bool:
        """Whether the plan can be of a model with this fingerprint; a file of another model is not parsed."""
        structure = fingerprint.partition(":")[0]
        return self.path is None or structure.encode() in self.path.read_bytes()


def at(places: PlanPlace | Iterable[PlanPlace]) -> tuple[StoredPlan, ...]:
    """The plans of one place or several.

    Raises PlanFileError for a place without a plan, and PlanError for what is no place.
    """
    if isinstance(places, Plan | str | os.PathLike) or not isinstance(places, Iterable):
        return tuple(_of(places))
    return tuple(entry for place in places for entry in _of(place))


def fitting(entries: Sequence[StoredPlan], grid: Grid, speedup: float) -> tuple[StoredPlan, Plan] | None:
    """The plan that was made for the run of a grid and comes nearest to a speedup; None where none is near.

    The first of those that are equally near is taken. A plan without a fingerprint or without a scheduler does not say
    what it was made for, so it is none of them.
    """
    if not grid.fingerprint or not grid.scheduler:
        return None
    fit = [
        (distance, number, entry, plan)
        for number, entry in enumerate(entries)
        if entry.may_be_of(grid.fingerprint)
        and is_made_for(plan := entry.load(), grid)
        and (distance := abs(math.log(speedup * plan.computed_share))) <= math.log(NEAR)
    ]
    if not fit:
        return None
    _, _, entry, plan = min(fit, key=lambda one: one[:2])
    return entry, plan


def is_made_for(plan: Plan, grid: Grid) -> bool:
    """Whether a plan was made for this very model, scheduler and number of steps."""
    own = plan.grid
    return (
        (own.num_steps, own.sites) == (grid.num_steps, grid.sites)
        and bool(own.fingerprint and own.scheduler)
        and is_same(own.fingerprint, grid.fingerprint)
        and not scheduler_differences(own.scheduler, grid.scheduler)
    )


def _of(place: Any) -> list[StoredPlan]:
    if isinstance(place, Plan):
        return [StoredPlan(f"the plan {place.provenance.get('method', '')}".rstrip(), plan=place)]
    if not isinstance(place, str | os.PathLike):
        raise PlanError(
            f"Plans are looked for in a folder, a plan file or a hub repository, or given as a list of plans; "
            f"{type(place).__name__} {short(place)} is none of these."
        )
    path = Path(place)
    if path.is_file():
        file.read(path)  # so that a damaged file is refused now
        return [StoredPlan(str(path), path)]
    if not path.is_dir():
        if not isinstance(place, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
            raise PlanFileError(
                f"There is no folder or plan file {str(place)!r}, and it is no hub repository owner/name."
            )
        path = hub.folder(place)
    entries = _in_folder(path)
    if not entries:
        raise PlanFileError(f"{place} holds no plan file: save plans there with plan.save, or name another folder.")
    return entries


def _in_folder(folder: Path) -> list[StoredPlan]:
    """The plan files in a folder, by their names; other JSON files are left out."""
    return [StoredPlan(str(path), path) for path in sorted(folder.glob("*.json")) if _is_plan(path)]


def _is_plan(path: Path) -> bool:
    """Whether the head of a file says that it is a plan."""
    with path.open("rb") as opened:
        return file.DOCUMENT.format.encode() in opened.read(HEAD_BYTES)
