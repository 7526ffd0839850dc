"""Videos as files: every frame as a PNG, and one file to look at: an MP4, or a GIF where no encoder is installed.

F frames, C channels, H height, W width.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forecache.errors import MissingExtraError
from forecache.io.files import replacing

FPS = 16
"""Frames a second of the file to look at."""
SUFFIXES = (".mp4", ".gif")


def names(stem: str) -> tuple[str, ...]:
    """The names that the file to look at may have."""
    return tuple(stem + suffix for suffix in SUFFIXES)


def save(video: Tensor, folder: Path, stem: str) -> dict[str, Any]:
    """Write a video (F, C, H, W) in [0, 1] as ``stem/000.png``, ... and ``stem.mp4`` or ``stem.gif``.

    Returns its entry of run.json: the file, and the number of frames.
    """
    frames = frames_of(video)
    (folder / stem).mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        with replacing(folder / stem / frame_name(number), durable=False) as file:
            file.write(png_of(frame))
    suffix = ".mp4" if _can_encode() else ".gif"
    with replacing(folder / f"{stem}{suffix}", durable=False) as file:
        file.write(_mp4(frames) if suffix == ".mp4" else _gif(frames))
    return {"file": f"{stem}{suffix}", "frames": len(frames)}


def frame_name(number: int) -> str:
    """The file name of a frame."""
    return f"{number:03d}.png"


def remove(folder: Path, stem: str, entry: Mapping[str, Any]) -> None:
    """Delete what `save` wrote, by its entry of run.json."""
    for name in names(stem):
        (folder / name).unlink(missing_ok=True)
    for number in range(int(entry["frames"])):
        (folder / stem / frame_name(number)).unlink(missing_ok=True)
    if (folder / stem).is_dir() and not any((folder / stem).iterdir()):
        (folder / stem).rmdir()


def frames_of(video: Tensor) -> list[np.ndarray[Any, Any]]:
    """The frames of a video (F, C, H, W) in [0, 1] as uint8 arrays, (H, W, 3), or (H, W) for one channel."""
    pixels = (video * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [np.ascontiguousarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame) for frame in pixels]


def png_of(pixels: np.ndarray[Any, Any]) -> bytes:
    """Pixels (H, W) or (H, W, 3), uint8, as a PNG."""
    buffer = io.BytesIO()
    _pillow().fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "cli", "Writing images") from error
    return Image


def _can_encode() -> bool:
    """Whether imageio and one of its encoders are installed."""
    return find_spec("imageio") is not None and any(map(find_spec, ("imageio_ffmpeg", "av")))


def _mp4(frames: list[np.ndarray[Any, Any]]) -> bytes:
    import imageio.v3 as imageio  # pyright: ignore[reportMissingImports]

    write: Any = imageio.imwrite
    coloured = np.stack([frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, 2) for frame in frames])
    height, width = (size - size % 2 for size in coloured.shape[1:3])  # the encoder takes even sizes
    plugin = "pyav" if find_spec("av") else "FFMPEG"
    codec = {"codec": "libx264"} if plugin == "pyav" else {"macro_block_size": 2}
    return write("<bytes>", coloured[:, :height, :width], extension=".mp4", plugin=plugin, fps=FPS, **codec)


def _gif(frames: list[np.ndarray[Any, Any]]) -> bytes:
    pictures = [_pillow().fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, format="gif", save_all=True, append_images=pictures[1:], duration=round(1000 / FPS), loop=0
    )
    return buffer.getvalue()
