"""The picture of a comparison of methods: a row for every prompt and seed, a column for every method."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forecache.evaluate.imagesets import read_image
from forecache.report.figures import pyplot, save_figure
from forecache.sampling import videos

GAIN = 8
"""Factor by which differences of images are amplified so that they can be seen."""
MAX_ROWS = 12
"""Most prompts and seeds in the picture; the report has more."""
CELL = 1.5
"""Width of an image in inches."""


def draw(document: Mapping[str, Any], folder: Path, path: Path) -> None:
    """Draw the images of `bench.comparison.result`, and under each its difference to the one without a cache.

    Of a video the frame in the middle is drawn.
    """
    plt = pyplot()
    columns = document["columns"]
    rows = min(MAX_ROWS, len(columns[0]["images"]))
    first = [pixels_of(folder, columns[0], row) for row in range(rows)]
    height = CELL * first[0].shape[0] / first[0].shape[1]
    size = (CELL * len(columns) + 1.4, rows * (2 * height + 0.1) + 0.9)
    heights = [1, 1] * rows
    figure, axes = plt.subplots(
        2 * rows, len(columns), figsize=size, squeeze=False, layout="constrained", height_ratios=heights
    )
    for place, column in enumerate(columns):
        axes[0][place].set_title(_title(column), fontsize=7)
        for row in range(rows):
            image = pixels_of(folder, column, row)
            _show(axes[2 * row][place], image)
            _show(axes[2 * row + 1][place], amplified(image, first[row]) if place else None)
    for row, entry in enumerate(columns[0]["images"][:rows]):
        kind = "" if isinstance(entry["condition"], str) else "class "
        words = textwrap.shorten(f"{kind}{entry['condition']}", 60, placeholder=" ...")
        label = "\n".join(textwrap.wrap(f"{words}, seed {entry['seed']}", 18))
        axes[2 * row][0].set_ylabel(label, fontsize=6, rotation=0, ha="right", va="center")
    left_out = len(columns[0]["images"]) - rows
    cut = f"; {left_out} more rows are in the report" if left_out else ""
    figure.supxlabel(f"lower rows: difference to no cache, times {GAIN}{cut}", fontsize=7)
    save_figure(figure, path, dpi=130)
    plt.close(figure)


def pixels_of(folder: Path, column: Mapping[str, Any], row: int, frame: int | None = None) -> np.ndarray[Any, Any]:
    """An image of a column, (H, W, 3) uint8, by its row.

    frame: of a video; None is the one in the middle
    """
    path = folder / "columns" / column["images"][row]["file"]
    if column["frames"]:
        path = path / videos.frame_name(column["frames"] // 2 if frame is None else frame)
    return read_image(path)


def amplified(image: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The absolute difference of two images, times `GAIN`, clipped: 0 where they are equal."""
    difference = np.abs(image.astype(np.int16) - reference.astype(np.int16))
    return np.minimum(difference * GAIN, 255).astype(np.uint8)


def _show(axis: Any, image: np.ndarray[Any, Any] | None) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    if image is not None:
        axis.imshow(image, interpolation="nearest" if max(image.shape[:2]) < 128 else None)


def _title(column: Mapping[str, Any]) -> str:
    name = "\n".join(textwrap.wrap(column["name"], 26, break_long_words=False))
    ratio, quality, macs = column["time_ratio"], column["quality"], column["cost"].get("macs_ratio")
    facts = [f"{macs:.2f}x fewer MACs"] if macs else []
    facts += [f"{ratio['median']:.2f}x as fast"] if ratio else []
    facts += [f"{quality['psnr']['mean']:.1f} dB"] if "psnr" in quality else []
    return "\n".join([name, *facts])
