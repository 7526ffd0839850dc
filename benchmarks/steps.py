"""Cost of a step: the bare model, a plan that computes everything, and steps that skip everything.

    python benchmarks/steps.py                                       a minute on one core
    python benchmarks/steps.py --layers 12 --heads 6 --rounds 10     another shape

A random DiT of the given shape. Steps of all kinds are timed in alternating rounds in one process. Also: the seconds of
`import forecache` after `import torch`, in fresh interpreters. Writes benchmarks/results/steps.json.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import common
import torch
from diffusers import DiTTransformer2DModel

import forecache as fc
from forecache.environment import environment
from forecache.sampling.timing import alternate, seconds_of

STEPS, FIRST = 8, 2
"""Steps of a run, and the first of them that counts."""


def build(args: argparse.Namespace) -> Any:
    """A random DiT of the shape that the arguments give."""
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


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    for name, default in {"layers": 28, "heads": 4, "head-dim": 32, "tokens": 64, "batch": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=30, help="timed rounds, after two to warm up")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    model = build(args)
    grid = fc.grid(model, STEPS)
    plans = {
        "bare": None,
        "computed": fc.explicit(compute=range(STEPS)).plan(grid),
        "reused": fc.explicit(compute=[0, 1]).plan(grid),
        "goc": fc.goc(fc.explicit(compute=[0, 1]), 0.8, history="computed").plan(grid),
    }
    size = model.config.sample_size
    x, y = torch.randn(args.batch, 4, size, size), torch.zeros(args.batch, dtype=torch.long)

    @torch.no_grad()
    def run(kind: str) -> list[float]:
        """The seconds of the steps that count."""
        plan = plans[kind]
        timesteps = [torch.full((args.batch,), 1000 - step) for step in range(STEPS)]
        with fc.apply(model, plan) if plan is not None else nullcontext():
            seconds = [seconds_of(partial(model, x, timestep=t, class_labels=y)) for t in timesteps]
        return seconds[FIRST:]

    rounds = alternate({kind: partial(run, kind) for kind in plans}, args.rounds, warmup=2)
    medians = {kind: statistics.median(itertools.chain(*runs)) for kind, runs in rounds.items()}
    ratios = {kind: median / medians["bare"] for kind, median in medians.items()}
    for kind, median in medians.items():
        print(f"{kind:9} {median * 1e3:8.3f} ms  {ratios[kind]:7.2%} of the bare step")
    common.save(
        "steps",
        {
            "command": common.command("steps.py", words),
            "environment": environment(),
            "model": {name: getattr(args, name) for name in ("layers", "heads", "head_dim", "tokens", "batch")},
            "median_ms": {kind: median * 1e3 for kind, median in medians.items()},
            "of_bare": ratios,
            "import_seconds": import_seconds(),
        },
    )


if __name__ == "__main__":
    main(sys.argv[1:])
