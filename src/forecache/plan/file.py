"""The plan file: versioned JSON with a closed vocabulary, checked key by key when it is read.

    {"format": "forecache-plan", "version": 2, "num_steps": 4,
     "model": "DiTTransformer2DModel", "fingerprint": "...", "scheduler": "...",
     "sites": [{"name": "blocks.0.attn", "depth": 0, "kind": "attn"}, ...],
     "rows": [{"sites": [0, 1, ...], "cells": ["#", [[0, 1.0]], "#", [[2, 2.2], [1, -1.2]]]}],
     "constants": null,
     "recipe": {"method": "goc", "eta": 1.2, "base": {"method": "fora", "interval": 2}},
     "provenance": {"method": "goc(fora(interval=2), eta=1.2)", "forecache": "0.1.0"}}

Sites with equal rows share one. A cell is ``"#"`` (computed), a list of [step, weight] pairs, or an object with
``reads`` and more:

* ``{"reads": [[0, 1.0]], "gain": "blocks.0.attn/1/gain"}`` names tensors that correct the sum. They lie in the file
  beside the plan that ``"constants": {"file": "plan.constants.safetensors", "sha256": "..."}`` names.
* ``{"reads": [[0, 1.0]], "tokens": {"share": 0.25, "importance": "attn_norm", "site": "blocks.0.attn"}}`` is a partial
  cell, with the fields of `Tokens` that differ from their defaults.

A plan that brings a scheduler has one more key, ``"sampler": {"scheduler": "...", "num_steps": 20}``. So has one that
is corrected in hindsight, ``looks``. Each is a computed step, what is paid back for every skipped step before it, and
its estimate at every site: ``{"step": 2, "shares": [[1, 0.25]], "cells": [{"sites": [0, 1], "cell": [[0, 1.0]]}]}``.

A plan that decides while it runs has version 3 and a key more, ``online``: the rule, its bounds and the forecast, each
by name and numbers (`forecache.plan.online`). Its undecided cells are ``"?"``, or ``"?."`` where a skipped cell is
reused whatever the forecast is, and a decided cell of that kind is ``{"reads": ..., "open": false}``.

``recipe`` is null for a plan without one. Its names are not checked here, but when a method is built from it
(`forecache.methods.build`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from forecache.errors import PlanError, PlanFileError
from forecache.io import files
from forecache.io.document import Document, refusing
from forecache.io.text import short
from forecache.parts.grid import IMPORTANCES, Cell, Grid, Site, Tokens, check_reads
from forecache.plan import looks, online, recipe
from forecache.plan.looks import Look
from forecache.plan.online import Online
from forecache.plan.recipe import Recipe
from forecache.plan.sampler import Sampler

DOCUMENT = Document("forecache-plan", 2)
DECIDING = Document("forecache-plan", 3)
"""Of plans that decide while they run."""
MAX_BYTES = 16 * 2**20
Rows = tuple[tuple[Cell, ...], ...]
KEYS = (
    "num_steps", "model", "fingerprint", "scheduler", "sites", "rows", "constants", "recipe",
    "provenance",
)  # fmt: skip


class ConstantsFile(NamedTuple):
    """The file of a plan's constants.

    file: name, in the folder of the plan
    sha256: digest of its bytes, in hexadecimal
    """

    file: str
    sha256: str


class Contents(NamedTuple):
    """The contents of a plan file, without the tensors of its constants."""

    grid: Grid
    rows: Rows
    provenance: dict[str, str]
    constants: ConstantsFile | None
    recipe: Recipe | None
    sampler: Sampler | None = None
    online: Online | None = None
    looks: tuple[Look, ...] = ()


def encode(contents: Contents) -> bytes:
    """The bytes of a plan file; PlanError for a plan that ranks tokens by a function."""
    grid = contents.grid
    groups: dict[tuple[Cell, ...], list[int]] = {}
    for index, row in enumerate(contents.rows):
        groups.setdefault(row, []).append(index)
    values = {
        "num_steps": grid.num_steps,
        "model": grid.model,
        "fingerprint": grid.fingerprint,
        "scheduler": grid.scheduler,
        "sites": [{"name": site.name, "depth": site.depth, "kind": site.kind} for site in grid.sites],
        "rows": [{"sites": sites, "cells": [_encode(cell) for cell in row]} for row, sites in groups.items()],
        "constants": contents.constants and contents.constants._asdict(),
        "recipe": contents.recipe,
        "provenance": dict(contents.provenance),
    }
    if contents.sampler is not None:
        values["sampler"] = contents.sampler.as_document()
    if contents.looks:
        values["looks"] = [look.as_document(_encode) for look in contents.looks]
    if contents.online is not None:
        return _layout(DECIDING.wrap(values | {"online": online.encode(contents.online)})).encode()
    return _layout(DOCUMENT.wrap(values)).encode()


def _encode(cell: Cell) -> Any:
    if cell.undecided:
        return "?" if cell.is_open else "?."
    reads = [[step, weight] for step, weight in cell.reads]
    more: dict[str, Any] = {"gain": cell.gain, "shift": cell.shift}
    if cell.tokens is not None:
        more["tokens"] = _encode_tokens(cell.tokens)
    if not cell.is_open:
        more["open"] = False
    more = {key: value for key, value in more.items() if value is not None}
    return {"reads": reads} | more if more else reads or "#"


def _encode_tokens(tokens: Tokens) -> dict[str, Any]:
    if callable(tokens.importance):
        raise PlanError(
            f"This plan cannot be saved: it ranks tokens by a function, {tokens.importance!r}, and a plan file holds "
            f"names only. Use the plan where it was made, or rank by one of {', '.join(IMPORTANCES)}."
        )
    values = {field.name: getattr(tokens, field.name) for field in fields(Tokens)}
    always = ("share", "importance", "site")
    defaults = {field.name: field.default for field in fields(Tokens)}
    return {name: value for name, value in values.items() if name in always or value != defaults[name]}


def _layout(document: Mapping[str, Any]) -> str:
    """JSON with one line a key, a site and a row: short, and readable in a diff."""
    lines = []
    for key, value in document.items():
        if key in ("sites", "rows", "looks"):
            inner = ",\n    ".join(json.dumps(entry) for entry in value)
            lines.append(f'  "{key}": [\n    {inner}\n  ]')
        else:
            lines.append(f'  "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read(path: Path) -> Contents:
    """The contents of a plan file, or a PlanFileError that names the file and what is wrong with it."""
    with refusing(path, PlanFileError, "plan file", "Make it again with Plan.save"):
        return decode(files.document(path, MAX_BYTES))


def decode(document: Any) -> Contents:
    """The contents of a parsed document; every key and value is checked."""
    more = tuple(key for key in ("sampler", "looks") if isinstance(document, dict) and key in document)
    decides = isinstance(document, Mapping) and document.get("version") == DECIDING.version
    (DECIDING if decides else DOCUMENT).check(document)
    more = (*more, "online") if decides else more
    values = _keys(document, "the plan", ("format", "version", *KEYS, *more))
    num_steps = _integer(values["num_steps"], "num_steps")
    sites = tuple(_site(site) for site in _list(values["sites"], "sites"))
    names = [_string(values[key], key) for key in ("model", "fingerprint", "scheduler")]
    grid = Grid(num_steps, sites, *names)
    provenance = values["provenance"]
    if not isinstance(provenance, dict) or not all(isinstance(value, str) for value in provenance.values()):
        raise PlanFileError(f"provenance must map names to strings, not {short(provenance)}")
    rows = _rows(_list(values["rows"], "rows"), grid)
    beside = _constants_file(values["constants"])
    expression = None if values["recipe"] is None else recipe.checked(values["recipe"])
    sampler = Sampler.from_document(values["sampler"]) if "sampler" in more else None
    deciding = online.decode(values["online"]) if decides else None
    back = tuple(
        looks.look_of(look, len(sites), _cell) for look in _list(values["looks"] if "looks" in more else [], "looks")
    )
    return Contents(grid, rows, provenance, beside, expression, sampler, deciding, back)


def _constants_file(value: Any) -> ConstantsFile | None:
    if value is None:
        return None
    values = _keys(value, "constants", ConstantsFile._fields)
    file, digest = (_string(values[key], key) for key in ConstantsFile._fields)
    if not re.fullmatch(r"[^/\\\x00]*[^/\\\x00.]", file) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise PlanFileError(f"constants must name a file beside the plan and its digest, not {short(value)}")
    return ConstantsFile(file, digest)


def _rows(groups: Sequence[Any], grid: Grid) -> Rows:
    rows: list[tuple[Cell, ...] | None] = [None] * len(grid.sites)
    for group in groups:
        values = _keys(group, "a row", ("sites", "cells"))
        encoded = _list(values["cells"], "cells")
        if len(encoded) != grid.num_steps:
            raise PlanFileError(f"a row has {len(encoded)} cells for {grid.num_steps} steps")
        cells = tuple(_cell(cell, step) for step, cell in enumerate(encoded))
        for index in _list(values["sites"], "the sites of a row"):
            if _integer(index, "a site's index") >= len(rows) or rows[index] is not None:
                raise PlanFileError(f"site {index} does not exist or has two rows")
            rows[index] = cells
    if None in rows:
        raise PlanFileError(f"{grid.sites[rows.index(None)].name} has no row")
    return tuple(row for row in rows if row is not None)


def _cell(encoded: Any, step: int) -> Cell:
    if encoded == "#":
        return Cell()
    if encoded in ("?", "?."):
        return Cell(undecided=True, is_open=encoded == "?")
    more: dict[str, Any] = {}
    if isinstance(encoded, dict):
        unknown = [key for key in encoded if key not in ("reads", "gain", "shift", "tokens", "open")]
        if unknown or "reads" not in encoded or len(encoded) < 2:
            raise PlanFileError(f"the cell of step {step} must have reads, and a gain, a shift or tokens")
        more = {key: _string(encoded[key], f"the {key} of step {step}") for key in ("gain", "shift") if key in encoded}
        if "open" in encoded:
            if encoded["open"] is not False:
                raise PlanFileError(f"open of step {step} is false where it stands, not {short(encoded['open'])}")
            more["is_open"] = False
        if "tokens" in encoded:
            more["tokens"] = _tokens(encoded["tokens"], step)
        encoded = encoded["reads"]
    reads = []
    for read in _list(encoded, f"the cell of step {step}"):
        if not isinstance(read, list) or len(read) != 2 or type(read[1]) not in (int, float):
            raise PlanFileError(f"a cell of step {step} reads {short(read)}, not a [step, weight] pair")
        reads.append((_integer(read[0], "a step"), float(read[1])))
    check_reads(reads, step)
    return Cell(tuple(reads), **more)


def _tokens(encoded: Any, step: int) -> Tokens:
    if not isinstance(encoded, dict) or not {"share", "importance", "site"} <= set(encoded):
        raise PlanFileError(f"the tokens of step {step} must have share, importance and site, not {short(encoded)}")
    known = {field.name for field in fields(Tokens)}
    if unknown := [name for name in encoded if name not in known]:
        raise PlanFileError(f"the tokens of step {step} have unknown keys {short(unknown)}")
    values = dict(encoded)
    for name in ("share", "age", "bonus"):
        if name in values:
            if type(values[name]) not in (int, float):
                raise PlanFileError(f"{name} of the tokens of step {step} must be a number, not {short(values[name])}")
            values[name] = float(values[name])
    for name in ("importance", "site", "halves"):
        _string(values.get(name, ""), f"{name} of the tokens of step {step}")
    if "seed" in values:
        _integer(values["seed"], f"the seed of step {step}")
    if "token_grid" in values:
        sides = _list(values["token_grid"], f"token_grid of step {step}")
        if len(sides) != 2:
            raise PlanFileError(f"token_grid of step {step} must be [rows, columns], not {short(sides)}")
        values["token_grid"] = tuple(_integer(side, "a side of token_grid") for side in sides)
    return Tokens(**values)


def _site(value: Any) -> Site:
    values = _keys(value, "a site", ("name", "depth", "kind"))
    name, kind = _string(values["name"], "a site's name"), _string(values["kind"], "a site's kind")
    return Site(name, _integer(values["depth"], "a site's depth"), kind)


def _keys(value: Any, what: str, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PlanFileError(f"{what} must be an object, not {short(value)}")
    if missing := [name for name in names if name not in value]:
        raise PlanFileError(f"{what} lacks {', '.join(missing)}")
    if unknown := [name for name in value if name not in names]:
        raise PlanFileError(f"{what} has unknown keys {short(unknown)}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise PlanFileError(f"{what} must be a list, not {short(value)}")
    return value


def _integer(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise PlanFileError(f"{what} must be a whole number of at least 0, not {short(value)}")
    return value


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise PlanFileError(f"{what} must be a string, not {short(value)}")
    return value
