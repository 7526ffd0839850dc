"""Figures of results, drawn with matplotlib: image grids, quality against cost, time against MACs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from forecache.bench.demo import Row
from forecache.bench.speed import KINDS, PlanSpeed
from forecache.errors import MissingExtraError
from forecache.evaluate.estimates import Z
from forecache.evaluate.metrics import METRICS
from forecache.fit.search import SearchResult
from forecache.io.files import replacing
from forecache.parts.gates import god
from forecache.parts.grid import Grid
from forecache.parts.statistics import Statistics
from forecache.reproduce.result import Reproduction


def pyplot() -> Any:
    """matplotlib.pyplot, set up to draw into files. Raises MissingExtraError if matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError("matplotlib", "cli", "Drawing a picture") from error
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure: Any, path: Path, dpi: int) -> None:
    """Write a matplotlib figure, in the format that the path ends in, by the rules of `files.replacing`."""
    with replacing(path, durable=False) as file:
        figure.savefig(file, format=path.suffix[1:] or "png", dpi=dpi)


def tile(images: Tensor, columns: int | None = None) -> np.ndarray:
    """Images (B, C, H, W) in [0, 1] tiled row by row into one picture (rows * H, columns * W, C).

    columns: images in a row. None: as many as make the grid square.
    """
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = np.zeros((rows * columns, channels, height, width), np.float32)
    canvas[:count] = images.numpy()
    return (
        canvas.reshape(rows, columns, channels, height, width)
        .transpose(0, 3, 1, 4, 2)
        .reshape(rows * height, columns * width, channels)
    )


def draw_grids(rows: Sequence[Row], path: Path, max_images: int = 64, gain: float = 8.0) -> None:
    """The same samples under every plan, side by side in a picture that fits a screen, with cost and PSNR as titles.

    Below each grid is its difference to the first row's, amplified by ``gain``.
    """
    plt = pyplot()
    figure, axes = plt.subplots(1, len(rows), figsize=(2.15 * len(rows), 5.3), squeeze=False, layout="constrained")
    for axis, row in zip(axes.flat, rows, strict=True):
        images = row.images[:max_images]
        difference = (images - rows[0].images[:max_images]).abs().mul(gain).clamp(max=1)
        upper, lower = tile(images), tile(difference)
        picture = np.concatenate([upper, np.ones_like(upper[:6]), lower])
        axis.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
        axis.axis("off")
        if row.cost is None:
            axis.set_title(f"{row.name}\nevery step computed\nbelow: difference to it, x {gain:g}", fontsize=8)
        else:
            cost = f"{row.cost.speedup:.2f}x fewer MACs\n{row.speedup:.2f}x less time"
            axis.set_title(f"{row.name}\n{cost}, {row.psnr:.1f} dB", fontsize=8)
    save_figure(figure, path, dpi=100)
    plt.close(figure)


def draw_quality(rows: Sequence[Row], path: Path, title: str = "") -> None:
    """PSNR to the uncached samples against MACs; higher and further left is better."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    points = [(100 / row.cost.speedup, row) for row in rows if row.cost is not None and math.isfinite(row.psnr)]
    families = dict.fromkeys(row.name.split()[0] for _, row in points)
    for family, marker in zip(families, "osD^vP*X", strict=False):
        members = [(x, row.psnr) for x, row in points if row.name.split()[0] == family]
        axis.scatter(*zip(*members, strict=True), marker=marker, s=48, label=family, zorder=3)
    values = [row.psnr for _, row in points]
    gap = 0.045 * (max(values) - min(values) or 1.0)  # keeps labels from overlapping
    height = -math.inf
    for x, row in sorted(points, key=lambda point: point[1].psnr):
        height = max(row.psnr, height + gap)
        axis.annotate(row.name, (x, row.psnr), (x + 1.0, height), fontsize=8, va="center")
    axis.set_xlabel("MACs, % of the uncached run")
    axis.set_ylabel("PSNR to the uncached samples, dB")
    axis.margins(x=0.1, y=0.1)
    axis.set_xlim(right=100)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    axis.set_title(title, fontsize=10)
    save_figure(figure, path, dpi=130)
    plt.close(figure)


def draw_speed(rows: Sequence[PlanSpeed], path: Path, title: str = "") -> None:
    """Time against MACs, with the line of full realisation, and the time of each kind of step."""
    plt = pyplot()
    plans = [row for row in rows if row.cost is not None]
    size = (11.0, max(3.6, 0.45 * len(plans) + 1.6))
    figure, (left, right) = plt.subplots(1, 2, figsize=size, layout="constrained")
    pairs = [(row.cost.speedup, row.time_ratio) for row in plans if row.cost is not None]
    edge = 1.05 * max(max(macs, spread.high) for macs, spread in pairs)
    left.plot([1, edge], [1, edge], "--", color="gray", linewidth=0.8, label="time falls as MACs do")
    for number, (row, (macs, spread)) in enumerate(zip(plans, pairs, strict=True)):
        error = [[spread.median - spread.low], [spread.high - spread.median]]
        marker = "osD^vP*X"[number % 8]
        left.errorbar(macs, spread.median, yerr=error, fmt=marker, capsize=2, label=row.name)
    left.set_xlabel("fewer MACs")
    left.set_ylabel("less time, median and quartiles")
    left.legend(frameon=False, fontsize=8)
    height = 0.8 / len(KINDS)
    for position, (kind, colour) in enumerate(zip(KINDS, ("tab:gray", "tab:green", "tab:orange"), strict=True)):
        of_kind = [(index, row.step_ratios[kind].median) for index, row in enumerate(plans) if kind in row.steps]
        if not of_kind:
            continue
        lines = [index + (position - 1) * height for index, _ in of_kind]
        bars = right.barh(lines, [100 * share for _, share in of_kind], height, color=colour, label=kind)
        right.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    right.set_yticks(range(len(plans)), [row.name for row in plans])
    right.invert_yaxis()
    right.set_xlabel("time of a step, % of the bare model's")
    right.legend(
        frameon=False, fontsize=8, ncols=len(KINDS), loc="lower right", bbox_to_anchor=(1.0, 1.0)
    )  # above the bars
    right.margins(x=0.12)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path, dpi=110)
    plt.close(figure)


def draw_pareto(points: Mapping[str, tuple[float, float, float]], path: Path, title: str = "") -> None:
    """Quality against measured speed, for (speed-up, PSNR, Fréchet distance) by name.

    Names of one family share their first word, colour and marker: ``ours: GOC`` belongs to the family ``ours``. Points
    are numbered, with their names beside the charts. A line joins each family's Pareto front.
    """
    plt = pyplot()
    figure, (*panels, names) = plt.subplots(1, 3, figsize=(15.0, 6.5), layout="constrained", width_ratios=(6, 6, 3))
    families = dict.fromkeys(name.split()[0] for name in points)
    numbers = {name: number for number, name in enumerate(points, 1)}
    colours: dict[str, Any] = {}
    for panel, (axis, metric, sign) in enumerate(
        zip(panels, ("PSNR to the uncached samples, dB", "Fréchet distance, lower is better"), (1, -1), strict=True)
    ):
        for family, marker in zip(families, "osD^vP*X", strict=False):
            members = [
                (point[0], point[1 + panel], name) for name, point in points.items() if name.split()[0] == family
            ]
            (marks,) = axis.plot(
                *zip(*[member[:2] for member in members], strict=True), marker, label=family.rstrip(":")
            )
            front = [a for a in members if not any(b[0] > a[0] and sign * b[1] > sign * a[1] for b in members)]
            axis.plot(*zip(*sorted(member[:2] for member in front), strict=True), color=marks.get_color(), alpha=0.4)
            for x, y, name in members:
                axis.annotate(str(numbers[name]), (x, y), (4, 3), textcoords="offset points", fontsize=8)
                colours[name] = marks.get_color()
        axis.set_xlabel("speed-up over no cache, measured; lines: Pareto front of a library")
        axis.set_ylabel(metric)
        axis.grid(alpha=0.3)
    if all(frechet > 0 for *_, frechet in points.values()):
        panels[1].set_yscale("log")
    panels[0].legend(frameon=False)
    names.axis("off")
    for line, (name, number) in enumerate(numbers.items()):
        names.text(0, 1 - line / max(20, len(numbers)), f"{number}  {name}", color=colours[name], fontsize=8, va="top")
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path, dpi=110)
    plt.close(figure)


def draw_reproduction(result: Reproduction, path: Path) -> None:
    """The table's first metric, and PSNR, against MACs; the dashed line is the row without a cache.

    Error bars are 95 % intervals of the difference to the row without a cache, or of the value where there is none.
    """
    plt = pyplot()
    metrics = list(dict.fromkeys((*result.document["metrics"][:1], "psnr")))
    figure, panels = plt.subplots(
        1, len(metrics), figsize=(6.4 * len(metrics), 4.8), squeeze=False, layout="constrained"
    )
    for axis, metric in zip(panels[0], metrics, strict=True):
        for number, (name, row) in enumerate(result.measured.items()):
            if (value := row["figures"].get(metric)) is None:
                continue
            if not row["method"]:
                axis.axhline(value.value, color="gray", linestyle="--", linewidth=0.8, label=name)
            elif row["macs_ratio"]:
                change = result.changes(name).get(metric)
                standard_error = change.error if change is not None else value.error
                error = Z * standard_error if standard_error is not None else None
                marker = "osD^vP*X"[number % 8]
                axis.errorbar(100 / row["macs_ratio"], value.value, yerr=error, fmt=marker, capsize=2, label=name)
        kind = METRICS[metric]
        axis.set_xlabel("MACs, % of the uncached run")
        axis.set_ylabel(f"{kind.title}, {kind.better} is better")
        axis.grid(alpha=0.3)
    panels[0][-1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{result.table.title}\nmeasured on {result.document['on']}", fontsize=10)
    save_figure(figure, path, dpi=110)
    plt.close(figure)


def draw_statistics(stats: Statistics, gate: god, path: Path) -> None:
    """The change of features by depth and step, the share of inverse gradients, and the steps of the open gate."""
    plt = pyplot()
    kinds = list(dict.fromkeys(site.kind for site in stats.sites))
    heights = [3.0] * len(kinds) + [2.0]
    size = (8.0, sum(heights))
    figure, axes = plt.subplots(len(heights), 1, figsize=size, height_ratios=heights, layout="constrained")
    change = stats.changes[1:, :, 0].numpy()
    colours = plt.cm.ScalarMappable(plt.Normalize(0, float(np.quantile(change, 0.98))), "magma")
    for axis, kind in zip(axes, kinds, strict=False):
        columns = [index for index, site in enumerate(stats.sites) if site.kind == kind]
        extent = (0.5, stats.num_steps - 0.5, len(columns) - 0.5, -0.5)
        axis.imshow(change[:, columns].T, aspect="auto", cmap=colours.cmap, norm=colours.norm, extent=extent)
        axis.set_ylabel(f"{kind}: depth")
        axis.set_xlim(-0.5, stats.num_steps - 0.5)
        axis.locator_params(integer=True)
    subject = f"{stats.origin.model}, {stats.num_steps} steps, {stats.count} samples"
    axes[0].set_title(f"{subject}: change of every feature from the step before", fontsize=10)
    figure.colorbar(colours, ax=axes[: len(kinds)], label="relative L1", shrink=0.8)
    _draw_gate(axes[-1], stats, gate)
    save_figure(figure, path, dpi=110)
    plt.close(figure)


def _draw_gate(axis: Any, stats: Statistics, gate: god) -> None:
    """N, the mean change and B by step, with the steps of the open gate shaded."""
    grid = Grid(stats.num_steps, stats.sites)
    steps = range(stats.num_steps)
    scores = [gate.score(step, grid) for step in steps]
    axis.plot(steps, stats.inverse_shares, "o-", label="N: inverse gradients", markersize=3)
    axis.plot(steps, scores, "s-", label=f"B (gamma {gate.gamma:g})", markersize=3)
    axis.plot(steps[1:], stats.changes[1:, :, 0].mean(1), ":", label="mean change", color="gray")
    axis.axhline(gate.threshold, color="black", linewidth=0.8, linestyle="--", label=f"threshold {gate.threshold:g}")
    for step in steps:
        if scores[step] < gate.threshold:
            axis.axvspan(step - 0.5, step + 0.5, color="tab:green", alpha=0.12, linewidth=0)
    axis.set_xlim(-0.5, stats.num_steps - 0.5)
    axis.set_ylim(0, max(1.0, *scores))
    axis.locator_params(axis="x", integer=True)
    axis.set_xlabel("step (0 is the noisiest); green: GOC's gate is open")
    axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")


def draw_search(result: SearchResult, path: Path, max_patterns: int = 40) -> None:
    """The best patterns of a search, the winner on top: the steps that each computes, and its score."""
    plt = pyplot()
    best = result.ranked[:max_patterns]
    ranks = range(1, len(best) + 1)
    num_steps = result.plan.num_steps
    size = (4.0 + 0.12 * num_steps, 1.3 + 0.22 * len(best))
    figure, (cells, scores) = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained", width_ratios=(3, 2))
    picture = [[sign == "#" for sign in candidate.pattern] for candidate in best]
    extent = (-0.5, num_steps - 0.5, len(best) + 0.5, 0.5)
    cells.imshow(picture, aspect="auto", cmap="Blues", vmin=0, vmax=1.3, extent=extent, interpolation="nearest")
    cells.hlines([rank + 0.5 for rank in ranks][:-1], -0.5, num_steps - 0.5, color="white", linewidth=2)
    cells.locator_params(integer=True)
    cells.set_xlabel("step (0 is the noisiest); blue: computed")
    cells.set_ylabel("rank")
    scores.plot([candidate.score for candidate in best], ranks, "o", markersize=5)
    scores.set_xlabel(f"{result.score.name}\n({result.score.better} is better)")
    scores.grid(alpha=0.3)
    space = f"all {result.size}" if result.exhaustive else f"{len(result.ranked)} sampled of {result.size:,}"
    cut = f"the best {len(best)} of " if len(best) < len(result.ranked) else ""
    figure.suptitle(f"{cut}{space} patterns")
    save_figure(figure, path, dpi=130)
    plt.close(figure)
