"""Trials: what was sampled with so far, and the file that keeps them. Versioned JSON, checked when it is read.

{"format": "forecache-tuning", "version": 2, "forecache": "0.1.0", "settings": {...},
 "trials": [{"pattern": "#..#.", "forecast": {"rule": "taylor", "order": 2}, "psnr": 31.2, "own": 43.5,
             "noise": 0}, ...]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forecache._version import __version__
from forecache.errors import SearchFileError
from forecache.fit.tuning.forecasts import ForecastSpec
from forecache.io import files
from forecache.io.document import Document, fields, refusing
from forecache.io.text import short
from forecache.parts import patterns
from forecache.parts.hindsight import gaps

DOCUMENT = Document("forecache-tuning", 3)
MAX_BYTES = 16 * 2**20
KEYS = {"forecache": str, "settings": dict, "trials": list}
TrialKey = tuple[str, ForecastSpec, int]
"""Pattern, forecast and noise."""


@dataclass(frozen=True)
class Trial:
    """A pattern and a forecast that were sampled with.

    pattern: computed (``#``) and skipped (``.``) steps.
    forecast: what takes the place of the skipped features.
    psnr: to the reference that ranks trials (`Settings.reference`), mean over samples, in dB.
    noise: 0 for the noise of the search; 1, 2, ... for other noise, on which finalists are judged.
    own: PSNR to the same samples without a cache, mean over samples, in dB.
    """

    pattern: str
    forecast: ForecastSpec
    psnr: float
    noise: int = 0
    own: float = math.nan

    @property
    def key(self) -> TrialKey:
        """What identifies it."""
        return self.pattern, self.forecast, self.noise

    @property
    def computed(self) -> int:
        """The number of computed steps."""
        return self.pattern.count("#")


def write(path: Path, settings: Mapping[str, Any], trials: Mapping[TrialKey, Trial]) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    values = {
        "forecache": __version__,
        "settings": dict(settings),
        "trials": [
            {
                "pattern": trial.pattern,
                "forecast": trial.forecast.as_document(),
                "psnr": trial.psnr,
                "own": trial.own,
                "noise": trial.noise,
            }
            for trial in trials.values()
        ],
    }
    DOCUMENT.write(path, values)


def read(path: Path) -> tuple[dict[str, Any], dict[TrialKey, Trial]]:
    """The settings and trials in a file; SearchFileError names the file and what is wrong with it."""
    with refusing(path, SearchFileError, "tuning file", "Delete it to tune from the start"):
        document = DOCUMENT.fields(files.document(path, MAX_BYTES), KEYS)
        trials = [_trial(row) for row in document["trials"]]
        return document["settings"], {trial.key: trial for trial in trials}


def _trial(row: Any) -> Trial:
    values = fields(row, {"pattern": str, "forecast": dict, "psnr": float, "own": float, "noise": int})
    pattern, forecast = values["pattern"], ForecastSpec.from_document(values["forecast"])
    if not patterns.is_pattern(pattern):
        raise ValueError(f"{short(pattern)} is not a pattern")
    if forecast.is_refined and len(forecast.shifts) != len(patterns.skipped(pattern)):
        raise ValueError(f"the forecast of {short(pattern)} has {len(forecast.shifts)} shifts")
    if forecast.thetas and len(forecast.thetas) != len(gaps([sign == "#" for sign in pattern])):
        raise ValueError(f"the forecast of {short(pattern)} has {len(forecast.thetas)} thetas")
    if not (math.isfinite(values["psnr"]) and math.isfinite(values["own"])):
        raise ValueError(f"the PSNR of {short(pattern)} is not finite")
    return Trial(pattern, forecast, values["psnr"], values["noise"], values["own"])
