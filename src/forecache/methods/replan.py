"""A plan for another number of steps or another model: planned anew by its recipe, or stretched where it has none."""

from __future__ import annotations

from dataclasses import replace

from forecache.errors import PlanError
from forecache.methods import registry
from forecache.parts import schedules
from forecache.parts.forecasts import Forecast, Reuse
from forecache.parts.grid import Grid
from forecache.parts.router import Router
from forecache.parts.statistics import Statistics
from forecache.plan import resample
from forecache.plan.method import Method
from forecache.plan.plan import Plan
from forecache.plan.recipe import Recipe


def replan(plan: Plan, grid: Grid, *, stats: Statistics | None = None, router: Router | None = None) -> Plan:
    """The plan that the method of ``plan`` makes on another grid: of another model, or with another number of steps.

    stats, router: of the other run, in the place of those that the recipe refers to

    Raises PlanError for a plan without a recipe or with an ingredient that is not given, and whatever planning raises.
    """
    if plan.recipe is None:
        raise PlanError(
            f"This plan ({plan.provenance.get('method', 'plan')}) has no recipe, because its method was composed by "
            "hand, or it was tuned or edited: make it by its method, method.plan(grid)."
        )
    given = {kind: data for kind, data in (("statistics", stats), ("router", router)) if data is not None}
    return registry.build(registry.replaced(plan.recipe, given)).plan(grid)


def resampled(plan: Plan, num_steps: int) -> Plan:
    """The plan for ``num_steps`` model calls.

    A plan whose recipe can be built is planned anew by its method. The others, and those whose method lists steps of
    one length (`explicit`, `fora_paper`, GOC's steps), keep their forecast, gate and tokens, and their schedule is
    stretched: see `forecache.plan.resample.stretched`. Quality is not that of the plan: measure it. Raises PlanError
    for a plan with calibrated parts, and for one without a recipe whose weights are not those of reuse or Taylor.
    """
    if num_steps == plan.num_steps:
        return plan
    if not can_resample(plan):
        what = "corrections" if plan.constants else "schedule or gate"
        raise PlanError(
            f"The {what} of this plan were calibrated for {plan.num_steps} steps and cannot be stretched to "
            f"{num_steps}: calibrate for {num_steps} steps and make the plan again."
        )
    origin = {"resampled": f"from {plan.num_steps} to {num_steps} steps"}
    if plan.recipe is None or registry.is_fixed(plan.recipe) or not _makes(plan.recipe, plan):
        return resample.stretched(plan, num_steps, forecast_of(plan)).with_recipe(None, origin)
    replanned = registry.build(plan.recipe).plan(replace(plan.grid, num_steps=num_steps))
    return replanned.with_recipe(replanned.recipe, {**plan.provenance, **replanned.provenance, **origin})


def can_resample(plan: Plan) -> bool:
    """Whether nothing of a plan was calibrated step by step, so that it can be made for another number of steps."""
    return not (plan.constants or (plan.recipe is not None and registry.is_calibrated(plan.recipe)))


def part_of(plan: Plan, steps: range) -> Plan:
    """The plan for a part of its steps: the first of them is computed, and nothing before it is read.

    Raises PlanError for a plan with calibrated corrections, and for one whose weights are of no known forecast.
    """
    return resample.part_of(plan, steps, forecast_of(plan))


def forecast_of(plan: Plan) -> Forecast | None:
    """The forecast of a plan's recipe, whatever its schedule; None without a recipe.

    Calibrated parts are left out: ingredients make schedules, gates and corrections, and no forecast.
    """
    if plan.recipe is None:
        return None
    method = Method("the plan's schedule", schedules.every(1))
    for entry, part in reversed(list(registry.links(plan.recipe))):
        required = [parameter for parameter in entry.parameters if parameter.is_ingredient and parameter.required]
        if entry.takes_base and not required and isinstance(method.forecast, Reuse):
            left_out = {
                parameter.name for parameter in entry.parameters if parameter.is_ingredient or parameter.range.needs
            }
            names = [parameter.name for parameter in entry.in_forms if parameter.name in part]
            method = entry.function(method, **{name: part[name] for name in names if name not in left_out})
    return method.forecast


def _makes(recipe: Recipe, plan: Plan) -> bool:
    """Whether the recipe makes exactly the rows of a plan, which an edited file or another version could deny."""
    try:
        return registry.build(recipe).plan(plan.grid).rows == plan.rows
    except PlanError:
        return False
