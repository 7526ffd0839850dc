"""Ingredients: measured data of a method (statistics, routers, schedule files), which a recipe names and cannot hold.

A reference is ``{"file": "statistics-20.safetensors", "sha256": "..."}``. The digest is of what was measured, not of
the file's bytes, so that a file in a newer format is the same ingredient; of a schedule file it is of its bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from forecache.errors import PlanError
from forecache.io import files
from forecache.methods.parameters import Parameter
from forecache.parts.router import Router
from forecache.parts.statistics import Statistics

MAX_FILE_BYTES = 2**20

NOUNS = {"statistics": "statistics", "router": "a router", "file": "a file"}
MAKERS = {
    "statistics": "Statistics.load(path), a file of `forecache calibrate`",
    "router": "Router.read(path), a file of `forecache train-router` or a published one",
    "file": "its path",
}

_DIGESTS: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def statistics_of(value: Statistics | str | os.PathLike[str]) -> Statistics:
    """Statistics as they are, or of a file."""
    return Statistics.load(value) if isinstance(value, str | os.PathLike) else value


def router_of(value: Router | str | os.PathLike[str]) -> Router:
    """A router as it is, or of a file: our safetensors, or a published ``.pt``."""
    return Router.read(value) if isinstance(value, str | os.PathLike) else value


def opened(parameter: Parameter, value: Any) -> Any:
    """The data of an ingredient parameter, read where the value is a path; a schedule file stays a path."""
    if parameter.kind == "statistics":
        return statistics_of(value)
    return router_of(value) if parameter.kind == "router" else value


def reference(parameter: Parameter, value: Any, data: Any) -> dict[str, str] | None:
    """The reference of a recipe to ``data``, which ``value`` named; None for data of a type that no file holds."""
    data = Path(data) if parameter.kind == "file" else data
    if not isinstance(data, {"statistics": Statistics, "router": Router, "file": Path}[parameter.kind]):
        return None
    return {"file": Path(value).name if isinstance(value, str | os.PathLike) else "", "sha256": digest(data)}


def is_reference(value: Any) -> bool:
    """Whether a value of a recipe refers to an ingredient."""
    return isinstance(value, Mapping) and set(value) == {"file", "sha256"} and all(
        isinstance(text, str) for text in value.values()
    )  # fmt: skip


def supplied(parameter: Parameter, wanted: Mapping[str, str], ingredients: Iterable[Any], where: str) -> Any:
    """The ingredient that a reference names; PlanError where it is not among those that were given."""
    types = {"statistics": Statistics, "router": Router, "file": str | os.PathLike}
    for ingredient in ingredients:
        if isinstance(ingredient, types[parameter.kind]):
            data = Path(ingredient) if parameter.kind == "file" else ingredient
            if digest(data) == wanted["sha256"]:
                return ingredient
    named = f" {wanted['file']!r}" if wanted["file"] else ""
    raise PlanError(
        f"{parameter.name}{where} is {NOUNS[parameter.kind]}{named} with the digest {wanted['sha256'][:12]}, and it is "
        f"not among the ingredients: give {MAKERS[parameter.kind]}."
    )


def digest(data: Statistics | Router | Path) -> str:
    """SHA-256 of an ingredient, in hexadecimal."""
    if isinstance(data, Path):
        try:
            return hashlib.sha256(files.contents(data, MAX_FILE_BYTES)).hexdigest()
        except (OSError, ValueError) as error:
            raise PlanError(f"{data} cannot be read as an ingredient of a method: {error}.") from error
    if data not in _DIGESTS:
        _DIGESTS[data] = _router(data) if isinstance(data, Router) else _statistics(data)
    return _DIGESTS[data]


def _router(router: Router) -> str:
    return _hash({"sites": router.sites, "skippable": router.skippable}, [router.logits])


def _statistics(stats: Statistics) -> str:
    origin = {name: value for name, value in stats.origin.document().items() if name != "forecache"}
    sites = [(site.name, site.depth, site.kind) for site in stats.sites]
    return _hash({"sites": sites, "origin": origin}, [*stats.means, stats.changes, stats.inverse, stats.counts])


def _hash(document: Any, tensors: Iterable[Tensor]) -> str:
    sha256 = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for tensor in tensors:
        sha256.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()
