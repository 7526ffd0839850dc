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

The first row has no plan: it is sampled without a cache, and the others are compared with it. Published figures are
strings, so that tables show them as the paper prints them.
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
RESPACED = "DDIM respaced"
"""The sampler of DiT's original code, `forecache.sampling.respaced`."""

SAMPLERS = {"DDIM": "DDIMScheduler", "DPM-Solver++": "DPMSolverMultistepScheduler", RESPACED: "RespacedDDIM"}
"""Samplers by name, with the schedulers that implement them: diffusers' classes, or ours."""

CONDITIONS = ("random classes", "classes in turn", "prompts")
FIELDS = {
    "title": str, "paper": str, "model": str, "sampler": str, "steps": int,
    "guidance": float, "samples": int, "batch": int, "conditions": str, "metrics": list, "rows": list,
}  # fmt: skip
OPTIONAL = {"number": str, "notes": list, "calibration": dict, "vae": str, "flops": dict, "latency": dict}
ROW = {"name": str}
ROW_OPTIONAL = {"plan": dict, "published": dict, "note": str, "absent": str}
MORE_FIGURES = ("speed", "flops", "latency", "deviation")
"""Published figures besides the metrics: speed-up, TFLOPs, mean and standard deviation of the latency in seconds."""

CALIBRATION = {"samples": int, "guidance": float, "shared_noise": bool, "seed": int}
FLOPS = {"steps": int, "per_mac": int}
LATENCY = {"images": int, "rounds": int}


@dataclass(frozen=True)
class TableRow:
    """A row of a table.

    name: the row's name in the paper.
    recipe: the row's method; None for the row without a cache.
    published: figures by metric, and those of `MORE_FIGURES`, as the paper prints them.
    note: a remark on the row.
    absent: why the row cannot be measured, in which case its published figures stand alone; empty if it can.
    """

    name: str
    recipe: Recipe | None = None
    published: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    absent: str = ""

    @property
    def slug(self) -> str:
        """The name as part of a file name: ``fora-50-goc`` for ``FORA 50 % + GOC``."""
        return "-".join(re.findall(r"[a-z0-9.]+", self.name.lower()))


@dataclass(frozen=True)
class Calibration:
    """The protocol of the statistics that EOC needs.

    samples: number of samples; classes are cycled.
    guidance: classifier-free guidance scale.
    shared_noise: whether all samples start from the same noise.
    seed: of the noise.
    """

    samples: int
    guidance: float
    shared_noise: bool
    seed: int


@dataclass(frozen=True)
class Flops:
    """How a paper counts the FLOPs of one image with its guidance pair.

    steps: model calls that are counted, whatever the table samples with.
    per_mac: FLOPs of a multiply-accumulate, 1 or 2.
    """

    steps: int
    per_mac: int


@dataclass(frozen=True)
class Latency:
    """How a table's latencies are measured.

    images: images of a generation, in one batch.
    rounds: timed rounds, in each of which all rows run in turn.
    """

    images: int
    rounds: int


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    name: name of the file, without its ending.
    title: what the table compares.
    paper: arXiv number.
    number: number of the table in the paper; empty if it is not known.
    model: hub repository of the paper's model.
    sampler: a name of `SAMPLERS`.
    steps: sampling steps.
    guidance: classifier-free guidance scale.
    samples: samples per row.
    batch: samples in memory at a time.
    conditions: one of `CONDITIONS`.
    metrics: names of the metrics.
    rows: the rows; the first one is without a cache.
    notes: sentences on how to read the table.
    calibration: protocol of the statistics; None if no row needs any.
    sha256: hash of the file.
    vae: folder or hub repository of the decoder that the paper samples with; empty for the model's own.
    flops: how the paper counts FLOPs; None without such a column.
    latency: how latencies are measured; None without such a column.
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
    vae: str = ""
    flops: Flops | None = None
    latency: Latency | None = None

    @property
    def source(self) -> str:
        """The paper and the number of the table."""
        return f"arXiv {self.paper}{f', table {self.number}' if self.number else ''}"


def bundled() -> dict[str, Path]:
    """The files of the bundled tables, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def open_table(name: str) -> Table:
    """A bundled table by name, or another one by the path of its ``.toml`` file. Raises TableError."""
    if name.endswith(".toml"):
        return read(Path(name))
    if name not in bundled():
        raise TableError(f"There is no table {name!r}; there are {', '.join(bundled())}, or give a .toml file.")
    return read(bundled()[name])


def read(path: Path) -> Table:
    """The table in a file. Raises TableError, which says what is wrong with the file."""
    with refusing(path, TableError, "table", "docs/reproduce.md says what a table file holds"):
        content = files.contents(path, MAX_BYTES)
        return _table(path.stem, tomllib.loads(content.decode()), hashlib.sha256(content).hexdigest())


def _table(name: str, document: dict[str, Any], sha256: str) -> Table:
    DOCUMENT.check(document)
    values = _checked(document, FIELDS | {"format": str, "version": int}, OPTIONAL, "the file")
    _one_of(values["sampler"], tuple(SAMPLERS), "sampler")
    _one_of(values["conditions"], CONDITIONS, "conditions")
    for size in ("steps", "samples", "batch"):
        if values[size] < 1:
            raise ValueError(f"{size} is at least 1, not {values[size]}")
    if not re.fullmatch(r"\d{4}\.\d{4,5}", values["paper"]):
        raise ValueError(f"paper is an arXiv number such as 2503.05156, not {short(values['paper'])}")
    if not values["metrics"]:
        raise ValueError("it names no metric")
    for metric in values["metrics"]:
        _one_of(metric, tuple(METRICS), "metrics")
    rows = tuple(_row(entry) for entry in values["rows"])
    _check_rows(rows)
    calibration = values.get("calibration")
    if calibration is not None:
        calibration = Calibration(**_checked(calibration, CALIBRATION, {}, "calibration"))
    plain = {key: values[key] for key in FIELDS if key not in ("metrics", "rows")}
    flops = Flops(**_positive(values["flops"], FLOPS, "flops")) if "flops" in values else None
    latency = Latency(**_positive(values["latency"], LATENCY, "latency")) if "latency" in values else None
    return Table(
        name,
        **plain,
        number=values.get("number", ""),
        metrics=tuple(values["metrics"]),
        rows=rows,
        notes=_texts(values.get("notes", []), "notes"),
        calibration=calibration,
        sha256=sha256,
        vae=values.get("vae", ""),
        flops=flops,
        latency=latency,
    )


def _positive(document: Any, keys: Mapping[str, type], where: str) -> dict[str, Any]:
    values = _checked(document, keys, {}, where)
    if small := [key for key, value in values.items() if value < 1]:
        raise ValueError(f"{small[0]} of {where} is at least 1, not {values[small[0]]}")
    return values


def _check_rows(rows: tuple[TableRow, ...]) -> None:
    planless = [row for row in rows if row.recipe is None and not row.absent]
    if not rows or planless != [rows[0]]:
        raise ValueError("the first row, and no other, has no plan: it is the row without a cache")
    if both := [row.name for row in rows if row.recipe is not None and row.absent]:
        raise ValueError(f"row {short(both[0])} has a plan, and says why it is absent")
    slugs = [row.slug for row in rows]
    if ambiguous := next((row.name for row in rows if not row.slug or slugs.count(row.slug) > 1), None):
        raise ValueError(f"rows need names of their own, in letters and digits; {ambiguous!r} is not one")


def _row(document: Any) -> TableRow:
    values = _checked(document, ROW, ROW_OPTIONAL, "a row")
    where = f"row {short(values['name'])}"
    published = values.get("published", {})
    for key, value in published.items():
        _one_of(key, (*METRICS, *MORE_FIGURES), f"published of {where}")
        if type(value) is not str or not re.fullmatch(r"\d+(\.\d+)?", value):
            raise ValueError(f"{key} of {where} is a number in quotes, as the paper prints it, not {short(value)}")
    recipe = recipes.read(values["plan"], f" of {where}") if "plan" in values else None
    return TableRow(values["name"], recipe, published, values.get("note", ""), values.get("absent", ""))


def _checked(document: Any, needed: Mapping[str, type], optional: Mapping[str, type], where: str) -> dict[str, Any]:
    """The values of a document that has every needed key, no unknown one, and their types; floats may be whole."""
    if not isinstance(document, dict):
        raise ValueError(f"{where} is {short(document)}, not a table of keys")
    if missing := [key for key in needed if key not in document]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    known = {**needed, **optional}
    if unknown := [key for key in document if key not in known]:
        raise ValueError(f"{where} has unknown keys {short(unknown)}; it knows {', '.join(known)}")
    values = {}
    for key, value in document.items():
        kind = known[key]
        value = float(value) if kind is float and type(value) is int else value
        if type(value) is not kind:
            raise ValueError(f"{key} of {where} is of type {kind.__name__}, not {short(value)}")
        values[key] = value
    return values


def _texts(values: list[Any], name: str) -> tuple[str, ...]:
    if strange := [value for value in values if type(value) is not str]:
        raise ValueError(f"{name} are texts, not {short(strange[0])}")
    return tuple(values)


def _one_of(value: Any, choices: tuple[str, ...], name: str) -> None:
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}; not {short(value)}")
