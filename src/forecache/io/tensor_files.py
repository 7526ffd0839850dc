"""Tensors beside one document in a safetensors file: data, checked when it is read.

The document is JSON in the file's metadata, under the key ``forecache``:

    {"__metadata__": {"forecache": "{\\"format\\": \\"forecache-router\\", \\"version\\": 2, ...}"}, "logits": ...}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from forecache.io import files
from forecache.io.document import Document
from forecache.io.text import short

KEY = "forecache"
MAX_HEADER = 32 * 2**20
"""Bytes of a header, which names the tensors and holds the document."""


def write(path: Path, document: Document, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the document of these values with its tensors, by the rules of `files.write`."""
    files.write(path, save(dict(tensors), metadata={KEY: json.dumps(document.wrap(values))}))


def read(
    path: Path, document: Document, types: Mapping[str, type], max_bytes: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The values of a file's document, which has exactly these keys, and its tensors; ValueError for another file."""
    values = document.fields(read_document(path, max_bytes), types)
    try:
        with safe_open(path, framework="pt") as file:  # it maps the file, and checks every offset against its length
            return values, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no dict
    except (RuntimeError, TypeError) as error:  # of torch: a shape whose sides overflow
        raise ValueError(str(error).splitlines()[0]) from error


def read_document(path: Path, max_bytes: int) -> Any:
    """The document alone, whatever its format; ValueError for a file that has none, or other metadata beside it."""
    metadata = _header(path, max_bytes).get("__metadata__") or {}
    if not isinstance(metadata, dict) or set(metadata) != {KEY} or not isinstance(metadata[KEY], str):
        raise ValueError(f"its metadata is {short(sorted(metadata))}, not ['{KEY}']")
    return files.parse(metadata[KEY].encode())


def _header(path: Path, max_bytes: int) -> dict[str, Any]:
    """The header of a safetensors file, by the rules of `files.parse`; sizes are checked before anything is read."""
    size = files.check_size(path, max_bytes)
    with files.opened(path) as file:
        start = file.read(8)
        if start[:4] == b"PK\x03\x04":
            raise ValueError("it is a .pt file of torch; a published router is read with Router.from_published")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MAX_HEADER, size - 8):
            raise ValueError("it does not begin with the length of a safetensors header")
        header = files.parse(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"its header must be an object, not {short(header)}")
    return header
