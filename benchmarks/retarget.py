"""What a retargeted plan loses to a tuning for the new setting, and what both cost.

    python benchmarks/retarget.py
    python benchmarks/retarget.py --show                    the table again, from the record

digits, tuned for 20 DDIM steps with 10 computed, at guidance 1.5, by PSNR to no cache and without refinement; then
`fc.retarget` to 30 steps, and to guidance 4, beside a tuning for each of them. PSNR in dB to no cache, mean over
held-out samples; costs in images of the new setting. No time is measured, so that it may run beside other work. Writes
benchmarks/results/retarget.json and the table in docs/tuning.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import common
import numpy as np
import torch

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.evaluate import psnr
from forecache.fit.tuning import Tuned
from forecache.sampling.sources import Sampling, as_source, in_batches

NAME, SEED = "retarget", 4000
STEPS, GUIDANCE, SHARE = 20, 1.5, 1 / 2
SETTINGS = ((30, 1.5), (20, 4.0))
"""Steps and guidance of the new settings."""


def measured(samples: int, schedules: int, held_out: int) -> dict[str, Any]:
    """The rows of every setting."""
    source = as_source(zoo.load_digits())
    given = [(3 * number + 1) % 10 for number in range(samples)]
    conditions = [number % 10 for number in range(held_out)]

    def tuned(num_steps: int, guidance: float) -> Tuned:
        return fc.tune(
            source,
            given,
            num_steps=num_steps,
            guidance=guidance,
            budget=fc.fit.Calls(round(SHARE * num_steps)),
            reference="own",
            number=schedules,
            refining=False,
        )

    first, rows = tuned(STEPS, GUIDANCE), []
    for num_steps, guidance in SETTINGS:
        full = tuned(num_steps, guidance)
        again = fc.retarget(first, source, given, num_steps=num_steps, guidance=guidance)
        how = Sampling(num_steps, guidance, SEED)
        bare = in_batches(source, conditions, how, 32)
        row: dict[str, Any] = {"num_steps": num_steps, "guidance": guidance, "before": first.images}
        even = fc.taylorseer(fc.fora(2), 1).plan(fc.grid(source.target, num_steps))
        plans = {"tuned": (full.plan, full.images), "retargeted": (again.plan, again.images), "even": (even, 0.0)}
        for name, (plan, cost) in plans.items():
            with fc.apply(source.target, plan):
                decibels = psnr(in_batches(source, conditions, how, 32), bare).clamp_max(100)
            row[name] = {"psnr": [round(float(value), 3) for value in decibels], "images": cost}
        rows.append(row)
        print(row, flush=True)
    return {
        "samples": samples,
        "held_out": held_out,
        "rows": rows,
        "command": common.command("retarget.py", sys.argv[1:]),
        "environment": environment(),
    }


def table(record: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the page."""
    yield "| digits, half of the steps computed | tuned for it | retargeted | lost | Taylor 1, every second step |"
    yield "|---|---|---|---|---|"
    for row in record["rows"]:
        tuned, again, even = (row[name] for name in ("tuned", "retargeted", "even"))
        lost = np.array(tuned["psnr"]) - np.array(again["psnr"])
        yield (
            f"| {row['num_steps']} steps, guidance {row['guidance']:g} | {np.mean(tuned['psnr']):.1f} dB, "
            f"{tuned['images']:.0f} images | {np.mean(again['psnr']):.1f} dB, {again['images']:.0f} images | "
            f"{lost.mean():+.1f} dB (se {lost.std(ddof=1) / len(lost) ** 0.5:.1f}) | {np.mean(even['psnr']):.1f} dB |"
        )
    yield ""
    yield (
        f"From a plan for {STEPS} steps at guidance {GUIDANCE:g}; PSNR to no cache on {record['held_out']} held-out "
        f"samples, searched on {record['samples']}. `{record['command']}`; "
        f"{common.machine(record['environment'], 'diffusers')}."
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--schedules", type=int, default=12)
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.show:
        common.save(NAME, measured(args.samples, args.schedules, args.held_out))
    common.fill_page(NAME, list(table(common.load(NAME))))


if __name__ == "__main__":
    main()
