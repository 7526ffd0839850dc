"""Diffusion transformers that sample faster by forecasting features instead of computing them.

method = forecache.goc(forecache.fora(interval=2), eta=0.8)
plan = method.plan(forecache.grid(pipe, num_steps=20))
with forecache.apply(pipe, plan) as session:
    images = pipe([207, 360], num_inference_steps=20).images
"""

from forecache import forecasts, gates, patterns, schedules, scores, tokens, tuning
from forecache._core import Action, Cell, Gate, Grid, Schedule, Selector, Site, Tokens
from forecache._errors import (
    AlreadyAppliedError,
    CacheBudgetError,
    ForecacheError,
    InputError,
    MissingExtraError,
    ModelError,
    PlanError,
    PlanFileError,
    PlanMismatchError,
    RouterFileError,
    RunError,
    SearchFileError,
    ShardError,
    SiteError,
    StatisticsError,
    StatisticsFileError,
    StepCountError,
    TableError,
)
from forecache._routerfile import Router
from forecache._version import __version__
from forecache.adapters import grid, register_adapter
from forecache.applied import apply, disable, enable
from forecache.calibrate import calibrate, calibration_bytes
from forecache.cost import Cost
from forecache.guards import Guards
from forecache.methods import (
    eoc,
    explicit,
    feedback,
    fora,
    fora_paper,
    goc,
    goc_paper_steps,
    l2c,
    procache,
    procache_paper,
    selective,
    smoothcache,
    smoothcache_file,
    taylorseer,
    toca,
    warmup,
)
from forecache.plan import Method, Plan
from forecache.resample import resampled
from forecache.router import train_router
from forecache.search import Candidate, SearchResult, search
from forecache.session import Session
from forecache.sessions import Sessions
from forecache.shards import Sampled, sample_shards
from forecache.statistics import Statistics
from forecache.tally import Stats
from forecache.tuning import Tuned, tune

__all__ = [
    # the grid and what fills it
    "Action",
    "Site",
    "Grid",
    "Cell",
    "Schedule",
    "Gate",
    "Tokens",
    "Selector",
    "grid",
    "schedules",
    "forecasts",
    "gates",
    "tokens",
    "register_adapter",
    # methods
    "Method",
    "fora",
    "fora_paper",
    "explicit",
    "goc",
    "goc_paper_steps",
    "l2c",
    "smoothcache",
    "smoothcache_file",
    "eoc",
    "taylorseer",
    "feedback",
    "procache",
    "procache_paper",
    "selective",
    "toca",
    "warmup",
    # plans and runs
    "Plan",
    "Cost",
    "apply",
    "enable",
    "disable",
    "Guards",
    "resampled",
    "Session",
    "Sessions",
    "Stats",
    # calibration
    "Statistics",
    "calibrate",
    "calibration_bytes",
    # routers
    "Router",
    "train_router",
    # search
    "search",
    "SearchResult",
    "Candidate",
    "patterns",
    "scores",
    "tuning",
    # tuning
    "tune",
    "Tuned",
    # samples in numbers
    "sample_shards",
    "Sampled",
    # errors
    "ForecacheError",
    "PlanError",
    "PlanFileError",
    "RouterFileError",
    "SearchFileError",
    "ModelError",
    "SiteError",
    "PlanMismatchError",
    "StatisticsError",
    "StatisticsFileError",
    "ShardError",
    "TableError",
    "RunError",
    "StepCountError",
    "AlreadyAppliedError",
    "CacheBudgetError",
    "InputError",
    "MissingExtraError",
    "__version__",
]
