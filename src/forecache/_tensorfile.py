"""Tensors and one JSON document in a safetensors file: data, checked when it is read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from forecache._errors import ForecacheError


def write(path: Path, key: str, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write atomically: a reader sees the old file or the new one. ``key`` names the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(save(dict(tensors), metadata={key: json.dumps(document)}))
    os.replace(temporary, path)


def read(path: Path, key: str, max_bytes: int) -> tuple[Any, dict[str, Tensor]]:
    """The document and the tensors of a file that was written under ``key``; use it inside `refusing`."""
    if (size := path.stat().st_size) > max_bytes:
        raise ValueError(f"it has {size} bytes; such a file has at most {max_bytes}")
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise ValueError("it is a .pt file of torch; a published router is read with Router.from_published")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if set(metadata) != {key}:
            raise ValueError(f"its metadata is {short(sorted(metadata))}, not ['{key}']")
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no dict
    return json.loads(metadata[key], parse_constant=_refuse_constant), tensors


@contextmanager
def refusing(path: Path, error: type[ForecacheError], what: str, advice: str) -> Iterator[None]:
    """Whatever is wrong with a file becomes ``error``, with a sentence that names the file and ends in ``advice``."""
    try:
        yield
    except FileNotFoundError:
        raise error(f"There is no {what} at {path}. {advice}.") from None
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror or reason}.") from reason
    except (ValueError, OverflowError, RecursionError, SafetensorError) as reason:
        text = str(reason).rstrip(".")
        raise error(f"{path} is not a readable {what}: {text[:300]}. {advice}.") from reason


def fields(document: Any, types: Mapping[str, type]) -> dict[str, Any]:
    """The document, which has exactly these keys with values of these types; else ValueError."""
    if not isinstance(document, dict):
        raise ValueError(f"its document must be an object, not {short(document)}")
    if missing := [name for name in types if name not in document]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    if unknown := [name for name in document if name not in types]:
        raise ValueError(f"it has unknown keys {short(unknown)}")
    for name, kind in types.items():
        if type(document[name]) is not kind:
            raise ValueError(f"{name} must be of type {kind.__name__}, not {short(document[name])}")
    return document


def each(values: Sequence[Any], name: str, kind: type) -> tuple[Any, ...]:
    """The values, which all have this type; else ValueError."""
    for value in values:
        if type(value) is not kind:
            raise ValueError(f"{name} must hold values of type {kind.__name__}, not {short(value)}")
    return tuple(values)


def short(value: Any) -> str:
    """The value in at most 60 signs."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that it can hold")
