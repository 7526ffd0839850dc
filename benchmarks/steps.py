"""What a step costs: bare model, a plan that computes everything, a step that skips everything.

    python benchmarks/steps.py [--layers 28 --heads 4 --head-dim 32 --tokens 64 --batch 2] [--rounds 30]

A random DiT of the given shape, one CPU thread unless --threads says otherwise. Steps of all kinds are timed in turn in
one process; ratios of medians count. Also: what `import forecache` takes after `import torch`, in fresh interpreters.
Writes benchmarks/results/steps.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel

import forecache as fc
from forecache.environment import environment

RESULT = Path(__file__).resolve().parent / "results" / "steps.json"


def build(args: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    side = int(args.tokens**0.5)
    return DiTTransformer2DModel(
        num_attention_heads=args.heads,
        attention_head_dim=args.head_dim,
        in_channels=4,
        num_layers=args.layers,
        sample_size=2 * side,
        patch_size=2,
    ).eval()


def import_seconds() -> float:
    """Median seconds of `import forecache` after `import torch`, over five fresh interpreters."""
    program = "import time, torch; t = time.perf_counter(); import forecache; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, check=True) for _ in range(5)]
    return statistics.median(float(run.stdout) for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"layers": 28, "heads": 4, "head-dim": 32, "tokens": 64, "batch": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = build(args)
    steps = 8
    grid = fc.grid(model, steps)
    full = fc.explicit(compute=range(steps)).plan(grid)
    reuse = fc.explicit(compute=[0, 1]).plan(grid)
    goc = fc.goc(fc.explicit(compute=[0, 1]), 0.8, history="computed").plan(grid)
    size = model.config.sample_size
    x, y = torch.randn(args.batch, 4, size, size), torch.zeros(args.batch, dtype=torch.long)

    @torch.no_grad()
    def one_run(watch: Callable[[int, float], None]) -> None:
        for step in range(steps):
            t = torch.full((args.batch,), 1000 - step)
            started = time.perf_counter()
            model(x, timestep=t, class_labels=y)
            watch(step, time.perf_counter() - started)

    seconds: dict[str, list[float]] = {"bare": [], "computed": [], "reused": [], "goc": []}
    kinds = [("bare", None), ("computed", full), ("reused", reuse), ("goc", goc)]
    for turn in range(args.rounds + 2):
        for kind, plan in kinds:
            measured: list[float] = []
            with fc.apply(model, plan) if plan is not None else nullcontext():
                one_run(lambda step, s, measured=measured: measured.append(s) if step >= 2 else None)
            if turn >= 2:
                seconds[kind] += measured
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    ratios = {kind: value / medians["bare"] for kind, value in medians.items()}
    for kind, value in medians.items():
        print(f"{kind:9} {value * 1e3:8.3f} ms  {ratios[kind]:7.2%} of the bare step")
    document = {
        "command": "python benchmarks/steps.py " + " ".join(sys.argv[1:]),
        "environment": environment(),
        "model": {name: getattr(args, name) for name in ("layers", "heads", "head_dim", "tokens", "batch")},
        "median_ms": {kind: value * 1e3 for kind, value in medians.items()},
        "of_bare": ratios,
        "import_seconds": import_seconds(),
    }
    RESULT.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
