"""Reading files of unknown origin, writing files atomically, and strict JSON.

Only regular files of bounded size are read. Functions here raise ValueError and OSError with a reason; the caller, who
knows what the file is meant to be, adds its name (`document.refusing`).
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from forecache.io.text import short

MAX_VALUES = 2**20
"""Most values in a JSON document, counted by the characters between them. CPython needs up to 100 bytes for a value."""
MAX_DIGITS = 20
"""Most digits of an integer in a JSON document."""


def opened(path: Path) -> BinaryIO:
    """A regular file, open for reading; ValueError or OSError for a folder, a device or a pipe, which would block."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise ValueError("it is a pipe or a device, not a regular file")


def check_size(path: Path, max_bytes: int) -> int:
    """The size of a regular file in bytes; ValueError if it is larger than ``max_bytes``."""
    with opened(path) as file:
        return _size(file, max_bytes)


def contents(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file; ValueError, before anything is read, if it is larger than ``max_bytes``."""
    with opened(path) as file:
        return file.read(_size(file, max_bytes))


def _size(file: BinaryIO, max_bytes: int) -> int:
    if (size := os.fstat(file.fileno()).st_size) > max_bytes:
        raise ValueError(f"it has {size} bytes; such a file has at most {max_bytes}")
    return size


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A new file that replaces ``path`` when the block ends without an error. Missing folders are made.

    Readers see the old file or the whole new one. Each writer has its own temporary file, ``<name>.<random>.tmp``, so
    that processes that write the same file do not disturb each other; it is left behind only by a process that is
    killed.

    durable: whether the file is on the disk when the block ends, and survives a power failure [True]; False is for
        files that can be written again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring a folder's new names to the disk; where folders cannot be opened, as on Windows, the system does it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Write a file by the rules of `replacing`; text as UTF-8."""
    with replacing(path, durable=durable) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any, *, indent: int = 2) -> None:
    """Write a value as JSON by the rules of `replacing`."""
    write(path, json.dumps(value, indent=indent) + "\n")


def document(path: Path, max_bytes: int) -> Any:
    """The JSON value of a regular file of at most ``max_bytes``, by the rules of `parse`."""
    return parse(contents(path, max_bytes))


def parse(data: bytes) -> Any:
    """The value of JSON in UTF-8, read strictly.

    ValueError for duplicate keys, NaN and infinities (also as 1e999), integers of more than `MAX_DIGITS` digits, lone
    surrogates, nesting too deep for Python, and, before anything is parsed, more than `MAX_VALUES` values.
    """
    if (values := sum(map(data.count, (b",", b":", b"[", b"{")))) > MAX_VALUES:
        raise ValueError(f"it has about {values} values; such a file has at most {MAX_VALUES}")
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            parse_constant=_refuse,
            parse_int=_integer,
            parse_float=_finite,
            object_pairs_hook=_object,
        )
        if re.search(rb"\\u[dD][89a-fA-F]", data):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError as error:
        raise ValueError("it has half of a surrogate pair, which is no text") from error
    return value


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not a number that it can hold")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"it has an integer of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{short(text)} is not a finite number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {short(twice)} stands twice in an object")
    return value
