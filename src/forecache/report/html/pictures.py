"""The images of a run as PNGs: its files, and the uncached ones that `forecache sample --compare` keeps."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from forecache.errors import InputError, MissingExtraError
from forecache.io import files
from forecache.io.text import short
from forecache.report.html.data import Image, listed, mapping, number, text
from forecache.sampling import samples_file

MOST = 48
MAX_PNG = 8 * 2**20
MAX_ALL = 48 * 2**20
"""Bytes of one image, and of all in a report: a page of more is no use in a browser."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def images_of_run(folder: Path, found: dict[str, Any]) -> tuple[tuple[Image, ...], int]:
    """The images that a run.json names, and how many are left out. InputError names one that cannot be read."""
    entries = [mapping(each) for each in listed(found["images"])]
    beside = folder / "uncached.npz"
    kept: list[Image] = []
    total = 0
    uncached = _pngs(beside) if found.get("uncached") == beside.name else iter(())
    for entry in entries[:MOST]:
        png, other = _png(folder, entry.get("file")), next(uncached, None)
        total += len(png) + len(other or b"")
        if total > MAX_ALL:
            break
        name = text(entry.get("prompt")) or f"label {text(entry.get('label'))}"
        kept.append(Image(name, png, other, number(entry.get("psnr_db"))))
    return tuple(kept), len(entries) - len(kept)


def images_of_samples(path: Path) -> tuple[tuple[Image, ...], int]:
    """The first images of a samples.npz, none where there is no such file; the rest is left out without a count."""
    if not path.is_file():
        return (), 0
    return tuple(Image(f"sample {place}", png) for place, png in enumerate(islice(_pngs(path), MOST))), 0


def _png(folder: Path, name: Any) -> bytes:
    """A PNG beside run.json: no other folder's, and no other kind of file."""
    if not isinstance(name, str) or not name.endswith(".png") or Path(name).name != name or "\\" in name:
        raise InputError(f"The run.json in {folder} must name PNGs that stand beside it, not {short(name)}.")
    try:
        data = files.contents(folder / name, MAX_PNG)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / name}, which run.json names, cannot be read: {error}.") from error
    if not data.startswith(SIGNATURE):
        raise InputError(f"{folder / name} is no PNG.")
    return data


def _pngs(path: Path) -> Iterator[bytes]:
    """The images of a file of samples, each as a PNG."""
    try:
        from PIL import Image as Pillow
    except ImportError as error:
        raise MissingExtraError("pillow", "cli", "Showing images of an .npz") from error
    for part in samples_file.images(path):
        for pixels_HWC in part:
            if pixels_HWC.shape[-1] not in (1, 3):
                raise InputError(f"The images of {path} have {pixels_HWC.shape[-1]} channels, not 1 or 3.")
            flat = pixels_HWC.squeeze(-1) if pixels_HWC.shape[-1] == 1 else pixels_HWC
            out = io.BytesIO()
            Pillow.fromarray(np.ascontiguousarray(flat)).save(out, format="png")
            yield out.getvalue()
