"""Arrays in an ``.npz``, as data: what an array claims to be is held against the archive before memory is given to it.

ValueError and OSError say what is wrong; whoever knows what the file was meant to be adds its name.
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
"""Bytes of an archive's table of contents; an ``.npz`` has a few hundred."""
SPARE = 64 * 2**20
"""What an array read whole may take beyond four times its file: a covariance of 2048 features that compresses well."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The ways in which numpy packs. Those of others unpack without a bound."""


class Header(NamedTuple):
    """What an array says of itself, and how many bytes it has."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _Bounded(io.BufferedReader):
    """A file from which no single read takes more than ``most`` bytes; None for any number."""

    most: int | None = MAX_TABLE

    def read(self, size: int | None = -1, /) -> bytes:
        if self.most is not None:
            left = os.fstat(self.fileno()).st_size - self.tell()
            size = left if size is None or size < 0 else size
            if size > self.most:
                raise ValueError(f"its table of contents claims {size} bytes")
            size = min(size, left)
        return super().read(size)


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; ValueError for whatever a damaged one makes zipfile, zlib or numpy raise inside the block."""
    with files.opened(path) as raw:
        file = _Bounded(io.FileIO(raw.fileno(), closefd=False))
        try:
            with zipfile.ZipFile(file) as archive:
                file.most = None
                yield archive
        except (OSError, ValueError):
            raise
        except Exception as error:  # BadZipFile, zlib.error, struct.error, RuntimeError of an encrypted one, ...
            raise ValueError(str(error)[:200] or type(error).__name__) from error


def names(archive: zipfile.ZipFile) -> set[str]:
    """The names of its arrays; ValueError if one stands twice."""
    found = [name.removesuffix(".npy") for name in archive.namelist()]
    if len(set(found)) != len(found):
        raise ValueError("a name stands in it twice")
    return set(found)


@contextmanager
def member(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[Any, Header]]:
    """An array, open behind its header, of which ValueError says what is wrong: of objects, or of another length."""
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
    """A whole array. ValueError if it claims more than four times the file and 64 MiB: nothing is unpacked then."""
    size = _length(archive)
    with member(archive, name) as (file, header):
        if header.nbytes > 4 * size + SPARE:
            raise ValueError(f"{name} unpacks to {header.nbytes} bytes, from a file of {size}")
        values = np.frombuffer(exactly(file, header.nbytes), header.dtype)
        return values.reshape(header.shape, order="F" if header.fortran else "C")


def _length(archive: zipfile.ZipFile) -> int:
    assert archive.fp is not None
    place = archive.fp.tell()
    size = archive.fp.seek(0, io.SEEK_END)
    archive.fp.seek(place)
    return size


def exactly(file: Any, size: int) -> bytearray:
    """The next ``size`` bytes, in one piece; EOFError where the file ends before."""
    found = bytearray(size)
    view, done = memoryview(found), 0
    while done < size:
        if not (count := file.readinto(view[done : done + 2**20])):
            raise EOFError(f"it ends after {done} of {size} bytes")
        done += count
    return found
