"""Videos in a report: the frames of each as one picture, of which a window shows one; a player moves all windows."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forecache.report.html.markup import Html, tag
from forecache.sampling import videos

MAX_FRAMES = 48
MAX_SIDE = 320
"""Most frames of a video in a report, and most pixels of a side; the files hold all of them."""


@dataclass(frozen=True)
class Sheet:
    """Pictures of one size in one file: one image, or the frames of a video in rows.

    data: of the file
    kind: its media type
    frames: number of pictures
    columns: pictures in a row
    size: width and height of a picture, in pixels
    """

    data: bytes
    kind: str
    frames: int = 1
    columns: int = 1
    size: tuple[int, int] = (1, 1)

    def element(self, description: str, css_class: str) -> Html:
        """The picture as an element; that of a video in a window of one frame."""
        source = f"data:{self.kind};base64,{base64.b64encode(self.data).decode()}"
        image = tag("img", src=source, alt=description, class_=css_class if self.frames == 1 else "frames")
        if self.frames == 1:
            return image
        rows = math.ceil(self.frames / self.columns)
        style = f"--columns:{self.columns};--rows:{rows};aspect-ratio:{self.size[0]}/{self.size[1]}"
        return tag("div", image, class_=f"film {css_class}".strip(), style=style, data_columns=self.columns)


def chosen_frames(count: int) -> list[int]:
    """The frames of a video that a report shows: all, or evenly spaced ones with the first and the last."""
    if count <= MAX_FRAMES:
        return list(range(count))
    return [round(place * (count - 1) / (MAX_FRAMES - 1)) for place in range(MAX_FRAMES)]


def sheet(pictures: Sequence[np.ndarray[Any, Any]], max_side: int = MAX_SIDE) -> Sheet:
    """Pictures (H, W, 3) or (H, W), uint8, of one size as one file.

    A picture that is larger than ``max_side`` is made smaller, and written as JPEG; a smaller one is a PNG, pixel by
    pixel.
    """
    small = [_fitted(picture, max_side) for picture in pictures]
    columns = math.ceil(math.sqrt(len(small)))
    rows = math.ceil(len(small) / columns)
    height, width = small[0].shape[:2]
    canvas = np.zeros((rows * height, columns * width, *small[0].shape[2:]), np.uint8)
    for place, picture in enumerate(small):
        row, column = divmod(place, columns)
        canvas[row * height : (row + 1) * height, column * width : (column + 1) * width] = picture
    if max(pictures[0].shape[:2]) <= 128:
        return Sheet(videos.png_of(canvas), "image/png", len(small), columns, (width, height))
    buffer = io.BytesIO()
    _pillow().fromarray(canvas).save(buffer, format="jpeg", quality=90, subsampling=0)
    return Sheet(buffer.getvalue(), "image/jpeg", len(small), columns, (width, height))


def player(frames: int) -> Html:
    """The controls that play all videos of a page together: a button and a slider over the frames."""
    button = tag("button", "▶", type="button", class_="play", aria_label="Play or pause all videos")
    slider = tag("input", type="range", min=0, max=frames - 1, value=0, aria_label="Frame", class_="frame")
    return tag(
        "div", button, slider, tag("output", f"1 of {frames}", class_="at"), class_="player", data_fps=videos.FPS
    )


def _fitted(picture: np.ndarray[Any, Any], max_side: int) -> np.ndarray[Any, Any]:
    height, width = picture.shape[:2]
    share = max_side / max(height, width)
    if share >= 1:
        return picture
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return np.asarray(_pillow().fromarray(picture).resize(size, resample=_pillow().Resampling.LANCZOS))


def _pillow() -> Any:
    from PIL import Image

    return Image
