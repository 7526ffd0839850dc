"""Measured data of the bundled models, by the short names that commands and pages use for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forecache.methods.parameters import Parameter
from forecache.methods.procache import PROCACHE_PATTERN
from forecache.models.layout import Level
from forecache.zoo import bundled

PUBLISHED = "published"
"""The word for ProCache's pattern for DiT at 50 steps."""


def resolver(num_steps: int) -> Callable[[Parameter, Any], Any]:
    """(parameter, value) -> the value, or the bundled file that it names, for runs of ``num_steps`` model calls.

    The name of a bundled model stands for its statistics, ``<model>-<caching level>`` for a router, and ``published``
    for ProCache's pattern. Raises InputError for statistics and routers that are not bundled.
    """

    def resolve(parameter: Parameter, value: Any) -> Any:
        if parameter.kind == "statistics" and value in bundled.models():
            return bundled.record(value).statistics_path(num_steps)
        if parameter.kind == "router" and isinstance(value, str):
            model, _, level = value.rpartition("-")
            is_bundled = model in bundled.models() and level.isdigit()
            return bundled.record(model).router_path(int(level)) if is_bundled else value
        return PROCACHE_PATTERN if parameter.kind == "pattern" and value == PUBLISHED else value

    return resolve


def at_hand(model: str, num_steps: int, level: Level | None = None) -> Callable[[Parameter], Any]:
    """(optional ingredient) -> the bundled file that a run of ``num_steps`` calls has of it; None for none.

    A bundled model has statistics of its branches.
    """

    def find(parameter: Parameter) -> Any:
        is_of_branches = level in (None, "branches")
        is_bundled = parameter.kind == "statistics" and model in bundled.models() and is_of_branches
        return bundled.record(model).statistics.get(num_steps) if is_bundled else None

    return find
