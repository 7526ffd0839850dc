"""Schedules: the cells of the grid that are computed. Each is a function (step, site, grid) -> Action.

every(3)                                computes steps 0, 3, 6, ...           #..#..#.
every(3, anchor="end")                  phase fixed at the last step          ##..#..#
spread(2.5)                             8 / 2.5 = 3.2, so 4 steps, evenly     #.#.#.#.
either(first(3), every(4))              computes where one of the two does    ###.#...
inject(every(4))                        some tokens at every second skip      #.o.#.o.
at(kind("mlp"), every(3), every(2))     one schedule for MLPs, one for the rest
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Real
from typing import Literal

from forecache.errors import PlanError
from forecache.parts.bounds import Bounds
from forecache.parts.grid import Action, Grid, Schedule, Site

SPANS = ("stack", "group")
"""Kinds of sites that span several blocks; their depth is that of the first."""

WRITTEN = (Action.COMPUTE, Action.SKIP, Action.PARTIAL)
"""The actions that a pattern is written in."""

Where = Callable[[Site], bool]
"""site -> whether a part of a schedule or gate applies to it."""


def _when(condition: bool) -> Action:
    return Action.COMPUTE if condition else Action.SKIP


def every(interval: int, *, anchor: Literal["start", "end"] = "start") -> Schedule:
    """Compute one step in ``interval``, and always step 0 (FORA, arXiv 2407.01425).

    interval: steps from one computed step to the next, at least 1.
    anchor: ``start`` [default] computes the steps divisible by ``interval`` (the phase of the GOC and EOC papers);
        ``end`` counts from the last step, which is then always computed (FORA's released code).
    """
    if not isinstance(interval, int) or interval < 1:
        raise PlanError(
            f"An interval is a whole number of at least 1 (compute every step); {interval!r} was asked for."
        )
    if anchor not in ("start", "end"):
        raise PlanError(f"anchor must be 'start' or 'end', not {anchor!r}.")

    def schedule(step: int, site: Site, grid: Grid) -> Action:
        phase = step if anchor == "start" else grid.num_steps - 1 - step
        return _when(step == 0 or phase % interval == 0)

    return schedule


def spread(speedup: float, *, first: int = 1, last: bool = False, bend: float = 0.0) -> Schedule:
    """Compute one step in ``speedup``, which need not be whole: ``ceil(num_steps / speedup)`` steps over the run.

    speedup: steps of the run for each computed one, at least 1.
    first: steps computed at the start, at least 1 [1].
    last: whether the last step is computed [False].
    bend: density of computed steps: 0 [default] is even, above 0 they lie closer together at the start of the run,
        where the density is 1 + bend, and further apart at its end, where it is 1 - bend; below 0 the other way round.

    Without options and with a whole ``speedup`` that divides the run it is `every`.
    """
    if isinstance(speedup, bool) or not isinstance(speedup, Real) or not 1 <= speedup < math.inf:
        raise PlanError(f"A schedule computes one step in 1 or more; {speedup!r} was asked for.")
    if isinstance(first, bool) or not isinstance(first, int) or first < 1:
        raise PlanError(f"At least the first step is computed, because nothing is kept before it; first={first!r}.")
    if not -1 < bend < 1:
        raise PlanError(f"A bend lies between -1 and 1, where one end of the run has no computed step; not {bend!r}.")

    @functools.cache
    def steps(num_steps: int) -> frozenset[int]:
        count = math.ceil(num_steps / speedup - 1e-9)
        return frozenset(_spread(num_steps, count, min(first, count), last, bend))

    return lambda step, site, grid: _when(step in steps(grid.num_steps))


def _spread(num_steps: int, count: int, first: int, last: bool, bend: float) -> list[int]:
    """``count`` distinct steps, ascending: the ``first`` ones, and the others at equal parts of the density's sum."""
    rest = count - first
    end = num_steps - 1 if last else num_steps
    parts = rest + (not last)
    placed = list(range(first))
    for number in range(1, rest + 1):
        place = first - 1 + (end - first + 1) * _bent(number / parts, bend)
        placed.append(max(placed[-1] + 1, math.ceil(place - 1e-9)))
    for number in range(count - 1, first - 1, -1):  # none beyond the run
        placed[number] = min(placed[number], num_steps - (count - number))
    return placed


def _bent(share: float, bend: float) -> float:
    """The part of the run by which a share of the computed steps is placed: solves u + bend * (u - u^2) = share."""
    if abs(bend) < 1e-12:
        return share
    return (1 + bend - math.sqrt((1 + bend) ** 2 - 4 * bend * share)) / (2 * bend)


def on(steps: Collection[int]) -> Schedule:
    """Compute exactly these steps."""
    listed = frozenset(steps)
    lowest, highest = min(listed, default=0), max(listed, default=0)

    def schedule(step: int, site: Site, grid: Grid) -> Action:
        if listed and (lowest < 0 or highest >= grid.num_steps):
            outside = sorted(other for other in listed if not 0 <= other < grid.num_steps)
            raise PlanError(f"Steps {outside} lie outside a run of {grid.num_steps} steps (0 to {grid.num_steps - 1}).")
        return _when(step in listed)

    return schedule


def undecided(bounds: Bounds, head: int = 0, tail: int = 0) -> Schedule:
    """Steps that are decided about while the plan runs, but for the ends of the run.

    bounds: of the decider; its first and last steps are computed
    head, tail: number of first and last blocks that are computed at every step
    """

    def schedule(step: int, site: Site, grid: Grid) -> Action:
        if step in bounds.ends(grid.num_steps) or site.depth < head:
            return Action.COMPUTE
        last = grid.sites[-1]
        is_last = site == last if last.kind in SPANS else site.depth > last.depth - tail
        return Action.COMPUTE if tail and is_last else Action.DECIDE

    return schedule


def except_on(steps: Collection[int]) -> Schedule:
    """Compute every step but these."""
    inner = on(steps)
    return lambda step, site, grid: _when(inner(step, site, grid) is Action.SKIP)


def first(count: int) -> Schedule:
    """Compute the first ``count`` steps."""
    if count < 0:
        raise PlanError(f"The first {count} steps cannot be computed: give a number from 0 on.")
    return lambda step, site, grid: _when(step < count)


def last(count: int) -> Schedule:
    """Compute the last ``count`` steps."""
    return lambda step, site, grid: _when(step >= grid.num_steps - count)


def either(*schedules: Schedule) -> Schedule:
    """Compute where at least one of the schedules does; where none does, decide or compute some tokens if one does."""

    def combined(step: int, site: Site, grid: Grid) -> Action:
        actions = {schedule(step, site, grid) for schedule in schedules}
        return next(
            (action for action in (Action.COMPUTE, Action.DECIDE, Action.PARTIAL) if action in actions), Action.SKIP
        )

    return combined


def inject(schedule: Schedule, every: int = 2) -> Schedule:
    """Compute some tokens at one step in ``every`` of each gap (ProCache, arXiv 2512.17298).

    The skipped steps of a gap are numbered 1, 2, 3, ...; the paper makes the even ones partial: ``#...#..#`` becomes
    ``#.o.#.o#``.
    """
    if not isinstance(every, int) or every < 1:
        raise PlanError(f"inject() takes one skipped step in every 1, 2, ...; {every!r} was asked for.")

    def injected(step: int, site: Site, grid: Grid) -> Action:
        number = 0  # of the step in its gap
        while number <= step and schedule(step - number, site, grid) is Action.SKIP:
            number += 1
        return Action.PARTIAL if number and number % every == 0 else schedule(step, site, grid)

    return injected


def at(where: Where, schedule: Schedule, otherwise: Schedule) -> Schedule:
    """``schedule`` for the sites for which ``where`` holds, ``otherwise`` for the others."""
    return lambda step, site, grid: (schedule if where(site) else otherwise)(step, site, grid)


def kind(*kinds: str) -> Where:
    """The sites of these kinds, such as ``kind("mlp")``."""
    return lambda site: site.kind in kinds


def depth(low: int, high: int) -> Where:
    """The sites of blocks ``low`` to ``high - 1``."""
    return lambda site: low <= site.depth < high


def by_step(picture: str | Sequence[int], *, owner: str = "") -> Schedule:
    """A pattern, one entry a step: ``"#..#"``, or numbers as ProCache writes them, ``[1, 0, 0, 1]``.

    ``#`` or 1 computes, ``.`` or 0 skips, ``o`` or 2 computes some tokens.

    owner: the published method whose pattern it is, for an error message; empty for a pattern of the user's own
    """
    signs: Mapping[str | int, Action] = dict(zip(("#", ".", "o", 1, 0, 2), (*WRITTEN, *WRITTEN), strict=True))
    if strange := sorted({repr(entry) for entry in picture if entry not in signs}):
        raise PlanError(
            f"A pattern is written with '#' (compute), '.' (skip) and 'o' (some tokens), or with 1, 0 and 2; it has "
            f"{', '.join(strange[:5])}."
        )
    actions = [signs[entry] for entry in picture]

    def schedule(step: int, site: Site, grid: Grid) -> Action:
        if len(actions) != grid.num_steps and owner:
            raise PlanError(
                f"{owner} is a published schedule of {len(actions)} steps, and the run has {grid.num_steps}: sample "
                f"with {len(actions)} steps, or take a schedule for any number of steps, such as fora."
            )
        if len(actions) != grid.num_steps:
            raise PlanError(
                f"The pattern has {len(actions)} entries, the run {grid.num_steps} steps: write one entry a step."
            )
        return actions[step]

    return schedule


def lookup(table: Mapping[str, Sequence[bool]]) -> Schedule:
    """A table of booleans, whether a step is computed: one row a site name, one entry a step.

    For schedules that were learned or searched.
    """

    def schedule(step: int, site: Site, grid: Grid) -> Action:
        row = table.get(site.name)
        if row is None:
            raise PlanError(f"The table has no row for {site.name}: it was made for another model.")
        if len(row) != grid.num_steps:
            raise PlanError(f"The row of {site.name} has {len(row)} entries, the run {grid.num_steps} steps.")
        return _when(row[step])

    return schedule


def picture(schedule: Schedule, num_steps: int, site: Site | None = None) -> str:
    """The schedule of one site as a line of ``#`` (compute), ``.`` (skip) and ``o`` (some tokens)."""
    site = site or Site("blocks.0.attn", 0, "attn")
    grid = Grid(num_steps, (site,))
    return "".join(schedule(step, site, grid).value for step in range(num_steps))
