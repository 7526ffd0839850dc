"""A plan that was tuned at one guidance and number of steps, applied at others, beside what needs no tuning.

    python benchmarks/transfer.py                  digits, the shipped plans of 10 and 7 computed steps (ten minutes)
    python benchmarks/transfer.py --samples 20     a quicker look

At other guidance the plan runs as it is. At another number of steps it is stretched (`forecache.methods.resampled`);
fitted weights are for the steps that they were fitted to, so GOC or Taylor with the plan's feedback takes their place.
Writes benchmarks/results/transfer-digits.json and the tables between the markers in docs/measured/tuned-plans.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import common
import torch

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.evaluate import psnr
from forecache.sampling import sources
from forecache.sampling.sources import Sampling, in_batches

TUNED_AT = (20, 1.5)
GUIDANCES = (1.0, 1.5, 3.0, 5.0)
STEPS = (10, 15, 20, 30, 50)
COUNTS = (10, 7)
MOST, SEED, BATCH = 80.0, 0, 100


def untuned(interval: int) -> dict[str, fc.Method]:
    """The methods that need no tuning, at an interval."""
    base = fc.fora(interval)
    return {
        f"GOC 0.8, N = {interval}": fc.goc(base, 0.8),
        f"Taylor 2, N = {interval}": fc.taylorseer(base, 2),
    }


def stretched(plan: fc.Plan, num_steps: int, order: int = 1) -> dict[str, fc.Plan]:
    """The plan at another number of steps: stretched if it can be, else its schedule under Taylor with feedback."""
    pattern = "".join("#" if cell.computed else "." for cell in plan.rows[0])
    plans: dict[str, fc.Plan] = {}
    if num_steps == plan.num_steps:
        return {"tuned": plan}
    try:
        plans["tuned, stretched"] = fc.methods.resampled(plan, num_steps)
    except fc.errors.PlanError:
        base = fc.methods.resampled(fc.explicit(pattern=pattern).plan(plan.grid), num_steps)
        steps = "".join("#" if cell.computed else "." for cell in base.rows[0])
        for strength in (0.5, 0.8):
            method = fc.feedback(fc.explicit(pattern=steps), order, strength)
            plans[f"its schedule stretched, Taylor {order}, feedback {strength:g}"] = method.plan(base.grid)
    return plans


def measure(samples: int) -> list[dict[str, object]]:
    """A row for each setting and plan."""
    source = sources.as_source(zoo.load_digits())
    labels = [number % 10 for number in range(samples)]
    settings = [(TUNED_AT[0], guidance) for guidance in GUIDANCES]
    settings += [(steps, TUNED_AT[1]) for steps in STEPS if steps != TUNED_AT[0]]
    rows: list[dict[str, object]] = []
    for num_steps, guidance in settings:
        how, grid = Sampling(num_steps, guidance, SEED), fc.grid(source.target, num_steps)
        uncached = in_batches(source, labels, how, BATCH)
        for count in COUNTS:
            plans = stretched(fc.Plan.load(zoo.record("digits").tuned_path(count)), num_steps)
            plans |= {name: method.plan(grid) for name, method in untuned(-(-TUNED_AT[0] // count)).items()}
            for name, plan in plans.items():
                with fc.apply(source.target, plan):
                    images = in_batches(source, labels, how, BATCH)
                near = psnr(images, uncached).clamp_max(MOST).mean().item()
                computed = sum(cell.computed for cell in plan.rows[0])
                rows.append(
                    {"steps": num_steps, "guidance": guidance, "plan": count, "name": name, "computed": computed,
                     "psnr": near}
                )  # fmt: skip
                print(
                    f"{num_steps} steps, guidance {guidance:g}, {name}: {computed} computed, {near:.2f} dB", flush=True
                )
    return rows


def table(rows: list[dict[str, object]]) -> list[str]:
    """A line for each setting and plan, the best PSNR in bold."""
    lines = ["| steps | guidance | plan tuned at 20 steps, 1.5 | PSNR, dB | without tuning | PSNR, dB |"]
    lines.append("|---|---|---|---|---|---|")
    keys = dict.fromkeys((row["steps"], row["guidance"], row["plan"]) for row in rows)
    for key in keys:
        here = [row for row in rows if (row["steps"], row["guidance"], row["plan"]) == key]
        tuned, plain = ([row for row in here if ("N =" in str(row["name"])) is is_plain] for is_plain in (False, True))
        ours, theirs = (max(group, key=_psnr) for group in (tuned, plain))
        cells = [_cells(row, _psnr(row) >= max(_psnr(ours), _psnr(theirs))) for row in (ours, theirs)]
        lines.append(f"| {key[0]} | {key[1]:g} | {' | '.join(cells)} |")
    return lines


def _cells(row: Mapping[str, object], best: bool) -> str:
    figure = f"{_psnr(row):.2f}"
    name = f"{row['plan']} of 20: {row['name']}" if "N =" not in str(row["name"]) else row["name"]
    return f"{name} ({row['computed']} computed) | {f'**{figure}**' if best else figure}"


def _psnr(row: Mapping[str, object]) -> float:
    return float(str(row["psnr"]))


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--samples", type=int, default=200, help="digits of a row")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    rows = measure(args.samples)
    place = environment()
    about = {"command": common.command("transfer.py", words), "environment": place, "samples": args.samples}
    common.save("transfer-digits", about | {"rows": rows})
    note = (
        f"digits, DDIM, {args.samples} samples of seed {SEED}, PSNR to the samples without a cache at the same "
        f"setting; the best plan of each kind. {common.machine(place, 'diffusers')}."
    )
    common.fill_page("table transfer", [*table(rows), "", note])


if __name__ == "__main__":
    main(sys.argv[1:])
