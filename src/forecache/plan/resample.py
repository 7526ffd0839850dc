"""A plan for another number of steps, or for a part of them: the same technique, dense where it was dense.

Only what the cells of a plan show is used, and the forecast of its recipe where it has one. Without a recipe the
forecast is recognised by its weights if it is reuse or a Taylor expansion; any other plan is refused.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from forecache.errors import PlanError
from forecache.parts import gates
from forecache.parts.bounds import Decision
from forecache.parts.forecasts import Forecast, Reuse, Taylor
from forecache.parts.grid import Action, Cell, Gate, Grid, Schedule, Selector, Site, Tokens
from forecache.plan.method import Method
from forecache.plan.online import Online, decided_rows, known_decisions
from forecache.plan.plan import Plan

LOOKS = "This plan corrects the sample in hindsight and {what}: make it by its method, or take one without hindsight."

HIGHEST_ORDER = 4
"""Of the Taylor forecasts that are recognised."""


def stretched(plan: Plan, num_steps: int, forecast: Forecast | None = None) -> Plan:
    """The technique of a plan for ``num_steps`` model calls: forecast, gate, tokens, and the schedule stretched.

    Between two computed steps the density of computed steps is one over their distance; the new schedule has that
    density at the same share of the run, so that N = 2 stays N = 2 at any length.

    forecast: of the plan's recipe, None to recognise it by its weights

    Raises PlanError for a plan whose weights are of no known forecast.
    """
    if plan.looks:
        raise PlanError(LOOKS.format(what=f"is for {plan.num_steps} steps and not for {num_steps}"))
    method, opened = _method(plan, forecast)
    old = dict(zip(plan.grid.sites, plan.rows, strict=True))
    sources = {site: stretched_row(row, num_steps) for site, row in old.items()}
    rows = {
        site: [Cell() if source is None else old[site][source] for source in steps] for site, steps in sources.items()
    }
    gate = {
        (site, step): (site, source) in opened for site, steps in sources.items() for step, source in enumerate(steps)
    }
    return _planned(plan, method, rows, gate, replace(plan.grid, num_steps=num_steps))


def part_of(plan: Plan, steps: range, forecast: Forecast | None = None) -> Plan:
    """The technique of a plan for a part of its steps: the first is computed, and nothing before it is read.

    forecast: of the plan's recipe, None to recognise it by its weights

    Raises PlanError where the part needs other weights, and no known forecast gives the plan's.
    """
    if steps == range(plan.num_steps):
        return plan
    if plan.looks:
        raise PlanError(LOOKS.format(what="pays back within whole runs, and this run is made in parts"))
    grid = replace(plan.grid, num_steps=len(steps))
    if plan.online is not None:
        return _part_of_online(plan, plan.online, steps, grid)
    if steps.start == 0 and not plan.constants:
        return replace(plan, grid=grid, rows=tuple(row[: steps.stop] for row in plan.rows))
    if plan.constants:
        raise PlanError(
            "The corrections of this plan were calibrated for whole runs, and this run is made in parts. With two "
            "transformers, one after the other: make a plan for each, on forecache.grid(pipe.transformer, n) and on "
            "forecache.grid(pipe.transformer_2, m). With guidance that ends in the middle: use a plan without "
            "corrections."
        )
    method, opened = _method(plan, forecast)
    old = zip(plan.grid.sites, plan.rows, strict=True)
    rows = {site: [Cell(), *row[steps.start + 1 : steps.stop]] for site, row in old}
    gate = {(site, step): (site, steps.start + step) in opened for site in rows for step in range(len(steps))}
    made = _planned(plan, method, rows, gate, grid)
    return replace(made, provenance={**made.provenance, "steps": f"{steps.start} to {steps.stop - 1}"})


def _part_of_online(plan: Plan, online: Online, steps: range, grid: Grid) -> Plan:
    """The part of a plan that decides while it runs, or that was decided so."""
    if plan.is_undecided and (online.bounds.at_least, online.bounds.at_most) != (None, None):
        raise PlanError(
            "A budget counts the computed steps of a whole run, and this run is made in parts, as with two "
            "transformers, or with guidance that ends in the middle: leave budget, at_least and at_most out."
        )
    rows = tuple((Cell(), *row[steps.start + 1 : steps.stop]) for row in plan.rows)
    if not plan.is_undecided:
        decisions = [Decision.COMPUTE, *known_decisions(row[steps.start + 1 : steps.stop] for row in plan.rows)]
        rows = decided_rows(grid.sites, rows, online.forecast, decisions)
    provenance = {**plan.provenance, "steps": f"{steps.start} to {steps.stop - 1}"}
    return replace(plan, grid=grid, rows=rows, provenance=provenance)


def _planned(
    plan: Plan, method: Method, rows: dict[Site, list[Cell]], opened: dict[tuple[Site, int], bool], grid: Grid
) -> Plan:
    """The plan of a method on other rows. opened: the cells whose gate is open."""
    if not any(opened.values()):  # the few skipped steps that are left are plain reuse
        method = replace(method, forecast=Reuse())
    gate = _gate(opened, method.forecast)
    made = replace(method, schedule=_schedule(rows), tokens=_tokens(rows), gate=gate).plan(grid)
    return replace(made, provenance=dict(plan.provenance))


def stretched_row(row: Sequence[Cell], num_steps: int) -> list[int | None]:
    """A row for another number of steps: the old skipped step that a step is like, or None where it is computed."""
    old = len(row)
    anchors = [step for step, cell in enumerate(row) if cell.computed]
    others = [step for step, cell in enumerate(row) if not cell.computed]
    sources: list[int | None] = []
    before = -1
    for step in range(num_steps):
        place = step * old / num_steps
        count = math.floor(num_steps / old * _computed_until(place, anchors, old) + 1e-9)
        sources.append(None if count > before or not others else _nearest(others, place))
        before = max(before, count)
    return sources


def _computed_until(place: float, anchors: Sequence[int], old: int) -> float:
    """The number of features computed up to a place, on a line through the computed steps.

    A run may end within a gap: the last gap is taken to be as long as the one before it.
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
        tokens = rows[site][step].tokens
        assert tokens is not None
        return tokens

    return choose


def _gate(opened: dict[tuple[Site, int], bool], forecast: Forecast) -> Gate:
    if isinstance(forecast, Reuse):
        return gates.always
    return lambda step, site, grid: opened[site, step]


def _method(plan: Plan, forecast: Forecast | None) -> tuple[Method, set[tuple[Site, int]]]:
    """The method that makes exactly this plan, and the cells that its forecast is open for.

    A cell that is reused because its history is too short counts as open. Raises PlanError if no known forecast makes
    the plan.
    """
    rows = {site: list(row) for site, row in zip(plan.grid.sites, plan.rows, strict=True)}
    forecasting = {
        (site, step): not (cell.computed or cell.is_reuse) or cell.tokens is not None
        for site, row in rows.items()
        for step, cell in enumerate(row)
    }
    name = plan.provenance.get("method", "plan")
    for candidate in ([] if forecast is None else [forecast]) + list(_recognisable()):
        method = Method(name, _schedule(rows), candidate, _gate(forecasting, candidate), tokens=_tokens(rows))
        try:
            again = method.plan(plan.grid)
        except PlanError:
            continue
        if all(_same(*pair) for row in zip(plan.rows, again.rows, strict=True) for pair in zip(*row, strict=True)):
            everywhere = zip(rows.items(), replace(method, gate=gates.always).plan(plan.grid).rows, strict=True)
            return method, {
                (site, step)
                for (site, row), ungated in everywhere
                for step, (cell, other) in enumerate(zip(row, ungated, strict=True))
                if not cell.computed and _same(cell, other)
            }
    raise PlanError(
        f"This plan ({name}) has no recipe, and its weights are not those of reuse or of a Taylor forecast, so it "
        "cannot be stretched to another number of steps: make it by its method instead, "
        "method.plan(forecache.grid(pipe, num_steps))."
    )


def _recognisable() -> Iterator[Forecast]:
    """The forecasts without parameters other than an order."""
    yield Reuse()
    for order in range(1, HIGHEST_ORDER + 1):
        yield Taylor(order)
        yield Taylor(order, "emitted")


def _same(cell: Cell, other: Cell) -> bool:
    """Whether two cells do the same, but for rounding of the weights."""
    return (
        replace(cell, reads=()) == replace(other, reads=())
        and [step for step, _ in cell.reads] == [step for step, _ in other.reads]
        and all(
            math.isclose(weight, expected, rel_tol=1e-9, abs_tol=1e-12)
            for (_, weight), (_, expected) in zip(cell.reads, other.reads, strict=True)
        )
    )
