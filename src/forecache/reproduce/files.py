"""The files of a reproduction: the manifest, which says what is measured, and a file for each row that is finished.

reproduction.json, versioned JSON, checked when it is read:

    {"format": "forecache-reproduction", "version": 1, "forecache": "0.1.0",
     "settings": {"table": "goc-table-3", "table_sha256": "...", "sampling": {...}, "metrics": ["fid", ...],
                  "resamples": 100, "extractor": "digits", "reference": "digits"}}

rows/fora-50.json: the figures of a row with their resamples, what its plan is, seconds, hardware and versions.
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
UNCOUNTED = {"macs": int, "macs_ratio": float, "cache_bytes": int}
"""What a row says of its cost, null where the model's cost is not known from shapes."""


@dataclass(frozen=True)
class Settings:
    """What decides the figures of a reproduction. sampling: that of its row without a cache.

    resamples: of the bootstrap. extractor, reference: their names, None where no metric needs one.
    """

    table: str
    table_sha256: str
    sampling: Sampling
    metrics: tuple[str, ...]
    resamples: int
    extractor: str | None
    reference: str | None

    def differences(self, other: Settings) -> list[str]:
        """What this one has otherwise than the other."""
        found = differences(self.sampling, other.sampling)
        found = [each.replace("count ", "samples ", 1) for each in found]
        if self.table != other.table:
            return [f"table {self.table}, not {other.table}"]
        if self.table_sha256 != other.table_sha256:
            found.insert(0, f"another version of the table {self.table}")
        for name in ("metrics", "resamples", "extractor", "reference"):
            a, b = getattr(self, name), getattr(other, name)
            if a != b:
                found.append(f"{name} {_text(a)}, not {_text(b)}")
        return found


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def join(folder: Path, asked: Settings) -> None:
    """The folder holds this reproduction, whose manifest is written by the first; TableError if it holds another."""
    path = folder / "reproduction.json"
    for left in (*folder.glob("*.tmp"), *folder.glob("rows/*.tmp")):  # by a process that was killed
        left.unlink(missing_ok=True)
    if not path.exists():
        MANIFEST.write(path, {"forecache": __version__, "settings": asdict(asked)})
    if differ := read_manifest(path).differences(asked):
        raise TableError(
            f"{folder} holds another reproduction ({'; '.join(differ)}): choose another folder, or delete it."
        )


def read_manifest(path: Path) -> Settings:
    """The settings of the reproduction in a folder, or a TableError that names the file and what is wrong with it."""
    with refusing(path, TableError, "reproduction", "Choose another folder, or delete this one"):
        document = MANIFEST.fields(files.document(path, 16 * 2**20), KEYS)
        found = document["settings"]
        optional = {name: str for name in ("extractor", "reference") if found.get(name) is not None}
        rest = {name: type(None) for name in ("extractor", "reference") if name not in optional}
        found = checked_fields(found, SETTINGS | optional | rest)
        names = {each.name for each in fields(Sampling)}
        if set(found["sampling"]) != names:
            raise ValueError(f"its sampling does not hold {', '.join(sorted(names))}")
        metrics = items(found["metrics"], "metrics", str)
        return Settings(**found | {"sampling": Sampling(**found["sampling"]), "metrics": metrics})


def write_row(path: Path, row: Mapping[str, Any]) -> None:
    """A finished row."""
    files.write_json(path, {**row, "forecache": __version__}, indent=1)


def read_row(path: Path) -> dict[str, Any] | None:
    """A finished row; None where there is none, or where the file is damaged, so that it is measured again."""
    try:
        document = files.document(path, 16 * 2**20)
        known = {name: kind for name, kind in UNCOUNTED.items() if document.get(name) is not None}
        unknown = {name: type(None) for name in UNCOUNTED if name not in known}
        checked_fields(document, ROW | {"forecache": str} | known | unknown)
        document["figures"] = {name: Estimate.read(each) for name, each in document["figures"].items()}
    except (OSError, ValueError, AttributeError, InputError):
        return None
    return document
