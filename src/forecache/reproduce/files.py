"""The files of a reproduction: a manifest of its settings, and one file for each finished row.

reproduction.json, versioned JSON, checked when it is read:

    {"format": "forecache-reproduction", "version": 1, "forecache": "0.1.0",
     "settings": {"table": "goc-table-3", "table_sha256": "...", "sampling": {...}, "metrics": ["fid", ...],
                  "resamples": 100, "extractor": "inception", "reference": "real.npz"}}

rows/fora-50.json: the figures of a row with their resamples, its plan, seconds, hardware and versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from forecache._version import __version__
from forecache.errors import InputError, TableError
from forecache.evaluate import Estimate
from forecache.io import files
from forecache.io.document import Document, items, refusing
from forecache.io.document import fields as checked_fields
from forecache.sampling.shard_file import Settings as Sampling
from forecache.sampling.shards import differences

MANIFEST = Document("forecache-reproduction", 1)
RESULT = Document("forecache-reproduction-result", 1)
KEYS = {"forecache": str, "settings": dict}
SETTINGS = {"table": str, "table_sha256": str, "sampling": dict, "metrics": list, "resamples": int}
ROW = {
    "name": str, "method": str, "picture": str, "plan_sha256": str, "samples_sha256": str, "samples": int, "seed": int,
    "sampling_seconds": float, "evaluation_seconds": float, "made_on": dict, "figures": dict, "notes": list,
    "environment": dict,
}  # fmt: skip
COST = {"macs": int, "macs_ratio": float, "cache_bytes": int}
"""The cost of a row; null where the model's cost is not known from shapes."""


@dataclass(frozen=True)
class Settings:
    """The settings that determine the figures of a reproduction.

    table: name of the table.
    table_sha256: hash of its file.
    sampling: settings of the row without a cache.
    metrics: names of the metrics.
    resamples: bootstrap resamples.
    extractor: name of the network that extracts features; None if no metric needs one.
    reference: name of the real images; None if no metric needs any.
    """

    table: str
    table_sha256: str
    sampling: Sampling
    metrics: tuple[str, ...]
    resamples: int
    extractor: str | None
    reference: str | None

    def differences(self, other: Settings) -> list[str]:
        """The settings in which this reproduction differs from another one, as phrases."""
        if self.table != other.table:
            return [f"table {self.table}, not {other.table}"]
        phrases = [phrase.replace("count ", "samples ", 1) for phrase in differences(self.sampling, other.sampling)]
        if self.table_sha256 != other.table_sha256:
            phrases.insert(0, f"another version of the table {self.table}")
        for name in ("metrics", "resamples", "extractor", "reference"):
            own, others = getattr(self, name), getattr(other, name)
            if own != others:
                phrases.append(f"{name} {_text(own)}, not {_text(others)}")
        return phrases


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def join(folder: Path, settings: Settings) -> None:
    """Take part in the reproduction in a folder; the first process writes its manifest.

    Raises TableError if the folder holds a reproduction with other settings.
    """
    path = folder / "reproduction.json"
    for temporary in (*folder.glob("*.tmp"), *folder.glob("rows/*.tmp")):  # of a process that was killed
        temporary.unlink(missing_ok=True)
    if not path.exists():
        MANIFEST.write(path, {"forecache": __version__, "settings": asdict(settings)})
    if phrases := read_manifest(path).differences(settings):
        raise TableError(
            f"{folder} holds another reproduction ({'; '.join(phrases)}): choose another folder, or delete it."
        )


def read_manifest(path: Path) -> Settings:
    """The settings of the reproduction in a folder. Raises TableError, which says what is wrong with the file."""
    with refusing(path, TableError, "reproduction", "Choose another folder, or delete this one"):
        document = MANIFEST.fields(files.document(path, 16 * 2**20), KEYS)
        values = document["settings"]
        named = {name: str for name in ("extractor", "reference") if values.get(name) is not None}
        unnamed = {name: type(None) for name in ("extractor", "reference") if name not in named}
        values = checked_fields(values, SETTINGS | named | unnamed)
        names = {entry.name for entry in fields(Sampling)}
        if set(values["sampling"]) != names:
            raise ValueError(f"its sampling does not hold {', '.join(sorted(names))}")
        metrics = items(values["metrics"], "metrics", str)
        return Settings(**values | {"sampling": Sampling(**values["sampling"]), "metrics": metrics})


def write_row(path: Path, row: Mapping[str, Any]) -> None:
    """Write a finished row."""
    files.write_json(path, {**row, "forecache": __version__}, indent=1)


def read_row(path: Path) -> dict[str, Any] | None:
    """A finished row; None if there is no file or it is damaged, so that the row is measured again."""
    try:
        document = files.document(path, 16 * 2**20)
        known = {name: kind for name, kind in COST.items() if document.get(name) is not None}
        unknown = {name: type(None) for name in COST if name not in known}
        checked_fields(document, ROW | {"forecache": str} | known | unknown)
        document["figures"] = {name: Estimate.read(figure) for name, figure in document["figures"].items()}
    except (OSError, ValueError, AttributeError, InputError):
        return None
    return document
