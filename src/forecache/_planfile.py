"""The plan file: versioned JSON with a closed vocabulary, checked key by key when it is read.

    {"format": "forecache-plan", "version": 1, "num_steps": 4, "model": "DiTTransformer2DModel",
     "sites": [{"name": "blocks.0.attn", "depth": 0, "kind": "attn"}, ...],
     "rows": [{"sites": [0, 1, ...], "cells": ["#", [[0, 1.0]], "#", [[2, 2.2], [1, -1.2]]]}],
     "provenance": {"method": "goc(fora(interval=2), eta=1.2)", "forecache": "0.1.0"}}

Sites with the same row share it. A cell is ``"#"`` (computed) or a list of [step, weight] pairs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forecache._core import Cell, Grid, Site, check_reads
from forecache._errors import PlanFileError

VERSION = 1
MAX_BYTES = 64 * 2**20
Rows = tuple[tuple[Cell, ...], ...]


def write(path: Path, grid: Grid, rows: Rows, provenance: Mapping[str, str]) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    groups: dict[tuple[Cell, ...], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row, []).append(index)
    document = {
        "format": "forecache-plan",
        "version": VERSION,
        "num_steps": grid.num_steps,
        "model": grid.model,
        "sites": [{"name": site.name, "depth": site.depth, "kind": site.kind} for site in grid.sites],
        "rows": [{"sites": sites, "cells": [_encode(cell) for cell in row]} for row, sites in groups.items()],
        "provenance": dict(provenance),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(_layout(document), encoding="utf-8")
    os.replace(temporary, path)


def _encode(cell: Cell) -> str | list[list[float]]:
    return "#" if cell.computed else [[step, weight] for step, weight in cell.reads]


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


def read(path: Path) -> tuple[Grid, Rows, dict[str, str]]:
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


def decode(document: Any) -> tuple[Grid, Rows, dict[str, str]]:
    """A parsed document as grid, rows and provenance; every key and value is checked."""
    fields = _keys(document, "the plan", ("format", "version", "num_steps", "model", "sites", "rows", "provenance"))
    if fields["format"] != "forecache-plan":
        raise PlanFileError(f"its format is {_short(fields['format'])}, not 'forecache-plan'")
    if type(fields["version"]) is not int or fields["version"] != VERSION:
        raise PlanFileError(f"its version is {_short(fields['version'])}; this forecache reads version {VERSION}")
    num_steps = _integer(fields["num_steps"], "num_steps")
    sites = tuple(_site(each) for each in _list(fields["sites"], "sites"))
    grid = Grid(num_steps, sites, _string(fields["model"], "model"))
    provenance = fields["provenance"]
    if not isinstance(provenance, dict) or not all(isinstance(value, str) for value in provenance.values()):
        raise PlanFileError("provenance must map names to strings")
    return grid, _rows(_list(fields["rows"], "rows"), grid), provenance


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
    reads = []
    for read in _list(encoded, f"the cell of step {step}"):
        if not isinstance(read, list) or len(read) != 2 or type(read[1]) not in (int, float):
            raise PlanFileError(f"a cell of step {step} reads {_short(read)}, not a [step, weight] pair")
        reads.append((_integer(read[0], "a step"), float(read[1])))
    check_reads(reads, step)
    return Cell(tuple(reads))


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
