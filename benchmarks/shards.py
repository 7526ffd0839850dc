"""Samples in shards: the same bytes from one process and from two that were killed, and what equal bytes cost.

One process samples digits with batches of 64. Two others, with batches of 48, are killed together (SIGKILL) at two
random moments, and started again. Then calls of other sizes, on fewer samples: their time, and pixels that differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from digits import ROOT, fill

import forecache as fc
from forecache import bench
from forecache.sources import DigitsSource, Sampling, in_batches
from forecache.zoo import load_digits

RESULT = Path(__file__).parent / "results" / "shards.json"
STEPS = 10
CALLS = (1, 2, 5, 8, 16, 32, 64)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def command(out: Path, samples: int, *words: object) -> list[str]:
    settings = ["--model", "digits", "--method", "goc", "--num-samples", samples, "--out", out]
    return [sys.executable, "-m", "forecache", "sample", *map(str, settings), *map(str, words)]


def start(out: Path, samples: int, rank: int, size: int, *words: object) -> subprocess.Popen[bytes]:
    place = ONE_THREAD | {"RANK": str(rank), "WORLD_SIZE": str(size)}
    return subprocess.Popen(command(out, samples, *words), env=os.environ | place, stdout=subprocess.DEVNULL)


def finished(out: Path) -> int:
    return len(list(out.glob("shards/*.safetensors")))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def one_process(out: Path, samples: int, steps: int) -> float:
    started = time.monotonic()
    if start(out, samples, 0, 1, "--shard-size", 64, "--batch", 64, "--steps", steps).wait():
        raise SystemExit("the single process failed")
    return time.monotonic() - started


def two_processes(out: Path, samples: int, steps: int, seed: int) -> tuple[float, list[dict[str, float]]]:
    """Seconds, and what was there at every kill: the moments are drawn."""
    rng, started, kills = random.Random(seed), time.monotonic(), []
    words = ("--shard-size", 64, "--batch", 48, "--steps", steps)
    shards = -(-samples // 64)
    for _ in range(2):
        both = [start(out, samples, rank, 2, *words) for rank in (0, 1)]
        goal = finished(out) + max(1, int((shards - finished(out)) * rng.uniform(0.15, 0.5)))
        while finished(out) < goal:
            time.sleep(0.05)
        time.sleep(pause := rng.uniform(0, 8))
        for process in both:
            process.kill()
            process.wait()
        kills.append({"finished_shards": finished(out), "seconds_after_the_last": pause})
        print(f"killed with {finished(out)} of {shards} shards finished", flush=True)
    if any(process.wait() for process in [start(out, samples, rank, 2, *words) for rank in (0, 1)]):
        raise SystemExit("one of two processes failed")
    return time.monotonic() - started, kills


def sizes(samples: int, rounds: int) -> list[dict[str, float]]:
    """Calls of other sizes: fastest CPU time of sampling, and pixels that differ from those of calls of 16."""
    torch.set_num_threads(1)
    source = DigitsSource(load_digits())
    plan = fc.goc(fc.fora(2), 0.8).plan(fc.grid(source.target, STEPS))
    labels = [index % 10 for index in range(samples)]
    seconds: dict[int, list[float]] = {size: [] for size in CALLS}
    images: dict[int, torch.Tensor] = {}
    with fc.apply(source.target, plan):
        for _ in range(rounds):
            for size in CALLS:
                started = time.process_time()
                made = in_batches(source, labels, Sampling(STEPS, 1.5, 0), size)
                seconds[size].append(time.process_time() - started)
                images[size] = (made * 255).round()
    rows = []
    for size in CALLS:
        apart = (images[size] - images[16]).abs()
        differ, most = int((apart > 0).sum()), int(apart.max())
        rows.append(
            {"call_size": size, "cpu_seconds": min(seconds[size]), "pixels_that_differ": differ, "by_most": most}
        )
        print(rows[-1], flush=True)
    return rows


def tell(document: dict[str, Any]) -> None:
    """The sentences and the table of docs/sampling.md."""
    place, calls = document["environment"], document["call_sizes"]
    where = f"{place['cpu']}, 1 thread a process, torch {place['torch']}"
    usual = next(row["cpu_seconds"] for row in calls["rows"] if row["call_size"] == 16)
    pixels = calls["samples"] * 24 * 24
    rows = [
        f"| {row['call_size']} | {row['cpu_seconds'] / usual:.2f} | {row['pixels_that_differ']} of {pixels} |"
        for row in calls["rows"]
    ]
    head = ["| samples a call | CPU time, to calls of 16 | pixels that differ |", "|---|---|---|"]
    note = f"{calls['samples']} digits, {calls['sampler']}, fastest of {document['rounds']} runs. {where}."
    fill(ROOT / "docs/sampling.md", "sizes", [*head, *rows, "", note])
    one, two = document["one_process"], document["two_processes"]
    shards = -(-document["samples"] // 64)
    kept = " and ".join(str(kill["finished_shards"]) for kill in two["kills"])
    outcome = "the same bytes" if document["same_bytes"] else "OTHER BYTES"
    sentences = [
        f"Measured: {document['samples']} digits ({document['sampler']}) from one process with batches of",
        f"{one['batch']}, and from two with batches of {two['batch']} that were killed twice at random, with {kept} of {shards} shards finished: {outcome}.",
    ]
    fill(ROOT / "docs/sampling.md", "killed", sentences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--fewer", type=int, default=128, help="samples for calls of other sizes")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the many samples")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args = parser.parse_args()
    rows = sizes(args.fewer, args.rounds)
    folder = Path(tempfile.mkdtemp())
    try:
        alone = one_process(folder / "one", args.samples, args.steps)
        together, kills = two_processes(folder / "two", args.samples, args.steps, args.seed)
        digests = {name: digest(folder / name / "samples.npz") for name in ("one", "two")}
        made_on = json.loads((folder / "two" / "run.json").read_text())["made_on"]
    finally:
        shutil.rmtree(folder)
    same = digests["one"] == digests["two"]
    print(f"{'the same bytes' if same else 'OTHER BYTES'}: {digests}")
    document = {
        "command": "python benchmarks/shards.py " + " ".join(sys.argv[1:]),
        "environment": bench.environment() | {"made_on": list(made_on)},
        "samples": args.samples,
        "sampler": f"DDIM-{args.steps}, goc(fora(interval=2), eta=0.8)",
        "one_process": {"batch": 64, "seconds": alone, "sha256": digests["one"]},
        "two_processes": {"batch": 48, "seconds": together, "kills": kills, "sha256": digests["two"]},
        "same_bytes": same,
        "rounds": args.rounds,
        "call_sizes": {"samples": args.fewer, "sampler": f"DDIM-{STEPS}, goc(fora(interval=2), eta=0.8)", "rows": rows},
    }
    RESULT.write_text(json.dumps(document, indent=2) + "\n")
    tell(document)
    if not same:
        sys.exit(1)


if __name__ == "__main__":
    main()
