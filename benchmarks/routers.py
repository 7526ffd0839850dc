"""The routers that ship with the digits model: trained, and compared with schedules that skip as many cells.

    python benchmarks/routers.py                train both into the package, and compare (ten minutes on one core)
    python benchmarks/routers.py --keep         compare those of the package (six minutes)
    python benchmarks/routers.py --memory       peak memory of training DiT-XL/2 alone (random weights, CPU; minutes)

Writes benchmarks/results/routers.json with command, settings, hardware and versions, and the tables between the markers
in docs/methods/l2c.md and in the model card.
"""

from __future__ import annotations

import math
import random
import resource
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import common
import torch
from torch import Tensor

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.evaluate import psnr
from forecache.fit.routers import Progress
from forecache.sampling.sources import Sampling, in_batches
from forecache.zoo import load_digits
from forecache.zoo.digits import FOLDER, Digits

STEPS, GUIDANCE = 20, 1.5
TRAINING = {"iterations": 60, "batch": 4, "lr": 0.2, "seed": 0}
LAM = {22: 5e-5, 40: 4.5e-4}
RANDOM = 5


def peak_mib() -> int:
    """Peak memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 2**20 if sys.platform == "darwin" else peak // 2**10


def train(source: Digits, level: int, lam: float) -> dict[str, int]:
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
    """Skip ``count`` cells: all sites of the first call, then of the next."""
    return cells("calls in order", grid, [(call, site.name) for call in calls for site in grid.sites][:count])


def at_random(grid: fc.Grid, count: int, seed: int) -> fc.Method:
    """Skip ``count`` random cells of the odd calls."""
    odd = [(call, site.name) for call in range(1, grid.num_steps, 2) for site in grid.sites]
    return cells(f"random {seed}", grid, random.Random(seed).sample(odd, count))


def cells(name: str, grid: fc.Grid, skipped: Sequence[tuple[int, str]]) -> fc.Method:
    """Skip these cells, (call, site name)."""
    sites, calls = [site.name for site in grid.sites], range(grid.num_steps)
    table = {site: [(call, site) not in skipped for call in calls] for site in sites}
    return fc.Method(name, fc.parts.schedules.lookup(table))


def compare(source: Digits, level: int, samples: int, uncached: Tensor) -> dict[str, Any]:
    """PSNR to the uncached samples, of the router and of other schedules with as many skipped cells."""
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
    decibels, pooled = {}, {}
    for name, method in methods.items():
        plan = method.plan(grid)
        with fc.apply(source.target, plan):
            images = generate(source, samples)
        decibels[name] = psnr(images, uncached).mean().item()
        pooled[name] = -10 * math.log10((images - uncached).square().mean().item())
        print(f"{level} %, {name}: {decibels[name]:.2f} dB, of the pooled error {pooled[name]:.2f} dB", flush=True)
    cost = fc.l2c(router).plan(grid).cost(source.target)
    return {
        "skipped": count,
        "level": router.level(),
        "macs_ratio": cost.speedup,
        "psnr": decibels,
        "pooled_db": pooled,
    }


def generate(source: Digits, samples: int) -> Tensor:
    """The samples that are compared."""
    labels = [index % 10 for index in range(samples)]
    return in_batches(source, labels, Sampling(STEPS, GUIDANCE, 0), 64)


def table(document: Mapping[str, Any]) -> list[str]:
    """A line for each schedule, a column for each router."""
    rows = list(document["routers"].values())
    lines = ["| schedule | " + " | ".join(f"{row['level']:.1%} skipped" for row in rows) + " |"]
    lines.append("|---" * (1 + len(rows)) + "|")
    for name in [name for name in rows[0]["psnr"] if not name.startswith("random")]:
        cells = [f"{row['psnr'][name]:.1f} ({row['pooled_db'][name]:.1f})" for row in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    cells = [f"{_of_random(row['psnr']):.1f} ({_of_random(row['pooled_db']):.1f})" for row in rows]
    return [*lines, f"| at random, mean of {RANDOM} | " + " | ".join(cells) + " |"]


def _of_random(figures: dict) -> float:
    return statistics.mean(value for name, value in figures.items() if name.startswith("random"))


def write_tables(document: Mapping[str, Any]) -> None:
    """Write the tables of the page and of the model card."""
    place = document["environment"]
    training = [row["training"] for row in document["routers"].values()]
    seconds = " and ".join(row["seconds"] for row in training)
    lam = " and ".join(row["lam"] for row in training)
    note = (
        f"digits, DDIM-{STEPS}, guidance {GUIDANCE:g}: PSNR in dB to {document['samples']} uncached samples, mean over "
        "samples, and in brackets the PSNR of their pooled error, which a few very different samples decide. "
        "Every schedule of a column skips as many cells. Training: "
        f"lam {lam}, {TRAINING['iterations']} sampling runs of {TRAINING['batch']}, lr {TRAINING['lr']}, "
        f"{seconds} s on {place['threads']} thread of {place['cpu']}; torch {place['torch']}. MACs: "
        + " and ".join(f"{row['macs_ratio']:.2f}x" for row in document["routers"].values())
        + " fewer."
    )
    lines = [*table(document), "", note]
    common.fill_page("table", lines)
    common.fill(FOLDER / "README.md", "routers", lines)
    if peaks := document["dit_xl_peak_mib"]:
        one, two, alone = (peaks[name] / 1024 for name in ("batch 1", "batch 2", "model"))
        words = f"DiT-XL/2 at 256x256 in float32 on the CPU: the process takes {alone:.1f} GiB with the model alone,"
        common.fill_page("memory", [words, f"{one:.1f} in a training with `--batch 1`, {two:.1f} with 2."])


class RandomDiT:
    """DiT-XL/2 at 256x256 with random weights, as a source."""

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


def memory() -> dict[str, int]:
    """Peak memory of one pair of calls, guidance pair included, with one and with two images."""
    source = RandomDiT()
    peaks = {"model": peak_mib()}
    for batch in (1, 2):
        fc.train_router(source, num_steps=2, iterations=1, batch=batch)
        peaks[f"batch {batch}"] = peak_mib()
    return peaks


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--samples", type=int, default=128, help="digits that are compared")
    parser.add_argument("--keep", action="store_true", help="compare the routers of the package")
    parser.add_argument("--memory", action="store_true", help="peak memory of DiT-XL/2 alone")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    old = common.load("routers")
    if args.memory:
        old["dit_xl_peak_mib"] = memory()
        common.save("routers", old)
        return
    source = load_digits()
    uncached = generate(source, args.samples)
    document: dict[str, Any] = {"command": common.command("routers.py", words), "samples": args.samples}
    document["environment"] = environment()
    document["dit_xl_peak_mib"] = old.get("dit_xl_peak_mib")
    document["routers"] = {}
    for level, lam in LAM.items():
        peaks = old["routers"][str(level)]["memory"] if args.keep else train(source, level, lam)
        training = dict(fc.Router.load(zoo.record("digits").router_path(level)).provenance)
        document["routers"][str(level)] = {
            "training": training,
            "memory": peaks,
            **compare(source, level, args.samples, uncached),
        }
    common.save("routers", document)
    write_tables(document)


if __name__ == "__main__":
    main(sys.argv[1:])
