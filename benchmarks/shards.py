"""Samples in shards: the same bytes from one process and from two that were killed, and the cost of equal bytes.

    python benchmarks/shards.py                half an hour on two cores
    python benchmarks/shards.py calls          the cost of equal bytes alone (ten minutes on one core)

One process samples digits with batches of 64. Two others, with batches of 48, are killed together (SIGKILL) at two
random moments, and started again. Then calls of other sizes, on fewer samples: their time, and pixels that differ.
Writes benchmarks/results/shards.json and the parts of docs/sampling.md.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch

import forecache as fc
from forecache.environment import environment
from forecache.sampling.sources import Sampling, in_batches
from forecache.sampling.timing import alternate
from forecache.zoo import load_digits

STEPS = 10
SHARD = 64
CALLS = (1, 2, 5, 8, 16, 32, 64)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def command(out: Path, samples: int, *words: object) -> list[str]:
    """The command that samples."""
    settings = ["--model", "digits", "--method", "goc", "--num-samples", samples, "--out", out]
    return [sys.executable, "-m", "forecache", "sample", *map(str, settings), *map(str, words)]


def start(out: Path, samples: int, rank: int, size: int, *words: object) -> subprocess.Popen[bytes]:
    """Start one process of ``size``."""
    place = ONE_THREAD | {"RANK": str(rank), "WORLD_SIZE": str(size)}
    return subprocess.Popen(command(out, samples, *words), env=os.environ | place, stdout=subprocess.DEVNULL)


def finished(out: Path) -> int:
    """The number of finished shards."""
    return len(list(out.glob("shards/*.safetensors")))


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def one_process(out: Path, samples: int, steps: int) -> float:
    """Seconds of sampling in one process."""
    started = time.monotonic()
    if start(out, samples, 0, 1, "--shard-size", SHARD, "--batch", 64, "--steps", steps).wait():
        raise SystemExit("the single process failed")
    return time.monotonic() - started


def two_processes(out: Path, samples: int, steps: int, seed: int) -> tuple[float, list[dict[str, float]]]:
    """Seconds of sampling in two processes that are killed twice at random, and the state at every kill."""
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
    """A row for each size of a call: fastest CPU time, and differences to calls of 16, of floats and 8-bit pixels."""
    torch.set_num_threads(1)
    source = load_digits()
    plan = fc.goc(fc.fora(2), 0.8).plan(fc.grid(source.target, STEPS))
    labels = [index % 10 for index in range(samples)]

    def sample(size: int) -> tuple[torch.Tensor, float]:
        """Images and CPU seconds: other processes, which share the machine, do not count."""
        started = time.process_time()
        images = in_batches(source, labels, Sampling(STEPS, 1.5, 0), size)
        return images, time.process_time() - started

    with fc.apply(source.target, plan):
        results = alternate({str(size): partial(sample, size) for size in CALLS}, rounds, warmup=0)
    reference = results["16"][-1][0]
    rows = []
    for size in CALLS:
        images, fastest = results[str(size)][-1][0], min(seconds for _, seconds in results[str(size)])
        apart = ((images * 255).round() - (reference * 255).round()).abs()
        row = {"call_size": size, "cpu_seconds": fastest, "pixels_that_differ": int((apart >= 1).sum())}
        rows.append(row | {"images_that_differ": int((images != reference).flatten(1).any(1).sum())})
        print(rows[-1], flush=True)
    return rows


def calls_table(part: Mapping[str, Any]) -> list[str]:
    """The table of sizes, with its note."""
    samples = part["samples"]
    usual = next(row["cpu_seconds"] for row in part["rows"] if row["call_size"] == 16)
    lines = [
        "| samples a call | CPU time, to calls of 16 | images that differ | 8-bit pixels that differ |",
        "|---|---|---|---|",
    ]
    for row in part["rows"]:
        time_ratio, images, pixels = row["cpu_seconds"] / usual, row["images_that_differ"], row["pixels_that_differ"]
        lines.append(
            f"| {row['call_size']} | {time_ratio:.2f} | {images} of {samples} | {pixels} of {samples * 24**2} |"
        )
    machine = common.machine(part["environment"], "diffusers")
    note = f"{samples} digits, {part['sampler']}, 1 thread, fastest of {part['rounds']}. {machine}."
    return [*lines, "", note]


def bytes_sentence(part: Mapping[str, Any]) -> list[str]:
    """The sentence on equal bytes."""
    one, two = part["one_process"], part["two_processes"]
    at_kills = " and ".join(str(kill["finished_shards"]) for kill in two["kills"])
    outcome = "the same bytes" if part["same_bytes"] else "OTHER BYTES"
    machine = common.machine(part["environment"], "diffusers")
    return [
        f"Measured: {part['samples']} digits ({part['sampler']}) from one process with batches of",
        f"{one['batch']}, and from two with batches of {two['batch']} that were killed twice at random, when",
        f"{at_kills} of {-(-part['samples'] // SHARD)} shards were finished: {outcome}. {machine}.",
    ]


def sampler(steps: int) -> str:
    """The name of the sampler."""
    return f"DDIM-{steps}, goc(fora(interval=2), eta=0.8)"


def measure_bytes(args: argparse.Namespace) -> dict[str, Any]:
    """The same samples from one process and from two."""
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


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("parts", nargs="*", choices=["calls", "bytes"], default=["calls", "bytes"])
    parser.add_argument("--samples", type=int, default=2000, help="bytes: digits")
    parser.add_argument("--steps", type=int, default=STEPS, help="bytes: DDIM steps")
    parser.add_argument("--seed", type=int, default=0, help="bytes: seed of the moments of the kills")
    parser.add_argument("--fewer", type=int, default=192, help="calls: digits")
    parser.add_argument("--rounds", type=int, default=2, help="calls: runs of each size")
    args = parser.parse_args(words)
    document = common.load("shards")
    for part in args.parts:
        if part == "calls":
            rows = sizes(args.fewer, args.rounds)
            result = {"samples": args.fewer, "sampler": sampler(STEPS), "rounds": args.rounds, "rows": rows}
        else:
            result = measure_bytes(args)
            print("the same bytes" if result["same_bytes"] else "OTHER BYTES", result)
        document[part] = {"command": common.command("shards.py", words), "environment": environment()} | result
        common.save("shards", document)
        common.fill_page(part, calls_table(document[part]) if part == "calls" else bytes_sentence(document[part]))
    if not document.get("bytes", {}).get("same_bytes", True):
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
