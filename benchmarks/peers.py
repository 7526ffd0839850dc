"""Caches of other libraries and ours on one model in one process: the cost of a skipped step, quality beside speed.

    python benchmarks/peers.py --model tiny --threads 1          cost of steps: random weights, no quality (minutes)
    python benchmarks/peers.py --model digits --threads 1        and the quality of 1000 samples (half an hour)
    python benchmarks/peers.py --model digits --untimed          quality alone; finished rows are not measured again

Other libraries: pip install 'forecache[peers]'; one that is not installed is left out with a message. DDIM, guidance
1.5. Speed: all caches sample in alternating rounds. Quality: each row is written when it is done (out/peers/).
Writes benchmarks/results/peers-<model>.json with command, hardware and versions, docs/images/peers.png, and the table
between the markers in docs/measured/speed.md; with --out, all of it to that folder instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from diffusers import DDIMScheduler
from peer_caches import CACHES
from peer_runs import BARE, GUIDANCE, Cache, Running, Subject

from forecache.bench.speed import step_ratios
from forecache.environment import environment
from forecache.evaluate import Moments, frechet_distance, psnr
from forecache.report import figures
from forecache.sampling.timing import Spread, alternate
from forecache.zoo import load_digits, shaped

MOST = 80.0
"""dB of an image that is equal to the uncached one."""


def kind(computed: tuple[int, int]) -> str:
    """The kind of a step, by how often it computes attention and MLP."""
    return {(1, 1): "full", (0, 0): "skipped"}.get(computed, "mixed")


def time_all(running: Sequence[Running], samples: int, rounds: int) -> list[dict[str, Any]]:
    """The speed of all caches, in alternating rounds after one that warms up; ratios are to the bare model."""
    labels = [index % 10 for index in range(samples)]

    def call_seconds(cached: Running) -> list[float]:
        cached(labels)
        return list(cached.called.seconds)

    calls = {cached.cache.name: partial(call_seconds, cached) for cached in running}
    seconds = alternate(calls, rounds, on_call=lambda name: print(name, flush=True))
    return [
        _timing(cached.cache, cached.counted(labels), seconds[cached.cache.name], seconds[BARE]) for cached in running
    ]


def _timing(
    cache: Cache, counted: list[tuple[int, int]], runs: list[list[float]], bare: list[list[float]]
) -> dict[str, Any]:
    """The row of a cache.

    counted: on the samples that were timed, because some caches decide by the features. runs, bare: seconds of every
    call, by round.
    """
    kinds = [kind(computed) for computed in counted]
    steps = {name: [step for step, of in enumerate(kinds) if of == name] for name in dict.fromkeys(kinds)}
    return {
        "name": cache.name,
        "package": cache.package,
        "attention_computed": sum(attention for attention, _ in counted),
        "mlp_computed": sum(mlp for _, mlp in counted),
        "kinds": "".join({"full": "#", "skipped": ".", "mixed": "-"}[name] for name in kinds),
        "time_ratio": asdict(Spread.of_ratios(map(sum, bare), map(sum, runs))),
        "run_seconds": asdict(Spread.of(map(sum, runs))),
        "step_over_bare_step": {name: asdict(step_ratios(runs, bare, of_kind)) for name, of_kind in steps.items()},
    }


class Quality:
    """Rows of quality, and their file, so that an interrupted run continues."""

    def __init__(self, subject: Subject, samples: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.subject, self.labels = subject, [index % 10 for index in range(samples)]
        self.path = folder / f"digits-{samples}-{subject.num_steps}.json"
        self.rows: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.uncached = folder / f"uncached-{samples}-{subject.num_steps}.pt"

    def measure(self, cached: Running) -> None:
        """Sample under one cache and judge; the bare model comes first. Rows of other versions are measured again."""
        name, installed = cached.cache.name, cached.cache.version
        if self.rows.get(name, {}).get("version") == installed and self.uncached.exists():
            return
        images, digits = cached.images(self.labels), self.subject.digits
        if name == BARE:
            torch.save(images, self.uncached)
        difference = psnr(images, torch.load(self.uncached, weights_only=True)).clamp(max=MOST).mean().item()
        self.rows[name] = {
            "version": installed,
            "psnr": None if name == BARE else difference,
            "frechet": frechet_distance(Moments.of(digits.features(images)), digits.reference),
            "class_accuracy": (digits.recognised(images) == torch.tensor(self.labels)).float().mean().item(),
        }
        self.path.write_text(json.dumps(self.rows, indent=1))
        print(f"{name}: {difference:.2f} dB, Fréchet {self.rows[name]['frechet']:.2f}", flush=True)


def table(rows: Sequence[Mapping[str, Any]], num_steps: int) -> list[str]:
    """A line for each cache."""
    judged = any("frechet" in row for row in rows)
    head = ["cache", "steps", "computed of " + str(num_steps), "less time", "full step", "skipped step", "mixed step"]
    head += ["PSNR, dB", "Fréchet", "class"] if judged else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        ratios, ratio = row["step_over_bare_step"], row["time_ratio"]
        cells = [
            row["name"],
            f"`{row['kinds']}`",
            f"{row['attention_computed']}, {row['mlp_computed']}",
            f"{ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})",
            *(f"{ratios[name]['median']:.1%}" if name in ratios else "" for name in ("full", "skipped", "mixed")),
        ]
        if judged:
            decibels = row.get("psnr")
            cells += [f"{decibels:.1f}" if decibels is not None else ""]
            cells += [f"{row['frechet']:.2f}", f"{row['class_accuracy']:.1%}"] if "frechet" in row else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def write(args: argparse.Namespace, subject: Subject, rows: list[dict[str, Any]], missing: Mapping[str, str]) -> None:
    """Write the result, the picture, and the table in the page."""
    versions = {cache.package: cache.version for cache in CACHES}
    place = environment()
    document = {
        "command": common.command("peers.py", args.words),
        "environment": place | {"versions": versions},
        "sampler": {"name": f"DDIM-{subject.num_steps}", "guidance": GUIDANCE, "samples": args.samples},
        "timing": {"samples": args.timed, "rounds": args.rounds},
        "rows": rows,
        "left_out": missing,
    }
    results = args.out or common.RESULTS
    results.mkdir(parents=True, exist_ok=True)
    (results / f"peers-{args.model}.json").write_text(json.dumps(document, indent=1) + "\n")
    listed = ", ".join(f"{name} {installed}" for name, installed in versions.items() if installed)
    note = (
        f"{args.model}, DDIM-{subject.num_steps}, guidance {GUIDANCE}; {args.timed} samples a run, median (quartiles) "
        f"of {args.rounds} alternating rounds. Steps: `#` all of the middle block computed, `.` none, `-` a part; "
        "computed: its attention, its MLP; full, skipped and mixed step: share of a step of the bare model. "
        f"{common.machine(place, 'threads')}, {listed}."
    )
    lines = [*table(rows, subject.num_steps), "", note]
    if subject.digits is not None:
        quality = (
            f"Quality: {args.samples} samples; PSNR to the uncached ones, Fréchet distance of classifier features."
        )
        picture = (args.out or common.IMAGES) / "peers.png"
        points = {
            row["name"]: (row["time_ratio"]["median"], row["psnr"], row["frechet"])
            for row in rows
            if row.get("psnr") is not None
        }
        figures.draw_pareto(points, picture, f"digits, {args.samples} samples; {listed}")
        shown = common.picture(f"table peers {args.model}", "peers.png", "Quality against speed")
        lines += ["", quality, "", shown]
    print("\n".join(lines))
    if args.out is None:
        common.fill_page(f"table peers {args.model}", lines)
    else:
        (args.out / f"peers-{args.model}.md").write_text("\n".join(lines) + "\n")


def choose(args: argparse.Namespace) -> tuple[list[Cache], dict[str, str]]:
    """The caches to run, and the reasons why others are left out."""
    wanted = [cache for cache in CACHES if cache.name == BARE or args.only in cache.name]
    missing = {cache.name: f"{cache.package} is not installed" for cache in wanted if cache.version is None}
    for package in dict.fromkeys(cache.package for cache in wanted if cache.version is None):
        print(f"{package} is not installed: its caches are left out. pip install 'forecache[peers]'")
    return [cache for cache in wanted if cache.name not in missing], missing


def put_all(subject: Subject, caches: Sequence[Cache], left_out: dict[str, str]) -> list[Running]:
    """The caches that run, after a run of each; ``left_out`` gets the reasons of the others."""
    running = []
    for cache in caches:
        try:
            cached = subject.under(cache)
            assert len(cached.counted(subject.few(2))) == subject.num_steps
        except Exception as error:  # an error of another library is reported and does not end the comparison
            left_out[cache.name] = f"{type(error).__name__}: {str(error)[:200]}"
            print(f"{cache.name} fails: {left_out[cache.name]}", flush=True)
        else:
            running.append(cached)
    return running


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """The arguments; the words are recorded with them."""
    parser = common.parser(__doc__)
    parser.add_argument("--model", choices=["tiny", "dit-cpu", "digits"], default="tiny")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--samples", type=int, default=1000, help="samples of the quality (digits)")
    parser.add_argument("--timed", type=int, default=None, help="samples of a timed run [1; 16 of digits]")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one to warm up")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--only", default="", help="caches with this in their name, and the bare model")
    parser.add_argument("--untimed", action="store_true", help="measure quality, write it, and stop")
    parser.add_argument("--out", type=Path, default=None, help="a folder for everything that is written")
    args = parser.parse_args(words)
    args.timed = args.timed or (16 if args.model == "digits" else 1)
    args.words = list(words)
    return args


def main(words: Sequence[str]) -> None:
    args = arguments(words)
    torch.set_num_threads(args.threads)
    if args.model == "digits":
        digits = load_digits()
        subject = Subject(digits.transformer, digits.scheduler, args.steps, digits)
    else:
        subject = Subject(shaped(args.model), DDIMScheduler(), args.steps)
    caches, left_out = choose(args)
    running = put_all(subject, caches, left_out)
    qualities: dict[str, dict[str, Any]] = {}
    if subject.digits is not None:
        quality = Quality(subject, args.samples, args.out or common.WORK / "peers")
        for cached in running:
            quality.measure(cached)
        qualities = quality.rows
    if not args.untimed:
        rows = [row | qualities.get(row["name"], {}) for row in time_all(running, args.timed, args.rounds)]
        write(args, subject, rows, left_out)


if __name__ == "__main__":
    main(sys.argv[1:])
