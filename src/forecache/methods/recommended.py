"""Recipes on record: what is closest to the uncached images at a speedup, by our own measurements.

``recommended.json`` is data that ``python benchmarks/recommended.py`` derives from ``benchmarks/results/recipes.json``:
for every length class of runs and every speedup that was measured, the schedule and the forecast whose worst loss
against the best of a setting (a model, a sampler, a number of steps) is the smallest, of those that are below plain
reuse on even steps in no setting of the class. The figures stand beside them.
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
from forecache.io.document import Document, fields, items, refusing
from forecache.methods import registry
from forecache.plan.method import Method

DOCUMENT = Document("forecache-recommended", 2)
PATH = Path(__file__).with_name("recommended.json")
SPEEDUPS = (1.3, 5.0)
"""The smallest and the largest speedup, times fewer MACs, that is recommended for."""

DEFAULT = 2.0
"""The speedup of a session that is asked for none: the largest with over 6 dB above plain reuse in long runs."""
USUAL_STEPS = 20
"""Model calls of the run that a method is for, where none are named."""

CLASS = {"steps": list, "settings": list, "levels": list}
LEVEL = {"speedup": float, "recipe": dict, "gain": float, "worst_gain": float, "worst_loss": float}


@dataclass(frozen=True)
class Recommended:
    """The recipe of one measured speedup.

    speedup: times fewer MACs at which it was measured
    recipe: of the method, without the speedup of its schedule
    gain: PSNR above plain reuse on even steps, mean over the settings, in dB
    worst_gain: the same in the worst setting, in dB
    worst_loss: PSNR below the best of all measured there, in the worst setting, in dB
    steps: numbers of steps that were measured, of the runs of its length class
    settings: number of settings
    """

    speedup: float
    recipe: Mapping[str, Any]
    gain: float
    worst_gain: float
    worst_loss: float
    steps: tuple[int, ...]
    settings: int

    def method(self, speedup: float) -> Method:
        """The method with a schedule of this speedup."""
        return registry.build(_with_speedup(self.recipe, speedup))

    def reason(self, asked: str) -> str:
        """Why this recipe, in words. asked: the speedup that it is for."""
        lengths = " and ".join(map(str, self.steps))
        return (
            f"the recipe on record for {asked} in runs of about {lengths} calls, {self.gain:+.1f} dB over plain reuse "
            f"in the mean of {self.settings} settings and {self.worst_gain:+.1f} in the worst"
        )


def method(speedup: float = DEFAULT, num_steps: int = USUAL_STEPS) -> Method:
    """The method that is recommended for a speedup, times fewer MACs: of the nearest one that was measured.

    num_steps: model calls of the run, by which the length class is found.
    """
    return entry(speedup, num_steps).method(speedup)


def entry(speedup: float, num_steps: int = USUAL_STEPS) -> Recommended:
    """The record of the nearest measured speedup, in the length class with the nearest measured number of steps."""
    lengths = classes()
    length = min(lengths, key=lambda length: min(abs(math.log(steps / num_steps)) for steps in length[0].steps))
    return min(length, key=lambda level: abs(math.log(level.speedup / speedup)))


@functools.cache
def classes() -> tuple[tuple[Recommended, ...], ...]:
    """By length class, the shortest runs first, every measured speedup with its recipe, in ascending order.

    Raises PlanFileError for a damaged file.
    """
    with refusing(PATH, PlanFileError, "table of recommended recipes", "Install forecache again"):
        table = DOCUMENT.fields(files.document(PATH, 2**20), {"command": str, "classes": list})
        return tuple(_read(fields(length, CLASS)) for length in table["classes"])


def _read(length: Mapping[str, Any]) -> tuple[Recommended, ...]:
    levels = [fields(level, LEVEL) for level in length["levels"]]
    for level in levels:
        registry.check(_with_speedup(level["recipe"], level["speedup"]))
    steps, settings = tuple(items(length["steps"], "steps", int)), len(length["settings"])
    if not levels or not steps or min(steps) < 1:
        raise ValueError("a length class has no levels or no steps")
    return tuple(Recommended(**level, steps=steps, settings=settings) for level in levels)


def _with_speedup(recipe: Mapping[str, Any], speedup: float) -> dict[str, Any]:
    """A recipe whose schedule has this speedup."""
    if "base" in recipe:
        return {**recipe, "base": _with_speedup(recipe["base"], speedup)}
    return {**recipe, "speedup": float(speedup)}
