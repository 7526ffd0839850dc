"""The images of a run as PNGs, and the uncached ones that `forecache sample --compare` writes."""

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
from forecache.report.html.films import Sheet, chosen_frames, sheet
from forecache.sampling import samples_file, videos

MAX_IMAGES = 48
MAX_FRAMES = 10_000
MAX_PNG = 8 * 2**20
MAX_TOTAL = 48 * 2**20
"""Most bytes of one image, and of all images of a report: browsers struggle with larger pages."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def images_of_run(folder: Path, record: dict[str, Any]) -> tuple[tuple[Image, ...], int]:
    """The images of a run.json, and the number of images left out. Raises InputError for one that cannot be read."""
    entries = [mapping(each) for each in listed(record["images"])]
    pairs = folder / "uncached.npz"
    images: list[Image] = []
    total = 0
    uncached = _pngs(pairs) if record.get("uncached") == pairs.name else iter(())
    for entry in entries[:MAX_IMAGES]:
        if "frames" in entry:
            image = _video(folder, entry, uncached)
            total += sum(len(film.data) for film in (image.film, image.uncached_film) if film is not None)
            if total > MAX_TOTAL:
                break
            images.append(image)
            continue
        png, uncached_png = _png(folder, entry.get("file")), next(uncached, None)
        total += len(png) + len(uncached_png or b"")
        if total > MAX_TOTAL:
            break
        name = text(entry.get("prompt")) or f"label {text(entry.get('label'))}"
        images.append(Image(name, png, uncached_png, number(entry.get("psnr")), number(entry.get("ssim"))))
    return tuple(images), len(entries) - len(images)


def images_of_samples(path: Path) -> tuple[tuple[Image, ...], int]:
    """The first images of a samples.npz, none if there is no such file; the others are not counted."""
    if not path.is_file():
        return (), 0
    return tuple(Image(f"sample {index}", png) for index, png in enumerate(islice(_pngs(path), MAX_IMAGES))), 0


def _video(folder: Path, entry: dict[str, Any], uncached: Iterator[bytes]) -> Image:
    """A video of a run.json by its frames, which lie in a folder beside its file, and the same one without a cache."""
    file, count = entry.get("file"), entry.get("frames")
    stem = Path(file).stem if isinstance(file, str) else ""
    if (
        file not in videos.names(stem)
        or Path(str(file)).name != file
        or type(count) is not int
        or not 0 < count < 10**4
    ):
        raise InputError(f"The run.json in {folder} must name videos in its own folder, not {short(file)}.")
    frames = [_png(folder / stem, videos.frame_name(number)) for number in range(count)]
    bare = list(islice(uncached, count))
    shown = chosen_frames(count)
    films = [_sheet([pngs[number] for number in shown]) if len(pngs) == count else None for pngs in (frames, bare)]
    name = text(entry.get("prompt")) or f"label {text(entry.get('label'))}"
    return Image(name, b"", None, number(entry.get("psnr")), number(entry.get("ssim")), *films)


def _sheet(pngs: list[bytes]) -> Sheet:
    from PIL import Image as Pillow

    return sheet([np.asarray(Pillow.open(io.BytesIO(png)).convert("RGB")) for png in pngs])


def _png(folder: Path, name: Any) -> bytes:
    """A PNG in the folder of run.json; files of other folders and of other kinds are refused."""
    if not isinstance(name, str) or not name.endswith(".png") or Path(name).name != name or "\\" in name:
        raise InputError(f"The run.json in {folder} must name PNGs in its own folder, not {short(name)}.")
    try:
        data = files.contents(folder / name, MAX_PNG)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / name}, which run.json names, cannot be read: {error}.") from error
    if not data.startswith(SIGNATURE):
        raise InputError(f"{folder / name} is not a PNG.")
    return data


def _pngs(path: Path) -> Iterator[bytes]:
    """The images of an .npz of samples, each as a PNG."""
    try:
        from PIL import Image as Pillow
    except ImportError as error:
        raise MissingExtraError("pillow", "cli", "Showing images of an .npz") from error
    for part in samples_file.images(path):
        for pixels_HWC in part:
            if pixels_HWC.shape[-1] not in (1, 3):
                raise InputError(f"The images of {path} have {pixels_HWC.shape[-1]} channels, not 1 or 3.")
            pixels = pixels_HWC.squeeze(-1) if pixels_HWC.shape[-1] == 1 else pixels_HWC
            buffer = io.BytesIO()
            Pillow.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="png")
            yield buffer.getvalue()
