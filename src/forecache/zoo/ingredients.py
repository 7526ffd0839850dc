"""Measured data of the bundled models, by the short names that commands and pages use for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forecache.methods.parameters import Parameter
from forecache.methods.procache import PROCACHE_PATTERN
from forecache.zoo import bundled

PUBLISHED = "published"
"""The word for ProCache's pattern for DiT at 50 steps."""


def resolver(num_steps: int) -> Callable[[Parameter, Any], Any]:
    """(parameter, value) -> the value, or the bundled file that it names, for runs of ``num_steps`` model calls.

    The name of a bundled model stands for its statistics, that of a bundled router for its file, and ``published`` for
    ProCache's pattern.
    """

    def resolve(parameter: Parameter, value: Any) -> Any:
        if parameter.kind == "statistics" and value in bundled.models():
            return bundled.record(value).statistics_path(num_steps)
        if parameter.kind == "router" and isinstance(value, str):
            return bundled.routers().get(value, value)
        return PROCACHE_PATTERN if parameter.kind == "pattern" and value == PUBLISHED else value

    return resolve
