"""Methods by their names in the papers, each an expression of parts. Corrections take a base, as the papers do.

fora(interval=2)                                      every second step computed, the others reused
spread(2.5)                                           two steps in five computed, spread over the run
goc(fora(interval=2), eta=0.8)                        reuse plus a share of the last change
taylorseer(fora(interval=3), order=2)                 Taylor expansion in between
feedback(fora(interval=3), order=2, strength=0.5)     the same less half the error of the gap before
l2c("router.safetensors")                             reuse where a trained router allows it
goc(explicit(skip=[1, 3, 5, 7, 9]), eta=1.9)          any schedule is a base
eoc(fora_paper(75), statistics)                       reused features, moved along their mean drift
smoothcache(statistics, threshold=0.2)                reuse while the measured error is small, by kind of branch
goc(easycache(0.05), eta=0.8)                         which steps are computed is decided while it runs
procache("#...#..#.")                                 a searched pattern; in its gaps some tokens are computed

Every module of this package is imported with it, so that the methods in it are registered; a method of any module,
also of your own, is an attribute of this package by its name. See `registry` for how to add one.
"""

import importlib
import pkgutil
from typing import Any

from forecache.methods import registry
from forecache.methods.adaptive import adaptive
from forecache.methods.dicache import dicache
from forecache.methods.easycache import easycache
from forecache.methods.eoc import eoc
from forecache.methods.explicit import explicit, warmup
from forecache.methods.fbcache import dbcache, fbcache
from forecache.methods.fora import fora, fora_paper
from forecache.methods.goc import goc, goc_paper_steps
from forecache.methods.hindsight import hindsight
from forecache.methods.l2c import l2c
from forecache.methods.magcache import magcache
from forecache.methods.parameters import Range
from forecache.methods.procache import PROCACHE_PATTERN, procache, procache_paper, selective, toca
from forecache.methods.registry import build, register
from forecache.methods.replan import replan, resampled
from forecache.methods.seacache import seacache
from forecache.methods.smoothcache import smoothcache, smoothcache_file
from forecache.methods.spread import spread
from forecache.methods.taylorseer import feedback, taylorseer
from forecache.methods.teacache import teacache

__all__ = [
    "PROCACHE_PATTERN",
    "Range",
    "build",
    "adaptive",
    "dbcache",
    "dicache",
    "easycache",
    "eoc",
    "explicit",
    "fbcache",
    "feedback",
    "fora",
    "fora_paper",
    "goc",
    "goc_paper_steps",
    "hindsight",
    "l2c",
    "magcache",
    "procache",
    "procache_paper",
    "register",
    "replan",
    "resampled",
    "seacache",
    "selective",
    "smoothcache",
    "smoothcache_file",
    "spread",
    "taylorseer",
    "teacache",
    "toca",
    "warmup",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def __getattr__(name: str) -> Any:
    """A registered method that has no import above."""
    if name.startswith("_") or name not in registry.methods():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return registry.registered(name).function
