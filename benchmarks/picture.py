"""The picture of the README: digits without a cache, by the best published method, and by the tuned plan, at 2.8x.

    python benchmarks/picture.py                 a minute on one core

The methods are those of the README's table (benchmarks/tuned.py). Writes docs/images/three.png and
benchmarks/results/picture.json.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import common
import numpy as np
import torch

import forecache as fc
from forecache.bench import demo
from forecache.environment import environment
from forecache.report import figures
from forecache.zoo import load_digits, record

GAIN = 4
SETTINGS = {"guidance": 1.5, "seed": 0}


def draw(rows: Sequence[demo.Row]) -> None:
    """Three panels, each with the difference to the first one beside its digits."""
    plt = figures.pyplot()
    figure, axes = plt.subplots(1, len(rows), figsize=(10.5, 2.5), layout="constrained", width_ratios=(1, 2.05, 2.05))
    for axis, row in zip(axes, rows, strict=True):
        images = figures.tile(row.images, 5)[..., 0]
        picture = images
        if row.cost is not None:
            difference = (row.images - rows[0].images).abs().mul(GAIN).clamp(max=1)
            picture = np.concatenate([images, np.ones_like(images[:, :6]), figures.tile(difference, 5)[..., 0]], 1)
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axis.axis("off")
        title = f"{row.name}\nevery step computed"
        if row.cost is not None:
            title = f"{row.name}: {row.cost.speedup:.2f}x fewer MACs, {row.psnr:.1f} dB\nbeside: difference x {GAIN}"
        axis.set_title(title, fontsize=9)
    figures.save_figure(figure, common.IMAGES / "three.png", dpi=120)
    plt.close(figure)


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--samples", type=int, default=25, help="digits in each panel")
    args = parser.parse_args(words)
    torch.manual_seed(0)
    source = load_digits()
    compared = {
        "GOC 0.8, every third step": fc.goc(fc.fora(3), 0.8),
        "tuned": fc.Plan.load(record("digits").tuned_path(computed=7)),
    }
    rows = demo.compare(source, fc.grid(source.target, 20), compared, samples=args.samples, **SETTINGS)
    draw(rows)
    document = {"command": common.command("picture.py", words), "environment": environment(), "samples": args.samples}
    figures_of = [{**row.figures(), "seconds": None, "time_ratio": None} for row in rows]  # other work ran beside it
    common.save("picture", document | SETTINGS | {"rows": figures_of})


if __name__ == "__main__":
    main(sys.argv[1:])
