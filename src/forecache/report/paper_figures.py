"""Pictures of the papers' figures, from the data of `forecache.reproduce.figures`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forecache.report.figures import pyplot, save_figure
from forecache.reproduce.figures import PaperFigure

Points = Mapping[str, Any]


def draw(figure: PaperFigure, document: Mapping[str, Any], path: Path) -> None:
    """Draw a figure into a file."""
    plt = pyplot()
    canvas = DRAWERS[figure.name](plt, document["points"])
    canvas.suptitle(f"{figure.title}\n{document['settings']['on']}, after {figure.source}", fontsize=10)
    save_figure(canvas, path, dpi=110)
    plt.close(canvas)


def _trajectories(plt: Any, points: Points) -> Any:
    """A panel a site: tokens at three steps with fitted parabolas, and the means of the estimates."""
    canvas, panels = plt.subplots(1, len(points), figsize=(6.4 * len(points), 5), squeeze=False, layout="constrained")
    for axis, (kind, point) in zip(panels[0], points.items(), strict=True):
        for colour, (name, places) in zip(
            ("tab:blue", "tab:orange", "tab:green"), point["outputs"].items(), strict=True
        ):
            x, y = np.array(places).T
            axis.scatter(x, y, s=10, color=colour, alpha=0.5, label=name)
            line = np.linspace(x.min(), x.max(), 50)
            axis.plot(line, np.polyval(np.polyfit(x, y, 2), line), color=colour, linewidth=1)
        for marker, (name, places) in zip("xP*", point["estimates"].items(), strict=True):
            x, y = np.array(places).T
            error = point["errors"][name]
            axis.scatter(
                x, y, s=12, marker=marker, color="black", alpha=0.35, linewidths=0.7, label=f"{name}: {error:.3f}"
            )
        axis.set_title(f"{kind}, {point['site']}, t = {point['step']}", fontsize=9)
        axis.set_xlabel("first principal component")
        axis.set_ylabel("second")
        axis.legend(fontsize=8, title="and estimates of t+1: relative error", title_fontsize=8)
    return canvas


def _steps(plt: Any, points: Points) -> Any:
    """PSNR against the step: GC at this step alone, up to it, and at all others; dotted is FORA."""
    canvas, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    lines = {
        "at ": ("o--", "GC at step k alone"),
        "up to ": ("s-", "GC up to step k"),
        "without ": ("^:", "GC at all steps but k (ours)"),
    }
    for prefix, (style, label) in lines.items():
        places = [
            (int(key.removeprefix(prefix)), point["psnr"]) for key, point in points.items() if key.startswith(prefix)
        ]
        axis.plot(*zip(*places, strict=True), style, label=label)
    axis.axhline(points["none"]["psnr"], color="gray", linestyle=":", label="FORA, no GC")
    axis.set_xlabel("k")
    axis.set_ylabel("PSNR to the uncached images, dB")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return canvas


def _side_by_side(plt: Any, points: Points) -> Any:
    """A row a plan, a column a sample."""
    count = len(points["no cache"]["images"])
    size = (1.2 * count + 1.6, 1.25 * len(points) + 0.6)
    canvas, panels = plt.subplots(len(points), count, figsize=size, squeeze=False, layout="constrained")
    for row, (name, point) in zip(panels, points.items(), strict=True):
        for number, (axis, image) in enumerate(zip(row, point["images"], strict=True)):
            pixels = np.array(image, np.uint8)
            axis.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
            axis.set_xticks([])
            axis.set_yticks([])
            if "psnr" in point:
                axis.set_xlabel(f"{point['psnr'][number]:.1f} dB", fontsize=6)
        row[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    return canvas


def _changes(plt: Any, points: Points) -> Any:
    """Sites against steps; the colour is the relative change from the step before."""
    point = points["changes"]
    table = np.array(point["changes"])
    canvas, axis = plt.subplots(figsize=(7, 0.12 * len(table) + 1.8), layout="constrained")
    shown = axis.imshow(
        table,
        aspect="auto",
        cmap="magma",
        vmax=float(np.quantile(table, 0.98)),
        extent=(0.5, table.shape[1] + 0.5, len(table), 0),
    )
    canvas.colorbar(shown, label="relative L1 change")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("step")
    axis.set_ylabel("site, in order")
    return canvas


def _propagation(plt: Any, points: Points) -> Any:
    """Groups of blocks against steps; the colour is the relative distance of the images."""
    keys = [key.split("/") for key in points]
    steps, depths = sorted({int(step) for step, _ in keys}), list(dict.fromkeys(blocks for _, blocks in keys))
    table = np.array([[points[f"{step}/{blocks}"]["distance"] for step in steps] for blocks in depths])
    canvas, axis = plt.subplots(figsize=(7, 0.4 * len(depths) + 1.8), layout="constrained")
    shown = axis.imshow(table, aspect="auto", cmap="magma")
    canvas.colorbar(shown, label="relative L2 distance of the images")
    axis.set_xticks(range(len(steps)), steps)
    axis.set_yticks(range(len(depths)), depths)
    axis.set_xlabel("step of the estimate")
    axis.set_ylabel("blocks that are reused")
    return canvas


DRAWERS: Mapping[str, Callable[[Any, Points], Any]] = {
    "goc-figure-1": _trajectories,
    "goc-figure-3": _steps,
    "goc-figure-4": _side_by_side,
    "goc-figure-5": _side_by_side,
    "procache-changes": _changes,
    "procache-errors": _propagation,
}
