"""The file of a search: its settings and the scores so far. Versioned JSON, checked when it is read.

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
    "guidance": float, "seed": int, "batch": int, "conditions": list, "sites": str,
}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A pattern that was sampled with.

    pattern: computed (``#``) and skipped (``.``) steps.
    score: of its images.
    macs_ratio: how many times fewer multiply-accumulates than without a cache; None if the model's cannot be counted.
    """

    pattern: str
    score: float
    macs_ratio: float | None

    @property
    def fewer_macs(self) -> str:
        """``2.75x fewer MACs``; empty where the ratio is not known."""
        return f"{self.macs_ratio:.2f}x fewer MACs" if self.macs_ratio is not None else ""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the score of a pattern, besides the pattern.

    model: class of the model.
    fingerprint: of the model's weights.
    scheduler: configuration of the scheduler.
    dtype: of the model's weights.
    num_steps: sampling steps.
    budget: computed steps.
    v_min: fewest skipped steps after a computed one.
    v_max: most skipped steps after a computed one.
    monotone: whether the gaps never grow.
    method: name of the method on a pattern that computes step 0 alone.
    score: name of the score.
    better: "higher" or "lower".
    guidance: classifier-free guidance scale.
    seed: of the noise.
    batch: samples of a generation.
    conditions: class labels or texts, one for each sample.
    sites: what sites are, in words; empty for the finest.
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
    sites: str = ""

    def differences(self, other: Settings) -> list[str]:
        """The names of the settings that differ, without the fingerprint, which is compared with a tolerance."""
        names = [field.name for field in fields_of(Settings) if field.name != "fingerprint"]
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
    """The settings and candidates in a file; SearchFileError names the file and what is wrong with it."""
    with refusing(path, SearchFileError, "search file", "Delete it to search from the start"):
        document = DOCUMENT.fields(files.document(path, MAX_BYTES), KEYS)
        settings = fields({"sites": "", **document["settings"]}, SETTINGS)
        texts = isinstance(next(iter(settings["conditions"]), None), str)
        settings["conditions"] = items(settings["conditions"], "conditions", str if texts else int)
        return Settings(**settings), _candidates(document["candidates"])


def _candidates(values: list[Any]) -> list[Candidate]:
    types = {"pattern": str, "score": float, "macs_ratio": float}
    unknown = types | {"macs_ratio": type(None)}
    candidates = [
        Candidate(**fields(value, unknown if isinstance(value, dict) and value.get("macs_ratio", 0) is None else types))
        for value in values
    ]
    for candidate in candidates:
        if not (math.isfinite(candidate.score) and math.isfinite(candidate.macs_ratio or 1)):
            raise ValueError(f"the score and macs_ratio of {short(candidate.pattern)} must be finite")
    if len({candidate.pattern for candidate in candidates}) != len(candidates):
        raise ValueError("it has a pattern twice")
    return candidates
