"""Tensors and one JSON document in a safetensors file: data, checked when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from forecache.io import files
from forecache.io.files import short

MAX_HEADER = 32 * 2**20


def write(path: Path, key: str, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write atomically: a reader sees the old file or the new one. ``key`` names the format."""
    files.write(path, save(dict(tensors), metadata={key: json.dumps(document)}))


def read(path: Path, key: str, max_bytes: int) -> tuple[Any, dict[str, Tensor]]:
    """The document and the tensors of a file that was written under ``key``; use it inside `document.refusing`."""
    metadata = header(path, max_bytes).get("__metadata__") or {}
    if not isinstance(metadata, dict) or set(metadata) != {key} or not isinstance(metadata[key], str):
        raise ValueError(f"its metadata is {short(sorted(metadata))}, not ['{key}']")
    document = files.parse(metadata[key].encode())
    try:
        with safe_open(path, framework="pt") as file:  # it maps the file, and holds every offset against its length
            return document, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no dict
    except (RuntimeError, TypeError) as error:  # of torch: a shape whose sides overflow
        raise ValueError(str(error).splitlines()[0]) from error


def header(path: Path, max_bytes: int) -> dict[str, Any]:
    """What a safetensors file says of its tensors, by the rules of `files.parse`; use it inside `document.refusing`.

    Its sizes are checked before anything is read: of the file, and of the header, at most 32 MiB.
    """
    size = files.check_size(path, max_bytes)
    with files.opened(path) as file:
        start = file.read(8)
        if start[:4] == b"PK\x03\x04":
            raise ValueError("it is a .pt file of torch; a published router is read with Router.from_published")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MAX_HEADER, size - 8):
            raise ValueError("it does not begin with the length of a safetensors header")
        found = files.parse(file.read(length))
    if not isinstance(found, dict):
        raise ValueError(f"its header must be an object, not {short(found)}")
    return found
