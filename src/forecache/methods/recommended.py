"""Recipes on record: what is closest to the uncached images at a speedup, by our own measurements.

``recommended.json`` is data that ``python benchmarks/recommended.py`` derives from ``benchmarks/results/recipes.json``:
for every speedup that was measured, the schedule and the forecast whose worst loss against the best of a setting (a
model, a sampler, a number of steps) is the smallest. The figures stand beside them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forecache.errors import PlanFileError
from forecache.io import files
from forecache.io.document import Document, fields, refusing
from forecache.methods import registry
from forecache.plan.method import Method

DOCUMENT = Document("forecache-recommended", 1)
PATH = Path(__file__).with_name("recommended.json")
SPEEDUPS = (1.3, 5.0)
"""The smallest and the largest speedup, times fewer MACs, that is recommended for."""

DEFAULT = 2.0
"""The speedup of a session that is asked for none: the largest with over 6 dB above plain reuse, in the mean."""

LEVEL = {"speedup": float, "recipe": dict, "gain": float, "worst_gain": float, "worst_loss": float}


@dataclass(frozen=True)
class Recommended:
    """The recipe of one measured speedup.

    speedup: times fewer MACs at which it was measured
    recipe: of the method, without the speedup of its schedule
    gain: PSNR above plain reuse on even steps, mean over the settings, in dB
    worst_gain: the same in the worst setting, in dB
    worst_loss: PSNR below the best of all measured there, in the worst setting, in dB
    settings: number of settings
    """

    speedup: float
    recipe: Mapping[str, Any]
    gain: float
    worst_gain: float
    worst_loss: float
    settings: int

    def method(self, speedup: float) -> Method:
        """The method with a schedule of this speedup."""
        return registry.build(_with_speedup(self.recipe, speedup))

    def reason(self, asked: str) -> str:
        """Why this recipe, in words. asked: the speedup that it is for."""
        return (
            f"the recipe on record for {asked}, {self.gain:+.1f} dB over plain reuse in the mean of {self.settings} "
            f"settings and {self.worst_gain:+.1f} in the worst"
        )


def method(speedup: float = DEFAULT) -> Method:
    """The method that is recommended for a speedup, times fewer MACs: of the nearest one that was measured."""
    return entry(speedup).method(speedup)


def entry(speedup: float) -> Recommended:
    """The record of the measured speedup that is nearest."""
    return min(levels(), key=lambda level: abs(math.log(level.speedup / speedup)))


@functools.cache
def levels() -> tuple[Recommended, ...]:
    """Every measured speedup with its recipe, in ascending order; PlanFileError for a damaged file."""
    with refusing(PATH, PlanFileError, "table of recommended recipes", "Install forecache again"):
        table = DOCUMENT.fields(files.document(PATH, 2**20), {"command": str, "settings": list, "levels": list})
        return tuple(_read(level, len(table["settings"])) for level in table["levels"])


def _read(level: Any, settings: int) -> Recommended:
    values = fields(level, LEVEL)
    registry.check(_with_speedup(values["recipe"], values["speedup"]))
    return Recommended(**values, settings=settings)


def _with_speedup(recipe: Mapping[str, Any], speedup: float) -> dict[str, Any]:
    """A recipe whose schedule has this speedup."""
    if "base" in recipe:
        return {**recipe, "base": _with_speedup(recipe["base"], speedup)}
    return {**recipe, "speedup": float(speedup)}
