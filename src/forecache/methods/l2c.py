"""Learning-to-Cache: reuse where a trained router allows it (arXiv 2406.01733)."""

from __future__ import annotations

import os
from typing import Annotated

from forecache.methods.ingredients import router_of
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts.router import Router
from forecache.plan.method import Method


@register
def l2c(router: Router | str | os.PathLike[str], threshold: Annotated[float, Range(least=0, most=1)] = 0.1) -> Method:
    """Reuse where a trained router allows it (Learning-to-Cache, arXiv 2406.01733).

    Planning raises PlanError for a run of other steps, or a model of other blocks, than the router was trained for.

    router: a `Router`, or the path of one: our safetensors, or a published ``.pt``
    threshold: a cell is computed where its probability is above it; the paper takes 0.1 at 256x256
    """
    return Method("l2c", router_of(router).schedule(threshold))
