"""Samples as ADM's evaluation suite reads them: an ``.npz`` of ``arr_0`` (N, H, W, C) uint8 and ``arr_1``, the labels.

Files are written and read in parts, so that 50,000 images of 256 x 256 do not need 10 GB of memory. The same samples
give the same bytes.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forecache.errors import InputError, MissingExtraError, ShardError
from forecache.io import npz
from forecache.io.document import refusing
from forecache.io.files import replacing

CHUNK = 64 * 2**20
Images = np.ndarray[Any, np.dtype[np.uint8]]


def labels_of(conditions: Sequence[Any]) -> np.ndarray[Any, Any]:
    """One entry a sample: class numbers as int64, texts as fixed-width unicode; InputError for anything else."""
    if all(isinstance(condition, int) for condition in conditions):
        return np.asarray(conditions, dtype=np.int64)
    if all(isinstance(condition, str) for condition in conditions):
        return np.asarray(conditions, dtype=np.str_)
    odd = next((value for value in conditions if not isinstance(value, int | str)), conditions[0])
    raise InputError(f"The conditions of a file are all class numbers or all texts; {odd!r} does not fit.")


def write(path: Path, count: int, parts: Iterable[Images], labels: np.ndarray[Any, Any]) -> None:
    """Write ``count`` images, given in parts (n, H, W, C), atomically."""
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with _member(archive, "arr_0.npy") as member:
            shape: tuple[int, ...] = ()
            for part in parts:
                if not shape:
                    shape = part.shape[1:]
                    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
                    np.lib.format.write_array_header_1_0(member, header)
                if part.shape[1:] != shape:
                    raise InputError(f"Samples of one file have one size; {shape} and {part.shape[1:]} were made.")
                member.write(np.ascontiguousarray(part).data)
        with _member(archive, "arr_1.npy") as member:
            np.lib.format.write_array(member, labels, allow_pickle=False)


def _member(archive: zipfile.ZipFile, name: str) -> Any:
    """A file in the archive, with a fixed date: the same samples give the same bytes."""
    return archive.open(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), "w", force_zip64=True)


def images(path: Path) -> Iterator[Images]:
    """The images of a file in parts (n, H, W, C)."""
    with (
        refusing(path, ShardError, "file of samples", "Delete it, and it is written again"),
        npz.opened(path) as archive,
        npz.member(archive, "arr_0") as (member, header),
    ):
        shape, dtype = header.shape, header.dtype
        if len(shape) != 4 or dtype != np.uint8 or header.fortran or not 0 < math.prod(shape[1:]) <= CHUNK:
            raise ValueError(f"arr_0 is {dtype} {shape}, which are not images")
        size = math.prod(shape[1:])
        step = CHUNK // size
        for first in range(0, shape[0], step):
            here = min(step, shape[0] - first)
            yield np.frombuffer(npz.exactly(member, here * size), np.uint8).reshape(here, *shape[1:])


def write_pngs(path: Path, folder: Path, on_image: Callable[[int], None]) -> None:
    """Write the images of a file as ``000000.png``, ...; existing files are kept.

    on_image: called with the number of images done, after each
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "eval", "Writing PNGs") from error
    number = 0
    for part in images(path):
        for pixels_HWC in part:
            target = folder / f"{number:06d}.png"
            if not target.exists():
                _save_png(Image, pixels_HWC, target)
            number += 1
            on_image(number)


def _save_png(image: Any, pixels_HWC: Images, target: Path) -> None:
    flat = pixels_HWC.squeeze(-1) if pixels_HWC.shape[-1] == 1 else pixels_HWC
    with replacing(target, durable=False) as file:  # it can be made again from the .npz
        image.fromarray(flat).save(file, format="png")
