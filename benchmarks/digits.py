"""Quality of the bundled digits model: of its samples, and of the demo's plans on many samples.

    python benchmarks/digits.py                      half an hour on one core
    python benchmarks/digits.py --times-only         the times alone, again
    python benchmarks/digits.py --no-more            the tables again, from benchmarks/results

Writes benchmarks/results/digits.json with command, hardware and versions, pictures in docs/images, and the tables
between the markers of docs/measured/digits.md and in the model card.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import common
import torch

import forecache as fc
from forecache.bench import demo
from forecache.environment import environment
from forecache.evaluate import Moments, frechet_distance
from forecache.report import figures
from forecache.sampling.runs import save_png
from forecache.sampling.sources import Sampling, in_batches
from forecache.zoo import load_digits
from forecache.zoo.digits import FOLDER, Digits

SETTINGS = {"guidance": 1.5, "seed": 0}


ETAS = (0.6, 0.8, 1.0, 1.2)


def methods() -> dict[str, fc.Method]:
    """The GOC paper's schedules at 20 steps, and TaylorSeer; the number after GOC is eta, after Taylor the order."""
    half = fc.methods.fora_paper(50)
    gocs = {f"GOC 50 %, {eta:.1f}": fc.goc(half, eta, steps=fc.methods.goc_paper_steps(50)) for eta in ETAS}
    return {
        "FORA 25 %": fc.methods.fora_paper(25),
        "FORA 50 %": half,
        **gocs,
        "Taylor 50 %, 1": fc.taylorseer(half, 1),
        "Taylor 50 %, 2": fc.taylorseer(half, 2),
    }


def uncached_quality(source: Digits, count: int) -> dict[str, Any]:
    """DDIM-50, guidance 2, without a cache: the share of samples recognised as the digit asked for."""
    labels = [index % 10 for index in range(count)]
    images = in_batches(source, labels, Sampling(num_steps=50, guidance=2.0, seed=0), 250)
    grid = torch.from_numpy(figures.tile(images[:100], 10)).permute(2, 0, 1)
    save_png(grid, common.IMAGES / "digits.png")
    recognised = source.recognised(images) == torch.tensor(labels)
    by_class = [recognised[digit::10].float().mean().item() for digit in range(10)]
    distance = frechet_distance(Moments.of(source.features(images)), source.reference)
    return {
        "sampler": "DDIM-50",
        "guidance": 2.0,
        "samples": count,
        "seed": 0,
        "class_accuracy": recognised.float().mean().item(),
        "class_accuracy_by_class": by_class,
        "frechet": distance,
    }


def table(quality: Sequence[Mapping[str, Any]], times: Mapping[str, float]) -> list[str]:
    """One row for each plan."""
    lines = [
        "| plan | schedule | MACs | time | PSNR, dB | Fréchet | class | cache, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in quality:
        cells = [
            row["name"],
            f"`{row['picture']}`" if row["picture"] else "every step computed",
            f"{row['macs_ratio']:.2f}x fewer" if row["picture"] else f"{row['macs_uncached'] / 1e9:.2f} G an image",
            f"{times[row['name']]:.2f}x less" if row["picture"] else "1",
            f"{row['psnr']:.1f}" if row["psnr"] is not None else "",
            f"{row['frechet']:.2f}",
            f"{row['class_accuracy']:.1%}",
            f"{row['cache_bytes'] / 2**20:.0f}" if row["picture"] else "0",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def measure_quality(source: Digits, grid: fc.Grid, samples: int) -> dict[str, Any]:
    """The uncached samples, and every plan of the demo against them."""
    itself = uncached_quality(source, samples)
    print(f"DDIM-50, guidance 2: {itself['class_accuracy']:.1%} recognised", flush=True)
    rows = demo.compare(source, grid, methods(), samples=samples, batch=250, on_run=print, **SETTINGS)
    title = f"digits, DDIM-20, guidance 1.5, {samples} samples"
    figures.draw_quality(rows, common.IMAGES / "quality.png", title)
    quality = [row.figures() for row in rows]
    quality[0]["macs_uncached"] = rows[1].cost.macs_uncached if rows[1].cost else None
    sampler = {"name": "DDIM-20", "samples": samples, "batch": 250, **SETTINGS}
    return {"uncached": itself, "sampler": sampler, "quality": quality}


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--samples", type=int, default=1000, help="samples of the quality")
    parser.add_argument("--repeats", type=int, default=11, help="timed rounds of 64 samples; the median counts")
    parser.add_argument("--times-only", action="store_true", help="measure time again, keep the recorded quality")
    parser.add_argument("--no-more", action="store_true", help="measure nothing, write the tables")
    args = parser.parse_args(words)
    if args.no_more:
        write_tables(common.load("digits"))
        return
    source = load_digits()
    grid = fc.grid(source.target, 20)
    recorded = common.load("digits") if args.times_only else measure_quality(source, grid, args.samples)
    timed = demo.compare(source, grid, methods(), samples=64, repeats=args.repeats, on_run=print, **SETTINGS)
    for row, timed_row in zip(recorded["quality"], timed, strict=True):
        row["cache_bytes"] = timed_row.cache_bytes  # of the batch of 64 that was timed
    document = {
        "command": common.command("digits.py", words),
        "environment": environment(),
        **{name: recorded[name] for name in ("uncached", "sampler", "quality")},
        "timing": {"samples": 64, "repeats": args.repeats, "rows": [row.figures() for row in timed]},
    }
    common.save("digits", document)
    write_tables(document)


def write_tables(document: Mapping[str, Any]) -> None:
    """The page's table and the model card's figures, from the recorded result."""
    itself, timing = document["uncached"], document["timing"]
    lines = table(document["quality"], {row["name"]: row["time_ratio"] for row in timing["rows"]})
    note = (
        f"DDIM-20, guidance 1.5. Quality: {document['sampler']['samples']} samples; PSNR to the uncached ones, Fréchet "
        f"distance of classifier features to the MNIST test set, share recognised as the class asked for. Time: 64 "
        f"samples, median of {timing['repeats']} alternating rounds; cache for those 64. "
        f"{common.machine(document['environment'], 'threads', 'diffusers')}."
    )
    common.fill_page("table digits", [*lines, "", note])
    judged = (
        f"{itself['class_accuracy']:.1%} of {itself['samples']} samples (DDIM-50, guidance 2, seed 0) are recognised "
        f"as the class asked for; lowest class {min(itself['class_accuracy_by_class']):.0%}. Fréchet distance of "
        f"classifier features to the MNIST test set: {itself['frechet']:.2f}."
    )
    common.fill(FOLDER / "README.md", "measured", [judged])
    training = json.loads((FOLDER / "training.json").read_text())
    judge = json.loads((FOLDER / "classifier.json").read_text())
    trained = (
        f"Trained for {training['steps']:,} steps ({training['images_seen']:,} images, seed "
        f"{training['settings']['seed']}) in {training['seconds'] / 60:.0f} minutes on {training['hardware']}; last "
        f"loss {training['final_loss']:.4f}. The judge recognises {judge['test_accuracy']:.2%} of the MNIST test set."
    )
    common.fill(FOLDER / "README.md", "training", [trained])


if __name__ == "__main__":
    main(sys.argv[1:])
