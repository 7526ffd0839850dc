"""Sets of images to evaluate: a folder, an ``.npz`` of the ADM suite, or a tensor, read batch by batch.

Images are uint8 RGB, (B, 3, H, W), all of one size; grey ones are repeated. B images, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from forecache.errors import InputError, MissingExtraError
from forecache.io import files as files_module
from forecache.io import npz

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_IMAGE = 64 * 2**20
"""Bytes of one image in an ``.npz``: 4700 x 4700 pixels."""


class ImageSet(Protocol):
    """Images in a fixed order."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> tuple[int, ...] | None:
        """The class of every image, if the set has labels; else None."""
        ...

    def __len__(self) -> int: ...

    def which(self, index: int) -> str:
        """The name of an image in errors."""
        ...

    def batches(self, size: int) -> Iterator[Tensor]:
        """The images in order, ``size`` at a time; InputError names an image that cannot be used."""
        ...


@dataclass(frozen=True)
class Folder:
    """Every png, jpg, jpeg and webp below a folder, by path."""

    root: Path
    files: tuple[Path, ...]
    name: str

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The key of every image, by which it is paired with one of another folder: its path without suffix."""
        return tuple(path.relative_to(self.root).with_suffix("").as_posix() for path in self.files)

    @property
    def labels(self) -> tuple[int, ...] | None:
        record = run_record(self.root)
        try:
            by_file = {entry["file"]: int(entry["label"]) for entry in record["images"]}
            return tuple(by_file[path.relative_to(self.root).as_posix()] for path in self.files)
        except (KeyError, TypeError, ValueError):
            return None

    def __len__(self) -> int:
        return len(self.files)

    def which(self, index: int) -> str:
        return str(self.files[index])

    def batches(self, size: int) -> Iterator[Tensor]:
        first: tuple[int, ...] | None = None
        for start in range(0, len(self.files), size):
            images = []
            for path in self.files[start : start + size]:
                image = read_image(path)
                first = first or image.shape
                if image.shape != first:
                    raise InputError(
                        f"{path} has {_pixels(image.shape)} pixels, {self.files[0]} has {_pixels(first)}: the images "
                        "of a set must have one size."
                    )
                images.append(image)
            yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Npz:
    """``arr_0`` of an ``.npz``, uint8 (B, H, W, 3), (B, H, W, 1) or (B, H, W); ``arr_1`` are labels, where it is."""

    path: Path
    shape: tuple[int, ...]
    name: str

    @property
    def labels(self) -> tuple[int, ...] | None:
        with _reading(self.path), npz.opened(self.path) as archive:
            if "arr_1" not in npz.names(archive):
                return None
            with npz.member(archive, "arr_1") as (_, header):
                if header.shape != self.shape[:1] or header.dtype.kind not in "iu":
                    return None
            return tuple(map(int, npz.array(archive, "arr_1")))

    def __len__(self) -> int:
        return self.shape[0]

    def which(self, index: int) -> str:
        return f"image {index} of {self.path}"

    def batches(self, size: int) -> Iterator[Tensor]:
        size_of_image = math.prod(self.shape[1:])
        with (
            _reading(self.path),
            npz.opened(self.path) as archive,
            npz.member(archive, "arr_0") as (file, _),
        ):
            for start in range(0, len(self), size):
                count = min(size, len(self) - start)
                data = npz.exactly(file, count * size_of_image)
                pixels = np.frombuffer(data, np.uint8).reshape(count, *self.shape[1:])
                pixels = pixels if pixels.ndim == 4 else pixels[..., None]
                yield torch.from_numpy(pixels).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class Images:
    """A tensor: (B, 1 or 3, H, W), uint8 or float in [0, 1], which is rounded to 8 bits as a file would be."""

    pixels: Tensor
    name: str = "images"
    labels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[1] not in (1, 3) or not len(self.pixels):
            raise InputError(f"Images are (count, 1 or 3, height, width); {self.name} is {tuple(self.pixels.shape)}.")
        if self.pixels.dtype != torch.uint8 and not bool(((self.pixels >= 0) & (self.pixels <= 1)).all()):
            raise InputError(f"{self.name} has values that are NaN or not in [0, 1], the range of float images.")

    def __len__(self) -> int:
        return len(self.pixels)

    def which(self, index: int) -> str:
        return f"image {index} of {self.name}"

    def batches(self, size: int) -> Iterator[Tensor]:
        for part in self.pixels.split(size):
            whole = part if part.dtype == torch.uint8 else (part.float() * 255).round().to(torch.uint8)
            yield whole.expand(-1, 3, -1, -1)


def open_images(path: str | Path) -> ImageSet:
    """The images at a path: a folder (with folders in it), or an ``.npz`` with ``arr_0``.

    For a folder of `forecache sample --num-samples` they are those of its ``samples.npz``.
    """
    path = Path(path)
    if (path / "samples.npz").is_file():
        path = path / "samples.npz"
    if path.is_dir():
        images = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()]
        files = tuple(file for file in images if not any(part[0] == "." for part in file.relative_to(path).parts))
        if not files:
            raise InputError(f"There is no image ({', '.join(SUFFIXES)}) in {path}.")
        return Folder(path, files, str(path))
    if path.suffix == ".npz" and path.exists():
        return _open_npz(path)
    raise InputError(
        f"There is no folder of images at {path}, and no .npz file."
        if not path.exists()
        else f"{path} is neither a folder of images nor an .npz file."
    )


def npz_names(path: Path) -> set[str]:
    """The names of the arrays in an ``.npz``; InputError for another file."""
    try:
        with npz.opened(path) as archive:
            return npz.names(archive)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as .npz: {error}.") from error


def _open_npz(path: Path) -> Npz:
    names = npz_names(path)
    if "arr_0" not in names:
        holds = ", ".join(name if name.isidentifier() else files_module.short(name) for name in sorted(names)[:6])[:300]
        raise InputError(f"{path} has no images, which the ADM suite keeps as arr_0; it holds {holds}.")
    with _reading(path), npz.opened(path) as archive, npz.member(archive, "arr_0") as (_, header):
        shape, fortran, dtype = header
    channels = shape[3] if len(shape) == 4 else 1
    if dtype != np.uint8 or fortran or len(shape) not in (3, 4) or channels not in (1, 3) or 0 in shape:
        raise InputError(
            f"arr_0 of {path} is {dtype} {shape}; images are uint8 from 0 to 255, (count, height, width, 3 or 1) or "
            "(count, height, width)."
        )
    if math.prod(shape[1:]) > MAX_IMAGE:
        raise InputError(f"The images of {path} are {shape[1:]}; one has at most {MAX_IMAGE} bytes.")
    return Npz(path, shape, str(path))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}.") from error


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 (H, W, 3)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "eval", "Reading images") from error
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{path} has more than 8 bits a channel (mode {image.mode}): convert it first.")
            if "A" in image.getbands() and np.asarray(image.getchannel("A")).min() < 255:
                raise InputError(f"{path} has transparent pixels: put it on a background first.")
            return np.asarray(image.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # decoders raise all kinds of exceptions
        raise InputError(f"{path} cannot be read as an image: {error}.") from error


def run_record(folder: Path) -> Any:
    """The ``run.json`` of `forecache sample` in a folder of images; None if there is none, or it cannot be read."""
    try:
        return files_module.document(folder / "run.json", 16 * 2**20)
    except (OSError, ValueError):
        return None


def paired(samples: ImageSet, reference: ImageSet) -> ImageSet:
    """The reference, reordered so that the partner of every sample has the same index.

    In two folders partners have the same path without suffix; otherwise they have the same index already. Raises
    InputError with the name of an image without a partner.
    """
    if not (isinstance(samples, Folder) and isinstance(reference, Folder)):
        if len(samples) != len(reference):
            raise InputError(
                f"{samples.name} has {len(samples)} images, {reference.name} has {len(reference)}: they are compared "
                "pair by pair, in order."
            )
        return reference
    by_key = dict(zip(reference.keys, reference.files, strict=True))
    for one, other in ((samples, reference), (reference, samples)):
        if len(set(one.keys)) < len(one):
            twice = next(path for key, path in zip(one.keys, one.files, strict=True) if one.keys.count(key) > 1)
            raise InputError(f"{twice} exists with another suffix as well: images are paired by name without suffix.")
        there = set(other.keys)
        if alone := [path for key, path in zip(one.keys, one.files, strict=True) if key not in there]:
            raise InputError(
                f"{alone[0]} has no partner of its name in {other.name} ({len(alone)} of {len(one)} have none): "
                "images are compared pair by pair."
            )
    return replace(reference, files=tuple(by_key[key] for key in samples.keys))


def _pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"
