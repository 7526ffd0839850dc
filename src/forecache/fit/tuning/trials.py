"""What was sampled with so far, and its file. Versioned JSON, checked when it is read.

{"format": "forecache-tuning", "version": 1, "forecache": "0.1.0", "settings": {...},
 "trials": [{"pattern": "#..#.", "forecast": "taylor 2", "psnr": 43.5, "noise": 0}, ...]}
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forecache._version import __version__
from forecache.errors import InputError, SearchFileError
from forecache.fit.tuning.polish import WAYS, Moves, Way
from forecache.fit.tuning.products import Fitted, Products
from forecache.io import files
from forecache.io.document import Document, fields, refusing
from forecache.io.files import short
from forecache.parts.corrections import Drift
from forecache.parts.forecasts import Feedback, Forecast, Gradient, Reuse, Taylor

DOCUMENT = Document("forecache-tuning", 1)
MAX_BYTES = 16 * 2**20
KEYS = {"forecache": str, "settings": dict, "trials": list}

FORECASTS = (
    "fitted ORDER, taylor ORDER, each also with ', feedback STRENGTH' (up to 1); goc ETA; reuse; all with "
    "', eoc THETA' (under 2)"
)
"""How a forecast is named, such as ``fitted 1, feedback 0.8, eoc 0.6``."""
NAME = re.compile(
    r"((?P<kind>fitted|taylor) (?P<order>\d)(, feedback (?P<strength>[01](\.\d+)?))?|goc (?P<eta>\d(\.\d+)?)|reuse)"
    r"(, eoc (?P<theta>[01](\.\d+)?))?(, moved(?P<moved>( -?\d(\.\d+)?)+))?(, scaled(?P<scaled>( -?\d(\.\d+)?)+))?"
)


def forecast_of(name: str, products: Products) -> Forecast:
    """The forecast of this name, without what its moves and its correction do; InputError if there is none."""
    found = NAME.fullmatch(name)
    if found is None:
        raise InputError(f"There is no forecast {name!r}; there are: {FORECASTS}.")
    if found["eta"]:
        return Gradient(float(found["eta"]))
    if not found["kind"]:
        return Reuse()
    order, strength = int(found["order"]), float(found["strength"] or 0)
    if found["kind"] == "fitted":
        return Fitted(products, order, strength, centred=bool(found["theta"]))
    return Feedback(order, strength) if strength else Taylor(order)


def correction_of(name: str, products: Products) -> Drift | None:
    """EOC's additive form, per channel, on the averages of the same pass; None if the name has none."""
    theta = _parts(name)["theta"]
    return Drift(products, float(theta), "additive", "all", "channel") if theta else None


def varied(name: str, by: float) -> str | None:
    """The same forecast with a strength of feedback, or an eta, that is larger by so much; None if it has none."""
    found = _parts(name)
    rest = f", eoc {found['theta']}" if found["theta"] else ""
    if found["kind"]:
        strength = round(float(found["strength"] or 0) + by, 2)
        plain = f"{found['kind']} {found['order']}"
        return f"{plain}, feedback {strength:g}{rest}" if 0 < strength <= 1 else plain + rest if not strength else None
    eta = round(float(found["eta"] or 0) + by, 2)
    return f"goc {eta:g}{rest}" if 0 < eta < 2 else None


def corrected(name: str, by: float) -> str | None:
    """The same forecast with a theta of EOC's that is larger by so much; None outside 0 to 2.

    One that had none gets 1, which pays back all that is missed on the averages, or 0.5 for a smaller one.
    """
    before = _parts(name)["theta"]
    theta = round(float(before) + by, 2) if before else 1.0 if by > 0 else 0.5
    return f"{name.split(', eoc', maxsplit=1)[0]}, eoc {theta:g}" if 0 < theta < 2 else None


def _parts(name: str) -> re.Match[str]:
    found = NAME.fullmatch(name)
    assert found is not None, name
    return found


def moved(name: str, pattern: str, by: Moves) -> str:
    """The forecast with the weights of skipped steps moved on (`polish`): a number for each way and step, in order."""
    before, written = moves_of(name, pattern), unmoved(name)
    skipped = [step for step, sign in enumerate(pattern) if sign == "."]
    for way in WAYS if skipped else ():
        numbers = [before.get((way, step), 0.0) + by.get((way, step), 0.0) for step in skipped]
        written += f", {way} " + " ".join(f"{round(number, 4) + 0.0:g}" for number in numbers)
    return written


def unmoved(name: str) -> str:
    """The forecast as it was before its weights were moved."""
    return re.split(", (?:moved|scaled)", name, maxsplit=1)[0]


def told(name: str) -> str:
    """The forecast for people: that its weights were moved, not how far."""
    return name if unmoved(name) == name else f"{unmoved(name)}, polished"


def moves_of(name: str, pattern: str) -> dict[tuple[Way, int], float]:
    """How far the weights of each step of a pattern are moved, each way; empty where none is."""
    found, skipped = _parts(name), [step for step, sign in enumerate(pattern) if sign == "."]
    return {
        (way, step): float(number)
        for way in WAYS
        for step, number in zip(skipped, (found[way] or "").split(), strict=False)
    }


@dataclass(frozen=True)
class Trial:
    """A pattern that was sampled with, under a forecast (`forecast_of`). psnr: to the same samples without a cache,
    mean over them, in dB. noise: 0 for that of the search; 1, 2, ... for others, by which finalists are judged."""

    pattern: str
    forecast: str
    psnr: float
    noise: int = 0

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is a trial of."""
        return self.pattern, self.forecast, self.noise

    @property
    def computed(self) -> int:
        """How many steps it computes."""
        return self.pattern.count("#")


def write(path: Path, settings: Mapping[str, Any], trials: Mapping[tuple[str, str, int], Trial]) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    values = {
        "forecache": __version__,
        "settings": dict(settings),
        "trials": [asdict(trial) for trial in trials.values()],
    }
    DOCUMENT.write(path, values)


def read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, str, int], Trial]]:
    """The contents of a file, or a SearchFileError that names the file and what is wrong with it."""
    with refusing(path, SearchFileError, "tuning file", "Delete it to tune from the start"):
        document = DOCUMENT.fields(files.document(path, MAX_BYTES), KEYS)
        types = {"pattern": str, "forecast": str, "psnr": float, "noise": int}
        trials = [Trial(**fields(value, types)) for value in document["trials"]]
        for trial in trials:
            if not set(trial.pattern) <= set("#.") or not trial.pattern.startswith("#"):
                raise ValueError(f"{short(trial.pattern)} is not a pattern")
            if not NAME.fullmatch(trial.forecast) or not math.isfinite(trial.psnr):
                raise ValueError(f"{short(trial.forecast)} is not a forecast, or its PSNR is not finite")
        return document["settings"], {trial.key: trial for trial in trials}
