"""The routers that ship with the digits model: trained, and compared with schedules that skip as much.

    python benchmarks/routers.py [--samples 128] [--keep] [--memory]

Trains both routers (about 4 minutes on one core; --keep takes those that are there) into the package, and writes
benchmarks/results/routers.json with command, settings, hardware and versions, and the table between the markers in
docs/methods/l2c.md. --memory measures the peak memory of training DiT-XL/2 alone (random weights, CPU, minutes).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import statistics
import sys

import torch
from digits import ROOT, fill
from torch import Tensor

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.evaluate import psnr
from forecache.fit.routers import Progress
from forecache.sampling.sources import Sampling, in_batches
from forecache.zoo import load_digits
from forecache.zoo.digits import FOLDER, Digits

RESULT = ROOT / "benchmarks/results/routers.json"
STEPS, GUIDANCE = 20, 1.5
TRAINING = {"iterations": 60, "batch": 4, "lr": 0.2, "seed": 0}
LAM = {22: 5e-5, 40: 4.5e-4}
RANDOM = 5


def peak_mib() -> int:
    """The most memory that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 2**20 if sys.platform == "darwin" else peak // 2**10


def train(source: Digits, level: int, lam: float) -> dict:
    """Train one router into the package."""

    def say(progress: Progress) -> None:
        if progress.iteration % 10 == 0:
            print(
                f"{level} %: {progress.iteration}, loss {progress.loss:.3g}, {progress.level:.1%} skipped", flush=True
            )

    before = peak_mib()
    router = fc.train_router(source, num_steps=STEPS, guidance=GUIDANCE, lam=lam, on_iteration=say, **TRAINING)
    router.save(zoo.record("digits").folder / f"router-{level}.safetensors")
    return {"peak_mib_before": before, "peak_mib": peak_mib()}


def in_order(grid: fc.Grid, count: int, calls: list[int]) -> fc.Method:
    """Skip ``count`` cells: all sites of the first of these calls, then of the next, ..."""
    return cells("calls in order", grid, [(call, site.name) for call in calls for site in grid.sites][:count])


def at_random(grid: fc.Grid, count: int, seed: int) -> fc.Method:
    """Skip ``count`` cells of the odd calls, whichever."""
    every = [(call, site.name) for call in range(1, grid.num_steps, 2) for site in grid.sites]
    return cells(f"random {seed}", grid, random.Random(seed).sample(every, count))


def cells(name: str, grid: fc.Grid, skipped: list[tuple[int, str]]) -> fc.Method:
    chosen = set(skipped)
    table = {site.name: [(call, site.name) not in chosen for call in range(grid.num_steps)] for site in grid.sites}
    return fc.Method(name, fc.parts.schedules.lookup(table))


def compare(source: Digits, level: int, samples: int, uncached: Tensor) -> dict:
    """PSNR of the router and of other schedules with as many skipped cells, to the uncached samples."""
    grid = fc.grid(source.target, STEPS)
    router = fc.Router.load(zoo.record("digits").router_path(level))
    count = int(router.skips().sum())
    odd = list(range(1, STEPS, 2))
    methods = {
        "router": fc.l2c(router),
        "first odd calls": in_order(grid, count, odd),
        "last odd calls": in_order(grid, count, odd[::-1]),
        "every other odd call first": in_order(grid, count, odd[::2] + odd[1::2]),
        **{f"random {seed}": at_random(grid, count, seed) for seed in range(RANDOM)},
    }
    found, pooled = {}, {}
    for name, method in methods.items():
        plan = method.plan(grid)
        with fc.apply(source.target, plan):
            images = generate(source, samples)
        found[name] = psnr(images, uncached).mean().item()
        pooled[name] = -10 * math.log10((images - uncached).square().mean().item())
        print(f"{level} %, {name}: {found[name]:.2f} dB, of the pooled error {pooled[name]:.2f} dB", flush=True)
    cost = fc.l2c(router).plan(grid).cost(source.target)
    return {
        "skipped": count,
        "level": router.level(),
        "macs_ratio": cost.speedup,
        "psnr_db": found,
        "pooled_db": pooled,
    }


def generate(source: Digits, samples: int) -> Tensor:
    labels = [index % 10 for index in range(samples)]
    return in_batches(source, labels, Sampling(STEPS, GUIDANCE, 0), 64)


def table(document: dict) -> list[str]:
    rows = list(document["routers"].values())
    lines = ["| schedule | " + " | ".join(f"{row['level']:.1%} skipped" for row in rows) + " |"]
    lines.append("|---" * (1 + len(rows)) + "|")
    for name in [name for name in rows[0]["psnr_db"] if not name.startswith("random")]:
        cells = [f"{row['psnr_db'][name]:.1f} ({row['pooled_db'][name]:.1f})" for row in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    cells = [f"{_of_random(row['psnr_db']):.1f} ({_of_random(row['pooled_db']):.1f})" for row in rows]
    return [*lines, f"| at random, mean of {RANDOM} | " + " | ".join(cells) + " |"]


def _of_random(figures: dict) -> float:
    return statistics.mean(value for name, value in figures.items() if name.startswith("random"))


def write_table(document: dict) -> None:
    place = document["environment"]
    training = [row["training"] for row in document["routers"].values()]
    seconds = " and ".join(row["seconds"] for row in training)
    lam = " and ".join(row["lam"] for row in training)
    note = (
        f"digits, DDIM-{STEPS}, guidance {GUIDANCE:g}: PSNR in dB to {document['samples']} uncached samples, mean over "
        "them, and in brackets the PSNR of their pooled error, which the few samples decide that turn out otherwise. "
        "Every schedule of a column skips as many cells. Training: "
        f"lam {lam}, {TRAINING['iterations']} sampling runs of {TRAINING['batch']}, lr {TRAINING['lr']}, "
        f"{seconds} s on {place['threads']} thread of {place['cpu']}; torch {place['torch']}. MACs: "
        + " and ".join(f"{row['macs_ratio']:.2f}x" for row in document["routers"].values())
        + " fewer."
    )
    for page, name in ((ROOT / "docs/methods/l2c.md", "table"), (FOLDER / "README.md", "routers")):
        fill(page, name, [*table(document), "", note])
    if peaks := document["dit_xl_peak_mib"]:
        one, two, alone = (peaks[name] / 1024 for name in ("batch 1", "batch 2", "model"))
        words = f"DiT-XL/2 at 256x256 in float32 on the CPU: the process takes {alone:.1f} GiB with the model alone,"
        fill(
            ROOT / "docs/methods/l2c.md",
            "memory",
            [words, f"{one:.1f} in a training with `--batch 1`, {two:.1f} with 2."],
        )


class Random:
    """DiT-XL/2 at 256x256 with random weights, as a source of one model call after another."""

    classes = 1000

    def __init__(self) -> None:
        from diffusers import DiTTransformer2DModel

        self.target = DiTTransformer2DModel(
            num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, sample_size=32
        )

    def generate(self, labels: list[int], how: Sampling, first_index: int = 0, on_step: object = None) -> Tensor:
        x, y = torch.randn(2 * len(labels), 4, 32, 32), torch.tensor([*labels, *[1000] * len(labels)])
        for step in range(how.num_steps):
            x = self.target(x, timestep=torch.full((len(x),), 900 - step), class_labels=y).sample[:, :4]
        return x


def memory() -> dict:
    """Peak memory of one pair of calls, guidance pair included, at one and at two images."""
    source = Random()
    peaks = {"model": peak_mib()}
    for batch in (1, 2):
        fc.train_router(source, num_steps=2, iterations=1, batch=batch)
        peaks[f"batch {batch}"] = peak_mib()
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--keep", action="store_true", help="compare the routers that are there")
    parser.add_argument("--memory", action="store_true", help="peak memory of DiT-XL/2 alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    old = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if args.memory:
        old["dit_xl_peak_mib"] = memory()
        RESULT.write_text(json.dumps(old, indent=2) + "\n")
        return
    source = load_digits()
    uncached = generate(source, args.samples)
    document = {"command": "python benchmarks/routers.py", "samples": args.samples, "environment": environment()}
    document["dit_xl_peak_mib"] = old.get("dit_xl_peak_mib")
    document["routers"] = {}
    for level, lam in LAM.items():
        row = old["routers"][str(level)]["memory"] if args.keep else train(source, level, lam)
        training = dict(fc.Router.load(zoo.record("digits").router_path(level)).provenance)
        found = compare(source, level, args.samples, uncached)
        document["routers"][str(level)] = {"training": training, "memory": row, **found}
    RESULT.write_text(json.dumps(document, indent=2) + "\n")
    write_table(document)


if __name__ == "__main__":
    main()
