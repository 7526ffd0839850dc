"""Learning-to-Cache: reuse where a trained router allows it (arXiv 2406.01733)."""

from __future__ import annotations

import os
from pathlib import Path

from forecache.parts.router import Router
from forecache.plan.method import Method


def l2c(router: Router | str | os.PathLike[str], threshold: float = 0.1) -> Method:
    """Reuse where a trained router allows it (Learning-to-Cache, arXiv 2406.01733).

    router: a `Router`, or the path of one: our safetensors, or a published ``.pt``. A cell is computed where its
    probability is over ``threshold``; the paper takes 0.1 at 256x256. Planning raises PlanError for a run of other
    steps or a model of other blocks than the router was trained for.
    """
    name = "router" if isinstance(router, Router) else repr(Path(router).name)
    found = router if isinstance(router, Router) else Router.read(router)
    return Method(f"l2c({name}, threshold={threshold:g})", found.schedule(threshold))
