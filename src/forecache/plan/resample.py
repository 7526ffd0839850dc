"""A plan for another number of steps: the same technique, dense where it was dense.

Only what a plan's cells show is used, so a plan file is enough. The forecast is the one of the known ones that gives
exactly the plan's weights on the plan's own schedule; where none does, or where a correction was calibrated step by
step, the plan is refused.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from forecache.errors import PlanError
from forecache.parts import gates
from forecache.parts.forecasts import Feedback, Forecast, Gradient, Reuse, Taylor
from forecache.parts.grid import Action, Cell, Gate, Grid, Schedule, Selector, Site, Tokens
from forecache.plan.method import Method
from forecache.plan.plan import Plan

HIGHEST_ORDER = 4
"""Of the Taylor forecasts that are recognised."""


def resampled(plan: Plan, num_steps: int) -> Plan:
    """The plan's technique for ``num_steps`` model calls: forecast, gate, chosen tokens, and the schedule stretched.

    Between two computed steps the density of computed steps is one over their distance; the new schedule has that
    density at the same share of the run, so that N = 2 stays N = 2 at any length. Quality is not that of the plan:
    measure it. Raises PlanError for a plan with calibrated corrections, or with weights that no known forecast gives.
    """
    if plan.constants:
        raise PlanError(
            f"The corrections of this plan were calibrated for {plan.num_steps} steps and cannot be stretched to "
            f"{num_steps}: calibrate for {num_steps} steps and make the plan again."
        )
    if num_steps == plan.num_steps:
        return plan
    method, opened = _method(plan)
    like = {site: stretched(row, num_steps) for site, row in zip(plan.grid.sites, plan.rows, strict=True)}
    old = dict(zip(plan.grid.sites, plan.rows, strict=True))
    rows = {site: [Cell() if at is None else old[site][at] for at in found] for site, found in like.items()}
    now = {(site, step): (site, at) in opened for site, found in like.items() for step, at in enumerate(found)}
    if not any(now.values()):  # the few skipped steps that are left are plain reuse
        method = replace(method, forecast=Reuse())
    made = replace(method, schedule=_schedule(rows), tokens=_tokens(rows), gate=_gate(now, method.forecast)).plan(
        replace(plan.grid, num_steps=num_steps)
    )
    origin = {"resampled": f"from {plan.num_steps} to {num_steps} steps"}
    return replace(made, provenance={**plan.provenance, **origin})


def piece(plan: Plan, steps: range) -> Plan:
    """The plan's technique for these of its steps alone: the first is computed, and nothing before it is read.

    Raises PlanError where that needs other weights, and no known forecast gives the plan's.
    """
    if steps == range(plan.num_steps):
        return plan
    grid = replace(plan.grid, num_steps=len(steps))
    if steps.start == 0 and not plan.constants:
        return replace(plan, grid=grid, rows=tuple(row[: steps.stop] for row in plan.rows))
    if plan.constants:
        raise PlanError(
            "The corrections of this plan were calibrated for whole runs, and this one is made in parts. By two "
            "transformers in turn: make a plan for each, on forecache.grid(pipe.transformer, n) and on "
            "forecache.grid(pipe.transformer_2, m). With guidance that ends in the middle: use a plan without them."
        )
    method, opened = _method(plan)
    old = zip(plan.grid.sites, plan.rows, strict=True)
    rows = {site: [Cell(), *row[steps.start + 1 : steps.stop]] for site, row in old}
    now = {(site, step): (site, steps.start + step) in opened for site in rows for step in range(len(steps))}
    if not any(now.values()):
        method = replace(method, forecast=Reuse())
    made = replace(method, schedule=_schedule(rows), tokens=_tokens(rows), gate=_gate(now, method.forecast)).plan(grid)
    return replace(made, provenance={**plan.provenance, "steps": f"{steps.start} to {steps.stop - 1}"})


def stretched(row: Sequence[Cell], num_steps: int) -> list[int | None]:
    """A row for another number of steps: for each the skipped step that it is like, or None where it is computed."""
    old = len(row)
    anchors = [step for step, cell in enumerate(row) if cell.computed]
    others = [step for step, cell in enumerate(row) if not cell.computed]
    found: list[int | None] = []
    before = -1
    for step in range(num_steps):
        place = step * old / num_steps
        count = math.floor(num_steps / old * _computed_until(place, anchors, old) + 1e-9)
        found.append(None if count > before or not others else _nearest(others, place))
        before = max(before, count)
    return found


def _computed_until(place: float, anchors: Sequence[int], old: int) -> float:
    """How many features were computed up to here, as a line through the computed steps.

    The run may end within a gap: the last one is taken to be as long as the one before it.
    """
    gap = anchors[-1] - anchors[-2] if len(anchors) > 1 else 1
    points = [*anchors, max(old, anchors[-1] + gap)]
    after = bisect.bisect_right(points, place)
    start, end = points[after - 1], points[after]
    return after - 1 + (place - start) / (end - start)


def _nearest(steps: Sequence[int], place: float) -> int:
    return min(steps, key=lambda step: abs(step - place))


def _schedule(rows: dict[Site, list[Cell]]) -> Schedule:
    def act(step: int, site: Site, grid: Grid) -> Action:
        cell = rows[site][step]
        return Action.PARTIAL if cell.tokens is not None else Action.COMPUTE if cell.computed else Action.SKIP

    return act


def _tokens(rows: dict[Site, list[Cell]]) -> Selector | None:
    if not any(cell.tokens is not None for row in rows.values() for cell in row):
        return None

    def choose(step: int, site: Site, grid: Grid) -> Tokens:
        chosen = rows[site][step].tokens
        assert chosen is not None
        return chosen

    return choose


def _gate(opened: dict[tuple[Site, int], bool], forecast: Forecast) -> Gate:
    if isinstance(forecast, Reuse):
        return gates.always
    return lambda step, site, grid: opened[site, step]


def _method(plan: Plan) -> tuple[Method, set[tuple[Site, int]]]:
    """The method that makes exactly this plan, and the cells that its forecast is open for.

    PlanError if no known forecast does. A cell that is reused because its history is too short counts as open.
    """
    rows = {site: list(row) for site, row in zip(plan.grid.sites, plan.rows, strict=True)}
    forecasting = {
        (site, step): not (cell.computed or cell.is_reuse) or cell.tokens is not None
        for site, row in rows.items()
        for step, cell in enumerate(row)
    }
    name = plan.provenance.get("method", "plan")
    for forecast in _candidates(plan):
        method = Method(name, _schedule(rows), forecast, _gate(forecasting, forecast), tokens=_tokens(rows))
        try:
            again = method.plan(plan.grid)
        except PlanError:
            continue
        if all(_same(*pair) for row in zip(plan.rows, again.rows, strict=True) for pair in zip(*row, strict=True)):
            everywhere = zip(rows.items(), replace(method, gate=gates.always).plan(plan.grid).rows, strict=True)
            return method, {
                (site, step)
                for (site, row), free in everywhere
                for step, (cell, other) in enumerate(zip(row, free, strict=True))
                if not cell.computed and _same(cell, other)
            }
    raise PlanError(
        f"The weights of this plan ({name}) are those of no forecast that forecache knows, so it cannot be stretched "
        "to another number of steps: make it by its method instead, method.plan(forecache.grid(pipe, num_steps))."
    )


def _candidates(plan: Plan) -> Iterator[Forecast]:
    yield Reuse()
    for order in range(1, HIGHEST_ORDER + 1):
        yield Taylor(order)
        yield Taylor(order, "emitted")
    for eta in sorted({eta for row in set(plan.rows) for eta in _etas(row)}):
        yield Gradient(eta)
        yield Gradient(eta, "computed")
    for strength in sorted({strength for row in set(plan.rows) for strength in _strengths(row)}):
        for order in range(1, HIGHEST_ORDER + 1):
            yield Feedback(order, strength)


def _etas(row: Sequence[Cell]) -> Iterator[float]:
    """What eta may have been, by the cells that weigh two features; the gap divides it in the paper's history."""
    computed: list[int] = []
    for step, cell in enumerate(row):
        if cell.computed:
            computed.insert(0, step)
        elif len(cell.reads) == 2 and len(computed) > 1:
            weight = -cell.reads[1][1]
            yield from (weight, weight * max(1, computed[0] - computed[1] - 1))


def _strengths(row: Sequence[Cell]) -> Iterator[float]:
    """What the strength of a feedback may have been, by the weights of estimates."""
    computed: list[int] = []
    for step, cell in enumerate(row):
        if cell.computed:
            computed.insert(0, step)
        elif len(computed) > 1:
            gap = computed[0] - computed[1] - 1
            found = {round(-weight * gap, 9) for source, weight in cell.reads if not row[source].computed}
            yield from (strength for strength in found if 0 <= strength <= 1)


def _same(cell: Cell, other: Cell) -> bool:
    """Whether two cells do the same, but for rounding of the weights."""
    return (
        replace(cell, reads=()) == replace(other, reads=())
        and [step for step, _ in cell.reads] == [step for step, _ in other.reads]
        and all(
            math.isclose(weight, found, rel_tol=1e-9, abs_tol=1e-12)
            for (_, weight), (_, found) in zip(cell.reads, other.reads, strict=True)
        )
    )
