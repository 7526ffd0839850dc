"""GOC's gate on the bundled models: none, position alone, N alone, both; and the paper's queue in longer gaps.

    python benchmarks/gates.py                     half an hour on one core; it continues after an interruption
    python benchmarks/gates.py --samples 50        fewer samples

The gate's gamma and threshold are what the bundled statistics propose (`forecache.parts.gates.proposed`). Equal plans
are sampled once. The rows of the paper's queue take fewer samples, the first ones of the others. Writes
benchmarks/results/gates.json and the table of docs/methods/goc.md.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import common
import torch

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.evaluate import psnr
from forecache.parts import gates
from forecache.sampling import sources
from forecache.zoo.open import open_source

MODELS, INTERVALS, STEPS, SEED = ("digits", "digits-text"), (2, 3, 4), 20, 7
PAPERS_QUEUE = "paper's queue"
"""The rows that take fewer samples: they differ from the others by 10 dB."""


def methods(stats: fc.Statistics, interval: int) -> dict[str, fc.Method]:
    """The rows of one interval."""
    base = fc.fora(interval)
    rows = {
        "reuse": base,
        "no gate": fc.goc(base, 0.8),
        "position alone": fc.goc(base, 0.8, gate=gates.proposed(stats, 1.0)),
        "N alone": fc.goc(base, 0.8, gate=gates.proposed(stats, 0.0)),
        "both": fc.goc(base, 0.8, stats=stats),
    }
    if interval > 2:
        rows[f"{PAPERS_QUEUE}, no gate"] = fc.goc(base, 0.8, gaps="paper")
        rows[f"{PAPERS_QUEUE}, both"] = fc.goc(base, 0.8, gaps="paper", stats=stats)
    return rows


def measure(name: str, samples: int, few: int, document: dict[str, Any]) -> None:
    """PSNR of every row of a model; each is written when it is known."""
    source = open_source(name, "cpu")
    stats = fc.Statistics.load(zoo.record(name).statistics_path(STEPS))
    cycle = sources.all_conditions(source)
    conditions = [cycle[index % len(cycle)] for index in range(samples)]
    how = sources.Sampling(STEPS, sources.own_guidance(source), SEED)
    gate = gates.proposed(stats)
    model = document["models"].setdefault(name, {"gamma": gate.gamma, "threshold": gate.threshold, "plans": {}})
    uncached: list[torch.Tensor] = []
    for interval in INTERVALS:
        for row, method in methods(stats, interval).items():
            plan = method.plan(fc.grid(source.target, STEPS))
            key = hashlib.sha256(repr(plan.rows).encode()).hexdigest()[:16]
            if key not in model["plans"]:
                if not uncached:
                    uncached.append(sources.in_batches(source, conditions, how, 16))
                wanted = conditions[: few if row.startswith(PAPERS_QUEUE) else samples]
                with fc.apply(source.target, plan):
                    images = sources.in_batches(source, wanted, how, 16)
                closeness = psnr(images, uncached[0][: len(wanted)]).clamp_max(100)
                error = closeness.std().item() / len(wanted) ** 0.5
                model["plans"][key] = {"psnr": closeness.mean().item(), "error": error, "samples": len(wanted)}
            model.setdefault("rows", {}).setdefault(row, {})[str(interval)] = key
            common.save("gates", document)
            print(f"{name}, N = {interval}, {row}: {cell(model['plans'][key])} dB", flush=True)


def cell(figures: Mapping[str, float]) -> str:
    """The mean and its standard error."""
    return f"{figures['psnr']:.2f} ± {figures['error']:.2f}"


def table(document: Mapping[str, Any]) -> list[str]:
    """A line a row, PSNR by model and interval."""
    columns = [(name, interval) for name in document["models"] for interval in INTERVALS]
    lines = [f"| GOC 0.8 | {' | '.join(f'{name}, N = {interval}' for name, interval in columns)} |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for row in next(iter(document["models"].values()))["rows"]:
        cells = []
        for name, interval in columns:
            model = document["models"][name]
            key = model["rows"].get(row, {}).get(str(interval))
            cells.append(cell(model["plans"][key]) if key else "")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    proposals = ", ".join(
        f"{name} {model['gamma']:.3f} and {model['threshold']:.3f}" for name, model in document["models"].items()
    )
    return [
        *lines,
        "",
        f"PSNR in dB to the uncached samples, mean and standard error of {document['samples']} samples of seed {SEED} "
        f"({document['few']} for the paper's queue), {STEPS} steps, FORA N. Proposed gamma and threshold: {proposals}. "
        f"{common.machine(document['environment'], 'diffusers')}.",
    ]


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--samples", type=int, default=500, help="samples of a row")
    parser.add_argument("--few", type=int, default=100, help="samples of a row of the paper's queue")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    document = common.load("gates")
    if (document.get("samples"), document.get("few")) != (args.samples, args.few):
        command = common.command("gates.py", words)
        document = {"command": command, "samples": args.samples, "few": args.few, "models": {}}
    document["environment"] = environment()
    for name in MODELS:
        measure(name, args.samples, args.few, document)
    common.save("gates", document)
    common.fill_page("gates", table(document))


if __name__ == "__main__":
    main(sys.argv[1:])
