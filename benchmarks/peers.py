"""Caches of other libraries and ours on one model in one process: what a skipped step costs, quality beside speed.

    python benchmarks/peers.py --model tiny --threads 1          what steps cost: random weights, no quality (minutes)
    python benchmarks/peers.py --model digits --threads 1        and the quality of 1000 samples (half an hour)
    python benchmarks/peers.py --model digits --untimed          quality alone; what is done is not measured again

Other libraries: pip install 'forecache[peers]'; one that is not installed is left out, and that is said. DDIM, guidance
1.5. Speed: all caches sample in turn, round by round. Quality: each row is written when it is done (out/peers/).
Writes benchmarks/results/peers-<model>.json with command, hardware and versions, docs/images/peers.png, and the table
between the markers in docs/measured/speed.md; with --out, all of it to that folder instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from digits import ROOT, fill
from peer_caches import CACHES
from peer_runs import BARE, GUIDANCE, Cache, Running, Subject

from forecache.bench.speed import Spread
from forecache.environment import environment
from forecache.evaluate import Moments, frechet_distance, psnr
from forecache.report import figures
from forecache.zoo import load_digits, shaped

PAGE = ROOT / "docs/measured/speed.md"
MOST = 80.0
"""dB that an image counts which is equal to the uncached one."""


def kind(computed: tuple[int, int]) -> str:
    return {(1, 1): "full", (0, 0): "skipped"}.get(computed, "mixed")


def time_all(running: Sequence[Running], samples: int, rounds: int) -> list[dict[str, Any]]:
    """All caches in turn, round by round; ratios are to the bare model in the same round. The first round warms up."""
    labels = [index % 10 for index in range(samples)]
    seconds: dict[str, list[list[float]]] = {each.cache.name: [] for each in running}
    for turn in range(rounds + 1):
        print(f"round {turn} of {rounds}", flush=True)
        for each in running:
            each(labels)
            seconds[each.cache.name].append(list(each.called.seconds))
    return [_timing(each, each.counted(labels), seconds[each.cache.name][1:], seconds[BARE][1:]) for each in running]


def _timing(
    each: Running, counted: list[tuple[int, int]], runs: list[list[float]], bare: list[list[float]]
) -> dict[str, Any]:
    """counted: on the samples that were timed, for some caches decide by what they see."""
    pairs = list(zip(runs, bare, strict=True))
    kinds = [kind(computed) for computed in counted]
    steps = {name: [step for step, found in enumerate(kinds) if found == name] for name in dict.fromkeys(kinds)}
    ratios = {
        name: Spread.of(
            statistics.median(run[step] for step in chosen) / statistics.median(reference) for run, reference in pairs
        )
        for name, chosen in steps.items()
    }
    return {
        "name": each.cache.name,
        "package": each.cache.package,
        "attention_computed": sum(attention for attention, _ in counted),
        "mlp_computed": sum(mlp for _, mlp in counted),
        "kinds": "".join({"full": "#", "skipped": ".", "mixed": "-"}[found] for found in kinds),
        "time_ratio": asdict(Spread.of(sum(reference) / sum(run) for run, reference in pairs)),
        "run_seconds": asdict(Spread.of(map(sum, runs))),
        "step_over_bare_step": {name: asdict(spread) for name, spread in ratios.items()},
    }


class Quality:
    """Rows of quality, kept in a file: a long run can be stopped and goes on."""

    def __init__(self, subject: Subject, samples: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.subject, self.labels = subject, [index % 10 for index in range(samples)]
        self.path = folder / f"digits-{samples}-{subject.num_steps}.json"
        self.rows: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.uncached = folder / f"uncached-{samples}-{subject.num_steps}.pt"

    def measure(self, each: Running) -> None:
        """Sample under one cache and judge; BARE comes first. A row of another version is measured again."""
        name, found = each.cache.name, each.cache.version
        if self.rows.get(name, {}).get("version") == found and self.uncached.exists():
            return
        images, digits = each.images(self.labels), self.subject.digits
        if name == BARE:
            torch.save(images, self.uncached)
        difference = psnr(images, torch.load(self.uncached, weights_only=True)).clamp(max=MOST).mean().item()
        self.rows[name] = {
            "version": found,
            "psnr_db": None if name == BARE else difference,
            "frechet": frechet_distance(Moments.of(digits.features(images)), digits.reference),
            "class_accuracy": (digits.recognised(images) == torch.tensor(self.labels)).float().mean().item(),
        }
        self.path.write_text(json.dumps(self.rows, indent=1))
        print(f"{name}: {difference:.2f} dB, Fréchet {self.rows[name]['frechet']:.2f}", flush=True)


def table(rows: Sequence[Mapping[str, Any]], num_steps: int) -> list[str]:
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
            decibels = row.get("psnr_db")
            cells += [f"{decibels:.1f}" if decibels is not None else ""]
            cells += [f"{row['frechet']:.2f}", f"{row['class_accuracy']:.1%}"] if "frechet" in row else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def write(args: argparse.Namespace, subject: Subject, rows: list[dict[str, Any]], missing: Mapping[str, str]) -> None:
    versions = {cache.package: cache.version for cache in CACHES}
    place = environment()
    document = {
        "command": " ".join(["python benchmarks/peers.py", *args.words]),
        "environment": place | {"versions": versions},
        "sampler": {"name": f"DDIM-{subject.num_steps}", "guidance": GUIDANCE, "samples": args.samples},
        "timing": {"samples": args.timed, "rounds": args.rounds},
        "rows": rows,
        "left_out": missing,
    }
    results = args.out or ROOT / "benchmarks/results"
    results.mkdir(parents=True, exist_ok=True)
    (results / f"peers-{args.model}.json").write_text(json.dumps(document, indent=1) + "\n")
    listed = ", ".join(f"{name} {found}" for name, found in versions.items() if found)
    note = (
        f"{args.model}, DDIM-{subject.num_steps}, guidance {GUIDANCE}; {args.timed} samples a run, median (quartiles) "
        f"of {args.rounds} interleaved rounds. Steps: `#` all of the middle block computed, `.` none, `-` a part; "
        "computed: its attention, its MLP; full, skipped and mixed step: share of a step of the bare model. "
        f"{place['cpu']}, {place['threads']} threads, torch {place['torch']}, {listed}."
    )
    lines = [*table(rows, subject.num_steps), "", note]
    if subject.digits is not None:
        quality = (
            f"Quality: {args.samples} samples; PSNR to the uncached ones, Fréchet distance of classifier features."
        )
        picture = (args.out or ROOT / "docs/images") / "peers.png"
        points = {
            row["name"]: (row["time_ratio"]["median"], row["psnr_db"], row["frechet"])
            for row in rows
            if row.get("psnr_db") is not None
        }
        figures.draw_pareto(points, picture, f"digits, {args.samples} samples; {listed}")
        lines += ["", quality, "", "![Quality against speed](../images/peers.png)"]
    print("\n".join(lines))
    if args.out is None:
        fill(PAGE, f"table peers {args.model}", lines)
    else:
        (args.out / f"peers-{args.model}.md").write_text("\n".join(lines) + "\n")


def choose(args: argparse.Namespace) -> tuple[list[Cache], dict[str, str]]:
    """The caches to run, and why others are left out."""
    wanted = [cache for cache in CACHES if cache.name == BARE or args.only in cache.name]
    missing = {cache.name: f"{cache.package} is not installed" for cache in wanted if cache.version is None}
    for package in dict.fromkeys(cache.package for cache in wanted if cache.version is None):
        print(f"{package} is not installed: its caches are left out. pip install 'forecache[peers]'")
    return [cache for cache in wanted if cache.name not in missing], missing


def put_all(subject: Subject, caches: Sequence[Cache], left_out: dict[str, str]) -> list[Running]:
    """The caches that run, after one run each; the reason of the others goes to ``left_out``."""
    running = []
    for cache in caches:
        try:
            each = subject.under(cache)
            assert len(each.counted(subject.few(2))) == subject.num_steps
        except Exception as error:  # of another library, which is said and does not end the comparison
            left_out[cache.name] = f"{type(error).__name__}: {str(error)[:200]}"
            print(f"{cache.name} fails: {left_out[cache.name]}", flush=True)
        else:
            running.append(each)
    return running


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["tiny", "dit-cpu", "digits"], default="tiny")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--samples", type=int, default=1000, help="samples that quality is measured on (digits)")
    parser.add_argument("--timed", type=int, default=None, help="samples of a timed run [1; 16 of digits]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="caches with this in their name, and the bare model")
    parser.add_argument("--untimed", action="store_true", help="measure quality, keep it, and stop")
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
    kept: dict[str, dict[str, Any]] = {}
    if subject.digits is not None:
        quality = Quality(subject, args.samples, args.out or ROOT / "out/peers")
        for each in running:
            quality.measure(each)
        kept = quality.rows
    if not args.untimed:
        rows = [row | kept.get(row["name"], {}) for row in time_all(running, args.timed, args.rounds)]
        write(args, subject, rows, left_out)


if __name__ == "__main__":
    main(sys.argv[1:])
