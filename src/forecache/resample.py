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

from forecache import gates
from forecache._core import Action, Cell, Gate, Grid, Schedule, Selector, Site, Tokens
from forecache._errors import PlanError
from forecache.forecasts import Forecast, Gradient, Reuse, Taylor
from forecache.plan import Method, Plan

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
    method = _method(plan)
    rows = {site: stretched(row, num_steps) for site, row in zip(plan.grid.sites, plan.rows, strict=True)}
    grid = replace(plan.grid, num_steps=num_steps)
    opened = {(site, step): _open(rows[site][step]) for site in plan.grid.sites for step in range(num_steps)}
    if not any(opened.values()):  # the few skipped steps that are left are plain reuse
        method = replace(method, forecast=Reuse())
    new = replace(method, schedule=_schedule(rows), tokens=_tokens(rows), gate=_gate(opened, method.forecast))
    made = new.plan(grid)
    origin = {"resampled": f"from {plan.num_steps} to {num_steps} steps"}
    return replace(made, provenance={**plan.provenance, **origin})


def stretched(row: Sequence[Cell], num_steps: int) -> list[Cell]:
    """A row for another number of steps: the old cells that the new ones are like."""
    old = len(row)
    anchors = [step for step, cell in enumerate(row) if cell.computed]
    others = [step for step, cell in enumerate(row) if not cell.computed]
    cells: list[Cell] = []
    before = -1
    for step in range(num_steps):
        place = step * old / num_steps
        count = math.floor(num_steps / old * _computed_until(place, anchors, old) + 1e-9)
        if count > before or not others:
            cells.append(Cell())
        else:
            cells.append(row[_nearest(others, place)])
        before = max(before, count)
    return cells


def _computed_until(place: float, anchors: Sequence[int], old: int) -> float:
    """How many features were computed up to here, as a line through the computed steps; the end counts as one."""
    points = [*anchors, old]
    after = bisect.bisect_right(points, place)
    start, end = points[after - 1], points[min(after, len(points) - 1)]
    return after - 1 + ((place - start) / (end - start) if end > start else 0.0)


def _nearest(steps: Sequence[int], place: float) -> int:
    return min(steps, key=lambda step: abs(step - place))


def _open(cell: Cell) -> bool:
    """Whether a forecast other than reuse was at work."""
    return not cell.computed and (len(cell.reads) > 1 or cell.tokens is not None)


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


def _method(plan: Plan) -> Method:
    """The method that makes exactly this plan; PlanError if no known forecast does."""
    rows = {site: list(row) for site, row in zip(plan.grid.sites, plan.rows, strict=True)}
    opened = {(site, step): _open(cell) for site, row in rows.items() for step, cell in enumerate(row)}
    for forecast in _candidates(plan):
        name = plan.provenance.get("method", "plan")
        method = Method(name, _schedule(rows), forecast, _gate(opened, forecast), tokens=_tokens(rows))
        try:
            again = method.plan(plan.grid)
        except PlanError:
            continue
        if _same(plan, again):
            return method
    raise PlanError(
        f"The weights of this plan ({plan.provenance.get('method', 'of unknown origin')}) are those of no forecast "
        "that forecache knows, so it cannot be stretched to another number of steps: make it by its method instead, "
        "method.plan(forecache.grid(pipe, num_steps))."
    )


def _candidates(plan: Plan) -> Iterator[Forecast]:
    yield Reuse()
    for order in range(1, HIGHEST_ORDER + 1):
        yield Taylor(order)
        yield Taylor(order, "emitted")
    for eta in sorted({eta for row in set(plan.rows) for eta in _etas(row)}):
        yield Gradient(eta)
        yield Gradient(eta, "computed")


def _etas(row: Sequence[Cell]) -> Iterator[float]:
    """What eta may have been, by the cells that weigh two features; the gap divides it in the paper's history."""
    computed: list[int] = []
    for step, cell in enumerate(row):
        if cell.computed:
            computed.insert(0, step)
        elif len(cell.reads) == 2 and len(computed) > 1:
            weight = -cell.reads[1][1]
            yield from (weight, weight * max(1, computed[0] - computed[1] - 1))


def _same(plan: Plan, again: Plan) -> bool:
    for row, other in zip(plan.rows, again.rows, strict=True):
        for cell, found in zip(row, other, strict=True):
            if replace(cell, reads=()) != replace(found, reads=()) or not _near(cell.reads, found.reads):
                return False
    return True


def _near(reads: Sequence[tuple[int, float]], others: Sequence[tuple[int, float]]) -> bool:
    return [step for step, _ in reads] == [step for step, _ in others] and all(
        math.isclose(weight, other, rel_tol=1e-9, abs_tol=1e-12)
        for (_, weight), (_, other) in zip(reads, others, strict=True)
    )
