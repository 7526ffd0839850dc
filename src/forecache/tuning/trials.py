"""What was sampled with so far, and its file. Versioned JSON, checked when it is read.

{"format": "forecache-tuning", "version": 1, "forecache": "0.1.0", "settings": {...},
 "trials": [{"pattern": "#..#.", "forecast": "taylor 2", "psnr": 43.5}, ...]}
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forecache import _files
from forecache._errors import SearchFileError
from forecache._files import short
from forecache._tensorfile import fields, refusing
from forecache._version import __version__
from forecache.forecasts import Feedback, Forecast, Reuse, Taylor
from forecache.tuning.products import Fitted, Products

VERSION = 1
MAX_BYTES = 16 * 2**20
KEYS = {"format": str, "version": int, "forecache": str, "settings": dict, "trials": list}

FORECASTS: Mapping[str, Callable[[Products], Forecast]] = {
    "fitted 2": lambda products: Fitted(products, 2),
    "fitted 1": lambda products: Fitted(products, 1),
    "feedback 2, 0.5": lambda _: Feedback(2, 0.5),
    "feedback 1, 0.5": lambda _: Feedback(1, 0.5),
    "taylor 2": lambda _: Taylor(2),
    "taylor 1": lambda _: Taylor(1),
    "reuse": lambda _: Reuse(),
}
"""The forecasts that tuning chooses from, by name."""


@dataclass(frozen=True)
class Trial:
    """A pattern that was sampled with, under a forecast (`FORECASTS`). psnr: mean over the samples, in dB, to the same
    samples without a cache."""

    pattern: str
    forecast: str
    psnr: float

    @property
    def computed(self) -> int:
        """How many steps it computes."""
        return self.pattern.count("#")


def write(path: Path, settings: Mapping[str, Any], trials: Mapping[tuple[str, str], Trial]) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    document = {
        "format": "forecache-tuning",
        "version": VERSION,
        "forecache": __version__,
        "settings": dict(settings),
        "trials": [asdict(trial) for trial in trials.values()],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, str], Trial]]:
    """The contents of a file, or a SearchFileError that names the file and what is wrong with it."""
    with refusing(path, SearchFileError, "tuning file", "Delete it to tune from the start"):
        document = fields(_files.document(path, MAX_BYTES), KEYS)
        if document["format"] != "forecache-tuning":
            raise ValueError(f"its format is {short(document['format'])}, not 'forecache-tuning'")
        if document["version"] != VERSION:
            raise ValueError(f"its version is {short(document['version'])}; this forecache reads version {VERSION}")
        types = {"pattern": str, "forecast": str, "psnr": float}
        trials = [Trial(**fields(value, types)) for value in document["trials"]]
        for trial in trials:
            if not set(trial.pattern) <= set("#.") or not trial.pattern.startswith("#"):
                raise ValueError(f"{short(trial.pattern)} is not a pattern")
            if trial.forecast not in FORECASTS or not math.isfinite(trial.psnr):
                raise ValueError(f"{short(trial.forecast)} is not a forecast, or its PSNR is not finite")
        return document["settings"], {(trial.pattern, trial.forecast): trial for trial in trials}
