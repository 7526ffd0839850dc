"""Diffusion transformers that sample faster by forecasting features instead of computing them.

method = forecache.goc(forecache.fora(interval=2), eta=0.8)
plan = method.plan(forecache.grid(pipe, num_steps=20))
with forecache.apply(pipe, plan) as session:
    images = pipe([207, 360], num_inference_steps=20).images
"""

from collections.abc import Sequence as _Sequence
from typing import Any as _Any

from forecache import adapters as _adapters
from forecache import forecasts, gates, schedules
from forecache._core import Action, Cell, Gate, Grid, Schedule, Site
from forecache._errors import (
    AlreadyAppliedError,
    ForecacheError,
    InputError,
    MissingExtraError,
    ModelError,
    PlanError,
    PlanFileError,
    PlanMismatchError,
    RouterFileError,
    RunError,
    SiteError,
    StepCountError,
)
from forecache._routerfile import Router
from forecache._version import __version__
from forecache.methods import explicit, fora, fora_paper, goc, goc_paper_steps, l2c, taylorseer, warmup
from forecache.plan import Cost, Method, Plan
from forecache.router import train_router
from forecache.session import Session, Stats, apply


def grid(target: _Any, num_steps: int, *, sites: _Sequence[str] | None = None) -> Grid:
    """The grid of a sampling run: ``num_steps`` model calls x the sites of ``target``.

    target: a pipeline or a transformer. sites: paths of modules to cache, with ``*`` for one part of a path, such as
    ``["blocks.*.attn", "blocks.*.mlp"]``; by default the branches of the model's family.
    Raises SiteError if a pattern matches nothing or the family is not known.
    """
    model = _adapters.find(target)
    layout = _adapters.layout(model, sites)
    return Grid(num_steps, layout.sites, _adapters.describe(model, layout))


__all__ = [
    # the grid and what fills it
    "Action",
    "Site",
    "Grid",
    "Cell",
    "Schedule",
    "Gate",
    "grid",
    "schedules",
    "forecasts",
    "gates",
    # methods
    "Method",
    "fora",
    "fora_paper",
    "explicit",
    "goc",
    "goc_paper_steps",
    "l2c",
    "Router",
    "train_router",
    "taylorseer",
    "warmup",
    # plans and runs
    "Plan",
    "Cost",
    "apply",
    "Session",
    "Stats",
    # errors
    "ForecacheError",
    "PlanError",
    "PlanFileError",
    "RouterFileError",
    "ModelError",
    "SiteError",
    "PlanMismatchError",
    "RunError",
    "StepCountError",
    "AlreadyAppliedError",
    "InputError",
    "MissingExtraError",
    "__version__",
]
