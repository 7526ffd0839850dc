"""The plan file: versioned JSON with a closed vocabulary, checked key by key when it is read.

    {"format": "forecache-plan", "version": 1, "num_steps": 4,
     "model": "DiTTransformer2DModel", "fingerprint": "...", "scheduler": "...",
     "sites": [{"name": "blocks.0.attn", "depth": 0, "kind": "attn"}, ...],
     "rows": [{"sites": [0, 1, ...], "cells": ["#", [[0, 1.0]], "#", [[2, 2.2], [1, -1.2]]]}],
     "constants": null,
     "provenance": {"method": "goc(fora(interval=2), eta=1.2)", "forecache": "0.1.0"}}

Sites with the same row share it. A cell is ``"#"`` (computed), a list of [step, weight] pairs, or, where the sum is
corrected, ``{"reads": [[0, 1.0]], "gain": "blocks.0.attn/1/gain"}`` with the names of tensors in the file that
``"constants": {"file": "plan.constants.safetensors", "sha256": "..."}`` names, which stands beside the plan.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from forecache._core import Cell, Grid, Site, check_reads
from forecache._errors import PlanFileError

VERSION = 1
MAX_BYTES = 64 * 2**20
Rows = tuple[tuple[Cell, ...], ...]
KEYS = (
    "format", "version", "num_steps", "model", "fingerprint", "scheduler", "sites", "rows", "constants", "provenance"
)  # fmt: skip


class Beside(NamedTuple):
    """The file with the plan's constants: its name, in the plan's own folder, and its digest."""

    file: str
    sha256: str


class Contents(NamedTuple):
    """What a plan file says."""

    grid: Grid
    rows: Rows
    provenance: dict[str, str]
    constants: Beside | None


def write(path: Path, contents: Contents) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    grid = contents.grid
    groups: dict[tuple[Cell, ...], list[int]] = {}
    for index, row in enumerate(contents.rows):
        groups.setdefault(row, []).append(index)
    document = {
        "format": "forecache-plan",
        "version": VERSION,
        "num_steps": grid.num_steps,
        "model": grid.model,
        "fingerprint": grid.fingerprint,
        "scheduler": grid.scheduler,
        "sites": [{"name": site.name, "depth": site.depth, "kind": site.kind} for site in grid.sites],
        "rows": [{"sites": sites, "cells": [_encode(cell) for cell in row]} for row, sites in groups.items()],
        "constants": contents.constants and contents.constants._asdict(),
        "provenance": dict(contents.provenance),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(_layout(document), encoding="utf-8")
    os.replace(temporary, path)


def _encode(cell: Cell) -> Any:
    reads = [[step, weight] for step, weight in cell.reads]
    if cell.constants:
        names = {"gain": cell.gain, "shift": cell.shift}
        return {"reads": reads} | {key: name for key, name in names.items() if name is not None}
    return reads or "#"


def _layout(document: Mapping[str, Any]) -> str:
    """One line a key, one line a site and a row: short, and readable in a diff."""
    lines = []
    for key, value in document.items():
        if key in ("sites", "rows"):
            inner = ",\n    ".join(json.dumps(each) for each in value)
            lines.append(f'  "{key}": [\n    {inner}\n  ]')
        else:
            lines.append(f'  "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read(path: Path) -> Contents:
    """The contents of a plan file, or a PlanFileError that names the file and what is wrong with it."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise PlanFileError(f"it has {size} bytes; a plan file has at most {MAX_BYTES}")
        document = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        return decode(document)
    except FileNotFoundError:
        raise PlanFileError(f"There is no plan file at {path}.") from None
    except OSError as error:
        raise PlanFileError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, OverflowError, RecursionError) as error:  # JSON, UTF-8 and our own are ValueErrors
        reason = str(error).rstrip(".")
        raise PlanFileError(f"{path} is not a readable plan file: {reason}. Make it again with Plan.save.") from error


def _refuse_constant(name: str) -> float:
    raise PlanFileError(f"{name} is not a number that a plan can use")


def decode(document: Any) -> Contents:
    """A parsed document; every key and value is checked."""
    fields = _keys(document, "the plan", KEYS)
    if fields["format"] != "forecache-plan":
        raise PlanFileError(f"its format is {_short(fields['format'])}, not 'forecache-plan'")
    if type(fields["version"]) is not int or fields["version"] != VERSION:
        raise PlanFileError(f"its version is {_short(fields['version'])}; this forecache reads version {VERSION}")
    num_steps = _integer(fields["num_steps"], "num_steps")
    sites = tuple(_site(each) for each in _list(fields["sites"], "sites"))
    names = [_string(fields[key], key) for key in ("model", "fingerprint", "scheduler")]
    grid = Grid(num_steps, sites, *names)
    provenance = fields["provenance"]
    if not isinstance(provenance, dict) or not all(isinstance(value, str) for value in provenance.values()):
        raise PlanFileError("provenance must map names to strings")
    return Contents(grid, _rows(_list(fields["rows"], "rows"), grid), provenance, _beside(fields["constants"]))


def _beside(value: Any) -> Beside | None:
    if value is None:
        return None
    fields = _keys(value, "constants", Beside._fields)
    file, digest = (_string(fields[key], key) for key in Beside._fields)
    if not re.fullmatch(r"[^/\\\x00]*[^/\\\x00.]", file) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise PlanFileError(f"constants must name a file beside the plan and its digest, not {_short(value)}")
    return Beside(file, digest)


def _rows(groups: Sequence[Any], grid: Grid) -> Rows:
    rows: list[tuple[Cell, ...] | None] = [None] * len(grid.sites)
    for group in groups:
        fields = _keys(group, "a row", ("sites", "cells"))
        encoded = _list(fields["cells"], "cells")
        if len(encoded) != grid.num_steps:
            raise PlanFileError(f"a row has {len(encoded)} cells for {grid.num_steps} steps")
        cells = tuple(_cell(each, step) for step, each in enumerate(encoded))
        for index in _list(fields["sites"], "the sites of a row"):
            if _integer(index, "a site's index") >= len(rows) or rows[index] is not None:
                raise PlanFileError(f"site {index} does not exist or has two rows")
            rows[index] = cells
    if None in rows:
        raise PlanFileError(f"{grid.sites[rows.index(None)].name} has no row")
    return tuple(row for row in rows if row is not None)


def _cell(encoded: Any, step: int) -> Cell:
    if encoded == "#":
        return Cell()
    gain = shift = None
    if isinstance(encoded, dict):
        unknown = [key for key in encoded if key not in ("reads", "gain", "shift")]
        if unknown or "reads" not in encoded or len(encoded) < 2:
            raise PlanFileError(f"the cell of step {step} must have reads, and a gain or a shift or both")
        names = {key: _string(name, f"the {key} of step {step}") for key, name in encoded.items() if key != "reads"}
        encoded, gain, shift = encoded["reads"], names.get("gain"), names.get("shift")
    reads = []
    for read in _list(encoded, f"the cell of step {step}"):
        if not isinstance(read, list) or len(read) != 2 or type(read[1]) not in (int, float):
            raise PlanFileError(f"a cell of step {step} reads {_short(read)}, not a [step, weight] pair")
        reads.append((_integer(read[0], "a step"), float(read[1])))
    check_reads(reads, step)
    return Cell(tuple(reads), gain, shift)


def _site(value: Any) -> Site:
    fields = _keys(value, "a site", ("name", "depth", "kind"))
    name, kind = _string(fields["name"], "a site's name"), _string(fields["kind"], "a site's kind")
    return Site(name, _integer(fields["depth"], "a site's depth"), kind)


def _keys(value: Any, what: str, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PlanFileError(f"{what} must be an object, not {_short(value)}")
    if missing := [name for name in names if name not in value]:
        raise PlanFileError(f"{what} lacks {', '.join(missing)}")
    if unknown := [name for name in value if name not in names]:
        raise PlanFileError(f"{what} has unknown keys {_short(unknown)}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise PlanFileError(f"{what} must be a list, not {_short(value)}")
    return value


def _integer(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise PlanFileError(f"{what} must be a whole number of at least 0, not {_short(value)}")
    return value


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise PlanFileError(f"{what} must be a string, not {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
