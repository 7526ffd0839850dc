"""Diffusion transformers that sample faster by forecasting features instead of computing them.

forecache.enable(pipe)                                  about twice as fast, until forecache.disable(pipe)
with forecache.apply(pipe, speedup=2.5) as session:     the same for a block
    images = pipe([207, 360], num_inference_steps=20).images
print(session.stats)

method = forecache.goc(forecache.fora(interval=2), eta=0.8)
plan = method.plan(forecache.grid(pipe, num_steps=20))  # for those who want to know before what happens
"""

from forecache import errors, evaluate, fit, methods, models, parts, plan, runtime, sampling, zoo
from forecache._version import __version__
from forecache.errors import ForecacheError
from forecache.fit import calibrate, retarget, search, threshold_for, train_router, tune
from forecache.integrations.diffusers import ForecacheConfig, apply_forecache
from forecache.methods import (
    adaptive,
    dbcache,
    dicache,
    easycache,
    eoc,
    explicit,
    fbcache,
    feedback,
    fora,
    goc,
    hindsight,
    l2c,
    magcache,
    procache,
    seacache,
    selective,
    smoothcache,
    taylorseer,
    teacache,
    toca,
    warmup,
)
from forecache.models.find import grid
from forecache.parts.grid import Grid
from forecache.parts.router import Router
from forecache.parts.statistics import Statistics
from forecache.plan import Cost, Method, Plan
from forecache.runtime import Session, apply, disable, enable

__all__ = [
    # a plan on a model
    "enable",
    "apply",
    "disable",
    "ForecacheConfig",
    "apply_forecache",
    # methods
    "fora",
    "taylorseer",
    "goc",
    "feedback",
    "hindsight",
    "eoc",
    "l2c",
    "smoothcache",
    "procache",
    "toca",
    "explicit",
    "warmup",
    "selective",
    # methods that decide while they run
    "adaptive",
    "fbcache",
    "dbcache",
    "teacache",
    "easycache",
    "seacache",
    "dicache",
    "magcache",
    # what they are made into
    "Method",
    "Plan",
    "Grid",
    "grid",
    "Cost",
    "Session",
    # what learns from a model
    "calibrate",
    "Statistics",
    "train_router",
    "Router",
    "search",
    "tune",
    "retarget",
    "threshold_for",
    # the rest
    "ForecacheError",
    "__version__",
]

_PACKAGES = ["errors", "evaluate", "fit", "methods", "models", "parts", "plan", "runtime", "sampling", "zoo"]
"""One package down: everything else that is public."""


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
