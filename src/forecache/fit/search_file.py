"""The file of a search: what decides a pattern's score, and the scores so far. Versioned JSON, checked when it is read.

{"format": "forecache-search", "version": 1, "forecache": "0.1.0",
 "settings": {"model": "DiTTransformer2DModel", ..., "budget": 7, ..., "conditions": [0, 1, 2]},
 "candidates": [{"pattern": "#...#..#.", "score": 31.25, "macs_ratio": 2.9}, ...]}
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

from forecache._version import __version__
from forecache.errors import SearchFileError
from forecache.io import files
from forecache.io.document import Document, fields, items, refusing
from forecache.io.text import short

DOCUMENT = Document("forecache-search", 1)
MAX_BYTES = 16 * 2**20
KEYS = {"forecache": str, "settings": dict, "candidates": list}
SETTINGS = {
    "model": str, "fingerprint": str, "scheduler": str, "dtype": str,
    "num_steps": int, "budget": int, "v_min": int, "v_max": int, "monotone": bool,
    "method": str, "score": str, "better": str,
    "guidance": float, "seed": int, "batch": int, "conditions": list,
}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A pattern that was sampled with. macs_ratio: how many times fewer multiply-accumulates than without a cache; None
    where the model has no adapter that knows.
    """

    pattern: str
    score: float
    macs_ratio: float | None

    @property
    def fewer_macs(self) -> str:
        """``2.75x fewer MACs``; empty where it is not known."""
        return f"{self.macs_ratio:.2f}x fewer MACs" if self.macs_ratio is not None else ""


@dataclass(frozen=True)
class Settings:
    """What decides the score of a pattern, besides the pattern.

    method: its name on a pattern that computes step 0 alone. score, better: the proxy and its direction.
    conditions: class labels or texts, one sample each.
    """

    model: str
    fingerprint: str
    scheduler: str
    dtype: str
    num_steps: int
    budget: int
    v_min: int
    v_max: int
    monotone: bool
    method: str
    score: str
    better: str
    guidance: float
    seed: int
    batch: int
    conditions: tuple[int | str, ...]

    def differences(self, other: Settings) -> list[str]:
        """The names of what differs; the fingerprint, which is compared with a tolerance, is left out."""
        names = [each.name for each in fields_of(Settings) if each.name != "fingerprint"]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def write(path: Path, settings: Settings, candidates: Iterable[Candidate]) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    values = {
        "forecache": __version__,
        "settings": asdict(settings),
        "candidates": [asdict(candidate) for candidate in candidates],
    }
    DOCUMENT.write(path, values)


def read(path: Path) -> tuple[Settings, list[Candidate]]:
    """The contents of a search file, or a SearchFileError that names the file and what is wrong with it."""
    with refusing(path, SearchFileError, "search file", "Delete it to search from the start"):
        document = DOCUMENT.fields(files.document(path, MAX_BYTES), KEYS)
        settings = fields(document["settings"], SETTINGS)
        texts = isinstance(next(iter(settings["conditions"]), None), str)
        settings["conditions"] = items(settings["conditions"], "conditions", str if texts else int)
        return Settings(**settings), _candidates(document["candidates"])


def _candidates(values: list[Any]) -> list[Candidate]:
    types = {"pattern": str, "score": float, "macs_ratio": float}
    unknown = types | {"macs_ratio": type(None)}
    found = [
        Candidate(**fields(value, unknown if isinstance(value, dict) and value.get("macs_ratio", 0) is None else types))
        for value in values
    ]
    if strange := [each for each in found if not (math.isfinite(each.score) and math.isfinite(each.macs_ratio or 1))]:
        raise ValueError(f"the score and macs_ratio of {short(strange[0].pattern)} must be finite")
    if len({each.pattern for each in found}) != len(found):
        raise ValueError("a pattern stands in it twice")
    return found
