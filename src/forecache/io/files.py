"""Files that others may have made: regular ones only, of bounded size, read as data; and JSON without surprises.

Nothing here raises errors of its own kind: ValueError and OSError say what is wrong, and whoever knows what the file
was meant to be adds its name. What a document may take in memory is bounded before it is parsed: `MAX_VALUES` values.
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
"""Values of a document, counted by the signs that part them; CPython needs up to 100 bytes for one of them."""
MAX_DIGITS = 20


def opened(path: Path) -> BinaryIO:
    """A regular file, open for reading; ValueError or OSError for a folder, a pipe (which would hang) or a device."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise ValueError("it is a pipe or a device, not a regular file")


def check_size(path: Path, max_bytes: int) -> int:
    """The size of a regular file in bytes; ValueError if it is over ``max_bytes``."""
    with opened(path) as file:
        return _size(file, max_bytes)


def contents(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file of at most ``max_bytes``; its size is checked before anything is read."""
    with opened(path) as file:
        return file.read(_size(file, max_bytes))


def _size(file: BinaryIO, max_bytes: int) -> int:
    if (size := os.fstat(file.fileno()).st_size) > max_bytes:
        raise ValueError(f"it has {size} bytes; such a file has at most {max_bytes}")
    return size


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when the block ends without an error: a reader sees the old file or
    the new one. Folders that are missing are made.

    Each writer has a temporary file of its own, ``<name>.<random>.tmp``, so that processes that write the same file do
    not disturb each other; only a process that is killed leaves it behind. durable: the file has reached the disk when
    the block ends, and survives a power failure; False is for what can be made again.
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
    """The JSON document in a regular file of at most ``max_bytes``, by the rules of `parse`."""
    return parse(contents(path, max_bytes))


def parse(data: bytes) -> Any:
    """JSON in UTF-8, strictly: ValueError for keys that stand twice, NaN and infinities (also as 1e999), integers of
    more than 20 digits, half surrogates, nesting too deep for Python, and more than `MAX_VALUES` values.
    """
    if (values := sum(map(data.count, (b",", b":", b"[", b"{")))) > MAX_VALUES:
        raise ValueError(f"it has about {values} values; such a file has at most {MAX_VALUES}")
    try:
        found = json.loads(
            data.decode("utf-8-sig"),
            parse_constant=_refuse,
            parse_int=_integer,
            parse_float=_finite,
            object_pairs_hook=_object,
        )
        if re.search(rb"\\u[dD][89a-fA-F]", data):
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError as error:
        raise ValueError("it has half of a surrogate pair, which is no text") from error
    return found


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
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {short(twice)} stands twice in an object")
    return found
