"""The tables of the papers as data: TOML files with a closed vocabulary, checked when they are read.

    format = "forecache-table"
    version = 1
    title = "GOC on FORA 50 %"
    paper = "2503.05156"
    model = "facebook/DiT-XL-2-256"
    ...

    [[rows]]
    name = "FORA 50 % + GOC"
    plan = { method = "goc", base = { method = "fora_paper", level = 50 }, eta = 1.2 }
    published = { fid = "3.907", speed = "1.9999" }

The first row has no plan: it is sampled without a cache, and the others are held against it. Published figures are
strings, so that they stand in a table as the paper prints them.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forecache.errors import TableError
from forecache.evaluate.metrics import METRICS
from forecache.io import files
from forecache.io.document import Document, refusing
from forecache.io.text import short
from forecache.plan.recipe import Recipe
from forecache.reproduce import recipes

FOLDER = Path(__file__).parent / "tables"
DOCUMENT = Document("forecache-table", 1)
MAX_BYTES = 2**20
SAMPLERS = {"DDIM": "DDIMScheduler", "DPM-Solver++": "DPMSolverMultistepScheduler"}
"""Samplers by the papers' names, and the schedulers of diffusers that they are."""

CONDITIONS = ("random classes", "classes in turn", "prompts")
FIELDS = {
    "title": str, "paper": str, "model": str, "sampler": str, "steps": int,
    "guidance": float, "samples": int, "batch": int, "conditions": str, "metrics": list, "rows": list,
}  # fmt: skip
OPTIONAL = {"number": str, "notes": list, "calibration": dict}
ROW = {"name": str}
ROW_OPTIONAL = {"plan": dict, "published": dict, "note": str}
CALIBRATION = {"samples": int, "guidance": float, "shared_noise": bool, "seed": int}


@dataclass(frozen=True)
class TableRow:
    """recipe: None computes everything. published: by metric and ``speed``, as the paper prints it."""

    name: str
    recipe: Recipe | None = None
    published: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def slug(self) -> str:
        """The name as a file's name: ``FORA 50 % + GOC`` is ``fora-50-goc``."""
        return "-".join(re.findall(r"[a-z0-9.]+", self.name.lower()))


@dataclass(frozen=True)
class Calibration:
    """How the statistics of EOC are measured: samples, one a class in turn, guidance, noise."""

    samples: int
    guidance: float
    shared_noise: bool
    seed: int


@dataclass(frozen=True)
class Table:
    """A table of a paper. name: of its file. number: of the table in the paper, empty where that is not known here.

    sampler, steps, guidance, samples, conditions, metrics: the protocol. sha256: of the file.
    """

    name: str
    title: str
    paper: str
    number: str
    model: str
    sampler: str
    steps: int
    guidance: float
    samples: int
    batch: int
    conditions: str
    metrics: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...]
    calibration: Calibration | None
    sha256: str

    @property
    def source(self) -> str:
        """Where it stands."""
        return f"arXiv {self.paper}{f', table {self.number}' if self.number else ''}"


def bundled() -> dict[str, Path]:
    """The tables that come with the package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def open_table(name: str) -> Table:
    """A bundled table by its name, or one of your own by its path, which ends in ``.toml``; else TableError."""
    if name.endswith(".toml"):
        return read(Path(name))
    if name not in bundled():
        raise TableError(f"There is no table {name!r}; there are {', '.join(bundled())}, or give a .toml file.")
    return read(bundled()[name])


def read(path: Path) -> Table:
    """The table of a file, or a TableError that names the file and what is wrong with it."""
    with refusing(path, TableError, "table", "docs/reproduce.md says what a table file holds"):
        content = files.contents(path, MAX_BYTES)
        return _table(path.stem, tomllib.loads(content.decode()), hashlib.sha256(content).hexdigest())


def _table(name: str, document: dict[str, Any], sha256: str) -> Table:
    DOCUMENT.check(document)
    found = _checked(document, FIELDS | {"format": str, "version": int}, OPTIONAL, "the file")
    _one_of(found["sampler"], tuple(SAMPLERS), "sampler")
    _one_of(found["conditions"], CONDITIONS, "conditions")
    for size in ("steps", "samples", "batch"):
        if found[size] < 1:
            raise ValueError(f"{size} is at least 1, not {found[size]}")
    if not re.fullmatch(r"\d{4}\.\d{4,5}", found["paper"]):
        raise ValueError(f"paper is an arXiv number such as 2503.05156, not {short(found['paper'])}")
    if not found["metrics"]:
        raise ValueError("it names no metric")
    for metric in found["metrics"]:
        _one_of(metric, tuple(METRICS), "metrics")
    rows = tuple(_row(each) for each in found["rows"])
    _check_rows(rows)
    calibration = found.get("calibration")
    if calibration is not None:
        calibration = Calibration(**_checked(calibration, CALIBRATION, {}, "calibration"))
    plain = {key: found[key] for key in FIELDS if key not in ("metrics", "rows")}
    return Table(
        name,
        **plain,
        number=found.get("number", ""),
        metrics=tuple(found["metrics"]),
        rows=rows,
        notes=_texts(found.get("notes", []), "notes"),
        calibration=calibration,
        sha256=sha256,
    )


def _check_rows(rows: tuple[TableRow, ...]) -> None:
    if not rows or rows[0].recipe is not None or any(row.recipe is None for row in rows[1:]):
        raise ValueError("the first row, and no other, has no plan: it is the one without a cache")
    slugs = [row.slug for row in rows]
    if twice := next((row.name for row in rows if not row.slug or slugs.count(row.slug) > 1), None):
        raise ValueError(f"rows need names of their own, in letters and digits; {twice!r} is none")


def _row(document: Any) -> TableRow:
    found = _checked(document, ROW, ROW_OPTIONAL, "a row")
    where = f"row {short(found['name'])}"
    published = found.get("published", {})
    for key, value in published.items():
        _one_of(key, (*METRICS, "speed"), f"published of {where}")
        if type(value) is not str or not re.fullmatch(r"\d+(\.\d+)?", value):
            raise ValueError(f"{key} of {where} is a number in quotes, as the paper prints it, not {short(value)}")
    recipe = recipes.read(found["plan"], f" of {where}") if "plan" in found else None
    return TableRow(found["name"], recipe, published, found.get("note", ""))


def _checked(document: Any, needed: Mapping[str, type], optional: Mapping[str, type], where: str) -> dict[str, Any]:
    """The document with every needed key and no unknown one, each of its type; whole numbers serve as floats."""
    if not isinstance(document, dict):
        raise ValueError(f"{where} is {short(document)}, not a table of keys")
    if missing := [key for key in needed if key not in document]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    known = {**needed, **optional}
    if unknown := [key for key in document if key not in known]:
        raise ValueError(f"{where} has unknown keys {short(unknown)}; it knows {', '.join(known)}")
    found = {}
    for key, value in document.items():
        kind = known[key]
        value = float(value) if kind is float and type(value) is int else value
        if type(value) is not kind:
            raise ValueError(f"{key} of {where} is of type {kind.__name__}, not {short(value)}")
        found[key] = value
    return found


def _texts(values: list[Any], name: str) -> tuple[str, ...]:
    if strange := [value for value in values if type(value) is not str]:
        raise ValueError(f"{name} are texts, not {short(strange[0])}")
    return tuple(values)


def _one_of(value: Any, choices: tuple[str, ...], name: str) -> None:
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}; not {short(value)}")
