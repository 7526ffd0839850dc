"""Why a mean drift helps a forecast and not reuse: the errors of features, of the model's output, and of the samples.

    python benchmarks/drift.py [--samples 32] [--threads 1]

On the bundled digits model one step of 20 is skipped, by reuse, by EOC's additive form with theta 1, by a straight line
(Taylor 1), and by both. Writes benchmarks/results/drift.json and the table between the markers in docs/methods/eoc.md.
Needs `make statistics`.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch
from digits import ROOT, fill
from quality import DIGITS, TABLES, per_token
from torch import Tensor

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.evaluate import psnr
from forecache.models.find import find, layout
from forecache.models.mount import mounted
from forecache.sampling.sources import Sampling
from forecache.zoo.digits import Digits

SKIPPED = (3, 6, 9, 12, 15, 18)

STEPS = TABLES["corrections"].steps


class Watched:
    """One generation: the features of every site at the chosen step, the model's outputs at it, and the images."""

    def __init__(self, source: Digits, labels: list[int], step: int, plan: fc.Plan | None) -> None:
        self.features: dict[int, Tensor] = {}
        self.calls = -1
        self.output = torch.empty(0)
        model = find(source.target)
        how = Sampling(STEPS, DIGITS.guidance, 5)

        def watch(module: Any, args: Any, output: Any) -> None:
            self.calls += 1
            if self.calls == step:
                conditional, unconditional = output[0].chunk(2)
                self.output = unconditional + DIGITS.guidance * (conditional - unconditional)

        def keep(site: int, compute: Any, /, *args: Any, **kwargs: Any) -> Tensor:
            feature = compute(*args, **kwargs)
            if self.calls + 1 == step:
                self.features[site] = feature.clone()
            return feature

        handle = model.register_forward_hook(watch)
        try:
            if plan is None:
                with mounted(layout(model).forwards(keep, None)):
                    self.images = source.generate(labels, how)
            else:
                with fc.apply(source.target, plan):
                    self.images = source.generate(labels, how)
        finally:
            handle.remove()


def rms(value: Tensor) -> float:
    return value.double().square().mean().sqrt().item()


def measure(source: Digits, labels: list[int], step: int, stats: fc.Statistics) -> dict[str, Any]:
    grid = fc.grid(source.target, STEPS)
    base = fc.explicit(skip=[step])
    plans = {
        "reuse": base,
        "reuse + EOC": fc.eoc(base, stats, 1.0, form="additive", judge="all"),
        "Taylor 1": fc.taylorseer(base, 1),
        "Taylor 1 + EOC": fc.eoc(fc.taylorseer(base, 1), stats, 1.0, form="additive", judge="all"),
    }
    truth, before = Watched(source, labels, step, None), Watched(source, labels, step - 1, None)
    count = len(labels)
    own = drifted = 0.0
    for site, feature in truth.features.items():
        change = (feature - before.features[site])[:count]
        drift = stats.means[site][step] - stats.means[site][step - 1]
        own += change.double().square().sum().item()
        drifted += (change - drift).double().square().sum().item()
    row: dict[str, Any] = {"features": (drifted / own) ** 0.5, "output": {}, "psnr_db": {}}
    for name, method in plans.items():
        found = Watched(source, labels, step, method.plan(grid))
        row["output"][name] = rms(found.output - truth.output)
        row["psnr_db"][name] = psnr(found.images, truth.images).mean().item()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source = zoo.load_digits()
    stats, labels = per_token(), [index % 10 for index in range(args.samples)]
    rows = {step: measure(source, labels, step, stats) for step in SKIPPED}
    names = list(rows[SKIPPED[0]]["output"])
    lines = [
        "| the step that is skipped | " + " | ".join(map(str, rows)) + " |",
        "|---" * (len(rows) + 1) + "|",
        "| feature error, reuse + EOC over reuse | " + " | ".join(f"{r['features']:.2f}" for r in rows.values()) + " |",
    ]
    for name in names[1:]:
        ratios = [row["output"][name] / row["output"]["reuse"] for row in rows.values()]
        lines.append(f"| output error, {name} over reuse | " + " | ".join(f"{each:.2f}" for each in ratios) + " |")
    for name in names:
        values = " | ".join(f"{row['psnr_db'][name]:.1f}" for row in rows.values())
        lines.append(f"| PSNR of the samples, {name} | {values} |")
    place = environment()
    note = (
        f"digits, DDIM-{STEPS}, guidance {DIGITS.guidance}, {args.samples} samples. Errors are root mean squares "
        f"over the conditional halves (features) and the guided prediction (output). {place['cpu']}, torch "
        f"{place['torch']}."
    )
    fill(ROOT / "docs/methods/eoc.md", "drift", [*lines, "", note])
    document = {"command": "python benchmarks/drift.py " + " ".join(sys.argv[1:]), "environment": place, "steps": rows}
    (ROOT / "benchmarks/results/drift.json").write_text(json.dumps(document, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
