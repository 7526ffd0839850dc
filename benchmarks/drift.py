"""Why a mean drift helps a forecast and not reuse: errors of features, of the model's output, and of the samples.

    python benchmarks/drift.py [--samples 32] [--threads 1]                five minutes on one core

On the bundled digits model one step of 20 is skipped, by reuse, by EOC's additive form with theta 1, by a straight line
(Taylor 1), and by both. Writes benchmarks/results/drift.json and the table between the markers in docs/methods/eoc.md.
Needs `make statistics`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import common
import torch
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


class Recording:
    """One generation, recorded at one step.

    features: of every site at the step.
    output: the model's guided prediction at the step.
    images: of the generation.
    """

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

        def store(site: int, compute: Any, /, *args: Any, **kwargs: Any) -> Tensor:
            feature = compute(*args, **kwargs)
            if self.calls + 1 == step:
                self.features[site] = feature.clone()
            return feature

        handle = model.register_forward_hook(watch)
        try:
            if plan is None:
                with mounted(layout(model).forwards(store, None)):
                    self.images = source.generate(labels, how)
            else:
                with fc.apply(source.target, plan):
                    self.images = source.generate(labels, how)
        finally:
            handle.remove()


def rms(value: Tensor) -> float:
    """The root mean square."""
    return value.double().square().mean().sqrt().item()


def measure(source: Digits, labels: list[int], step: int, stats: fc.Statistics) -> dict[str, Any]:
    """The errors of one skipped step under each plan."""
    grid = fc.grid(source.target, STEPS)
    base = fc.explicit(skip=[step])
    plans = {
        "reuse": base,
        "reuse + EOC": fc.eoc(base, stats, 1.0, form="additive", judge="all"),
        "Taylor 1": fc.taylorseer(base, 1),
        "Taylor 1 + EOC": fc.eoc(fc.taylorseer(base, 1), stats, 1.0, form="additive", judge="all"),
    }
    truth, before = Recording(source, labels, step, None), Recording(source, labels, step - 1, None)
    count = len(labels)
    own = drifted = 0.0
    for site, feature in truth.features.items():
        change = (feature - before.features[site])[:count]
        drift = stats.means[site][step] - stats.means[site][step - 1]
        own += change.double().square().sum().item()
        drifted += (change - drift).double().square().sum().item()
    row: dict[str, Any] = {"features": (drifted / own) ** 0.5, "output": {}, "psnr": {}}
    for name, method in plans.items():
        recording = Recording(source, labels, step, method.plan(grid))
        row["output"][name] = rms(recording.output - truth.output)
        row["psnr"][name] = psnr(recording.images, truth.images).mean().item()
    return row


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--samples", type=int, default=32, help="digits of a run")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args(words)
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
        lines.append(f"| output error, {name} over reuse | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    for name in names:
        values = " | ".join(f"{row['psnr'][name]:.1f}" for row in rows.values())
        lines.append(f"| PSNR of the samples, {name} | {values} |")
    place = environment()
    note = (
        f"digits, DDIM-{STEPS}, guidance {DIGITS.guidance}, {args.samples} samples. Errors are root mean squares "
        f"over the conditional halves (features) and the guided prediction (output). "
        f"{common.machine(place)}."
    )
    common.fill_page("drift", [*lines, "", note])
    common.save("drift", {"command": common.command("drift.py", words), "environment": place, "steps": rows})
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
