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
from forecache.environment import environment
from forecache.sampling.sources import Sampling, in_batches
from forecache.zoo import load_digits

RESULT = Path(__file__).parent / "results" / "shards.json"
STEPS = 10
SHARD = 64
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
    if start(out, samples, 0, 1, "--shard-size", SHARD, "--batch", 64, "--steps", steps).wait():
        raise SystemExit("the single process failed")
    return time.monotonic() - started


def two_processes(out: Path, samples: int, steps: int, seed: int) -> tuple[float, list[dict[str, float]]]:
    """Seconds, and what was there at every kill: the moments are drawn."""
    rng, started, kills = random.Random(seed), time.monotonic(), []
    words = ("--shard-size", SHARD, "--batch", 48, "--steps", steps)
    shards = -(-samples // SHARD)
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
    """Calls of other sizes: fastest CPU time, and what differs from calls of 16, as floats and as 8-bit pixels."""
    torch.set_num_threads(1)
    source = load_digits()
    plan = fc.goc(fc.fora(2), 0.8).plan(fc.grid(source.target, STEPS))
    labels = [index % 10 for index in range(samples)]
    seconds: dict[int, list[float]] = {size: [] for size in CALLS}
    floats: dict[int, torch.Tensor] = {}
    with fc.apply(source.target, plan):
        for _ in range(rounds):
            for size in CALLS:
                started = time.process_time()
                made = in_batches(source, labels, Sampling(STEPS, 1.5, 0), size)
                seconds[size].append(time.process_time() - started)
                floats[size] = made
    rows = []
    for size in CALLS:
        apart = ((floats[size] * 255).round() - (floats[16] * 255).round()).abs()
        row = {"call_size": size, "cpu_seconds": min(seconds[size]), "pixels_that_differ": int((apart >= 1).sum())}
        rows.append(row | {"images_that_differ": int((floats[size] != floats[16]).flatten(1).any(1).sum())})
        print(rows[-1], flush=True)
    return rows


def calls_table(found: dict[str, Any]) -> list[str]:
    samples = found["samples"]
    usual = next(row["cpu_seconds"] for row in found["rows"] if row["call_size"] == 16)
    lines = [
        "| samples a call | CPU time, to calls of 16 | images that differ | 8-bit pixels that differ |",
        "|---|---|---|---|",
    ]
    for row in found["rows"]:
        time_ratio, images, pixels = row["cpu_seconds"] / usual, row["images_that_differ"], row["pixels_that_differ"]
        lines.append(
            f"| {row['call_size']} | {time_ratio:.2f} | {images} of {samples} | {pixels} of {samples * 24**2} |"
        )
    note = f"{samples} digits, {found['sampler']}, 1 thread, fastest of {found['rounds']}. {where(found)}."
    return [*lines, "", note]


def bytes_sentence(found: dict[str, Any]) -> list[str]:
    one, two = found["one_process"], found["two_processes"]
    kept = " and ".join(str(kill["finished_shards"]) for kill in two["kills"])
    outcome = "the same bytes" if found["same_bytes"] else "OTHER BYTES"
    return [
        f"Measured: {found['samples']} digits ({found['sampler']}) from one process with batches of",
        f"{one['batch']}, and from two with batches of {two['batch']} that were killed twice at random, when",
        f"{kept} of {-(-found['samples'] // SHARD)} shards were finished: {outcome}. {where(found)}.",
    ]


def where(found: dict[str, Any]) -> str:
    place = found["environment"]
    return f"{place['cpu']}, torch {place['torch']}, diffusers {place['diffusers']}"


def sampler(steps: int) -> str:
    return f"DDIM-{steps}, goc(fora(interval=2), eta=0.8)"


def measure_bytes(args: argparse.Namespace) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp())
    try:
        alone = one_process(folder / "one", args.samples, args.steps)
        together, kills = two_processes(folder / "two", args.samples, args.steps, args.seed)
        one, two = (digest(folder / name / "samples.npz") for name in ("one", "two"))
    finally:
        shutil.rmtree(folder)
    return {
        "samples": args.samples,
        "sampler": sampler(args.steps),
        "one_process": {"batch": 64, "seconds": alone, "sha256": one},
        "two_processes": {"batch": 48, "seconds": together, "kills": kills, "sha256": two},
        "same_bytes": one == two,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["calls", "bytes"], default=["calls", "bytes"])
    parser.add_argument("--samples", type=int, default=2000, help="bytes: digits")
    parser.add_argument("--steps", type=int, default=STEPS, help="bytes: DDIM steps")
    parser.add_argument("--seed", type=int, default=0, help="bytes: of the moments of the kills")
    parser.add_argument("--fewer", type=int, default=192, help="calls: digits")
    parser.add_argument("--rounds", type=int, default=2, help="calls: runs of each size")
    args = parser.parse_args()
    document = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for part in args.parts:
        if part == "calls":
            rows = sizes(args.fewer, args.rounds)
            found = {"samples": args.fewer, "sampler": sampler(STEPS), "rounds": args.rounds, "rows": rows}
        else:
            found = measure_bytes(args)
            print("the same bytes" if found["same_bytes"] else "OTHER BYTES", found)
        command = "python benchmarks/shards.py " + " ".join(sys.argv[1:])
        document[part] = {"command": command, "environment": environment()} | found
        RESULT.write_text(json.dumps(document, indent=2) + "\n")
        lines = calls_table(document[part]) if part == "calls" else bytes_sentence(document[part])
        fill(ROOT / "docs/sampling.md", part, lines)
    if not document.get("bytes", {}).get("same_bytes", True):
        sys.exit(1)


if __name__ == "__main__":
    main()
