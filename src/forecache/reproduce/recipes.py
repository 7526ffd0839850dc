"""Recipes in tables: those of `forecache.methods.registry`, whose ingredients come from the testbed.

    plan = { method = "goc", eta = 1.0, base = { method = "l2c", level = 22, threshold = 0.1 } }

A table names no files: ``level`` is the caching level of a router, in percent, and statistics are those that the
testbed calibrates or loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forecache.errors import PlanError
from forecache.io.text import short
from forecache.methods import registry
from forecache.methods.parameters import Parameter
from forecache.parts.router import Router
from forecache.parts.statistics import Statistics
from forecache.plan.method import Method
from forecache.plan.recipe import Recipe

LEVEL = "level"


@dataclass(frozen=True)
class Ingredients:
    """The measured data that recipes of a table need.

    routers: by caching level in percent
    statistics: of the model and the number of steps; None where there are none
    """

    routers: Mapping[int, Router] = field(default_factory=dict)
    statistics: Statistics | None = None


def read(document: Any, where: str) -> Recipe:
    """The recipe of a table's plan; ValueError with a sentence for anything else.

    where: follows names in the sentence, such as `` of row 'GOC'``
    """
    bare, levels = _without_levels(document, where)
    recipe = registry.check(bare, where, ingredients=False)
    return _with_levels(recipe, levels)


def _without_levels(document: Any, where: str) -> tuple[Any, list[int]]:
    """A document without the levels of its routers, and these from the outermost to the innermost."""
    if not isinstance(document, dict):
        return document, []
    values, levels = dict(document), []
    if document.get("method") in registry.methods() and _takes_router(document["method"]):
        if LEVEL not in document:
            raise ValueError(f"{document['method']}{where} lacks {LEVEL}")
        if type(document[LEVEL]) is not int:
            raise ValueError(f"{LEVEL} of {document['method']}{where} is a whole number; not {short(document[LEVEL])}")
        levels.append(values.pop(LEVEL))
    if "base" in values:
        values["base"], inner = _without_levels(values["base"], where)
        levels += inner
    return values, levels


def _with_levels(recipe: Recipe, levels: list[int]) -> dict[str, Any]:
    values, rest = dict(recipe), list(levels)
    if _takes_router(recipe["method"]):
        values[LEVEL] = rest.pop(0)
    return values | ({"base": _with_levels(recipe["base"], rest)} if "base" in recipe else {})


def _takes_router(name: str) -> bool:
    return any(parameter.kind == "router" for parameter in registry.registered(name).parameters)


def levels(recipe: Recipe) -> tuple[int, ...]:
    """The caching levels of the routers that a recipe needs."""
    return tuple(part[LEVEL] for entry, part in registry.links(recipe) if _takes_router(entry.name))


def needs_statistics(recipe: Recipe | None) -> bool:
    """Whether a recipe needs statistics of the model."""
    return recipe is not None and registry.needs(recipe, "statistics")


def method_of(recipe: Recipe, ingredients: Ingredients) -> Method:
    """The method of a recipe; PlanError where it lacks a router or statistics, or asks for something no method does."""

    def supply(parameter: Parameter, part: Recipe) -> Any:
        if parameter.kind == "router":
            if part[LEVEL] not in ingredients.routers:
                raise PlanError(
                    f"{part['method']} needs a router that skips about {part[LEVEL]} % of the cells; none was given."
                )
            return ingredients.routers[part[LEVEL]]
        if parameter.kind == "statistics" and ingredients.statistics is not None:
            return ingredients.statistics
        raise PlanError(f"{part['method']} needs {parameter.kind} of the model; none were given.")

    return registry.build(_without(registry.with_ingredients(recipe, supply)))


def _without(recipe: Recipe) -> dict[str, Any]:
    """A recipe without the levels of routers, which have taken their places."""
    values = {name: value for name, value in recipe.items() if name != LEVEL or not _takes_router(recipe["method"])}
    return values | ({"base": _without(recipe["base"])} if "base" in recipe else {})
