"""From a recipe, which is data, to the method that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from forecache import methods
from forecache.errors import PlanError
from forecache.parts.router import Router
from forecache.parts.statistics import Statistics
from forecache.plan.method import Method
from forecache.reproduce.table import Recipe


@dataclass(frozen=True)
class Ingredients:
    """What a recipe cannot hold itself. routers: by caching level. statistics: for eoc and smoothcache."""

    routers: Mapping[int, Router] = field(default_factory=dict)
    statistics: Statistics | None = None

    @cached_property
    def known(self) -> Statistics:
        """The statistics; PlanError where there are none."""
        if self.statistics is None:
            raise PlanError("eoc and smoothcache need statistics of the model; none were given.")
        return self.statistics


def method_of(recipe: Recipe, ingredients: Ingredients) -> Method:
    """The method of a recipe; PlanError where it lacks a router or statistics, or asks for what no method does."""
    given: dict[str, Any] = dict(recipe.parameters)
    if recipe.method == "l2c":
        level = given.pop("level")
        if level not in ingredients.routers:
            raise PlanError(f"l2c needs a router that skips about {level} % of the cells; none was given.")
        return methods.l2c(ingredients.routers[level], **given)
    if recipe.method == "smoothcache":
        return methods.smoothcache(ingredients.known, given["threshold"])
    if "from_depth" in given and given["from_depth"] == int(given["from_depth"]):
        given["from_depth"] = int(given["from_depth"])  # a block, not a part of them
    make = getattr(methods, recipe.method)
    if recipe.base is None:
        return make(**given)
    base = method_of(recipe.base, ingredients)
    if recipe.method == "eoc":
        return methods.eoc(base, ingredients.known, given.pop("theta", None), **given)
    return make(base, **given)
