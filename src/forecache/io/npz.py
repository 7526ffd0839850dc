"""Arrays of an ``.npz``: the size that an array claims is checked against the archive before memory is allocated.

Functions here raise ValueError and OSError with a reason; the caller, who knows what the file is meant to be, adds its
name.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from forecache.io import files

MAX_TABLE = 2**20
"""Most bytes of an archive's table of contents; that of an ``.npz`` has a few hundred."""
SPARE = 64 * 2**20
"""Bytes that an array may take beyond four times its file: a covariance of 2048 features that compresses well."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The compression methods that numpy writes. Others unpack without a bound."""


class Header(NamedTuple):
    """The header of an array.

    shape: sides of the array.
    fortran: whether its values are in column-major order.
    dtype: type of its values.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the array's values."""
        return math.prod(self.shape) * self.dtype.itemsize


class _Bounded(io.BufferedReader):
    """A file from which a single read takes at most ``limit`` bytes; None is no limit."""

    limit: int | None = MAX_TABLE

    def read(self, size: int | None = -1, /) -> bytes:
        if self.limit is not None:
            left = os.fstat(self.fileno()).st_size - self.tell()
            size = left if size is None or size < 0 else size
            if size > self.limit:
                raise ValueError(f"its table of contents claims {size} bytes")
            size = min(size, left)
        return super().read(size)


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, open for the block; whatever zipfile, zlib or numpy raise for a damaged one becomes ValueError."""
    with files.opened(path) as raw:
        file = _Bounded(io.FileIO(raw.fileno(), closefd=False))
        try:
            with zipfile.ZipFile(file) as archive:
                file.limit = None
                yield archive
        except (OSError, ValueError):
            raise
        except Exception as error:  # BadZipFile, zlib.error, struct.error, RuntimeError of an encrypted one, ...
            raise ValueError(str(error)[:200] or type(error).__name__) from error


def names(archive: zipfile.ZipFile) -> set[str]:
    """The names of an archive's arrays; ValueError for a duplicate."""
    arrays = [name.removesuffix(".npy") for name in archive.namelist()]
    if len(set(arrays)) != len(arrays):
        raise ValueError("a name stands in it twice")
    return set(arrays)


@contextmanager
def member(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[Any, Header]]:
    """An array's file, open after its header, and the header; ValueError for objects or another number of bytes."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise ValueError(f"it has no array {name}") from None
    if info.compress_type not in METHODS:
        raise ValueError(f"{name} is packed in a way that numpy does not write")
    with archive.open(info) as file:
        header = _header(file, name)
        if info.file_size - file.tell() != header.nbytes:
            raise ValueError(
                f"{name} claims {header.dtype} {header.shape}, {header.nbytes} bytes, and has "
                f"{info.file_size - file.tell()}"
            )
        yield file, header


def _header(file: Any, name: str) -> Header:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        header = Header(*read(file))
    except zipfile.BadZipFile:
        raise
    except Exception as error:  # a literal that cannot be parsed fails in many ways
        raise ValueError(f"the header of {name} cannot be read ({type(error).__name__})") from error
    if header.dtype.hasobject or header.dtype.itemsize == 0:
        raise ValueError(f"{name} is {header.dtype} {header.shape}, which is not read")
    return header


def array(archive: zipfile.ZipFile, name: str) -> np.ndarray[Any, Any]:
    """A whole array; ValueError, before it is unpacked, if it is larger than four times the file and `SPARE` bytes."""
    size = _length(archive)
    with member(archive, name) as (file, header):
        if header.nbytes > 4 * size + SPARE:
            raise ValueError(f"{name} unpacks to {header.nbytes} bytes, from a file of {size}")
        values = np.frombuffer(exactly(file, header.nbytes), header.dtype)
        return values.reshape(header.shape, order="F" if header.fortran else "C")


def _length(archive: zipfile.ZipFile) -> int:
    assert archive.fp is not None
    position = archive.fp.tell()
    size = archive.fp.seek(0, io.SEEK_END)
    archive.fp.seek(position)
    return size


def exactly(file: Any, size: int) -> bytearray:
    """The next ``size`` bytes; EOFError if the file ends before."""
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        if not (count := file.readinto(view[done : done + 2**20])):
            raise EOFError(f"it ends after {done} of {size} bytes")
        done += count
    return data
