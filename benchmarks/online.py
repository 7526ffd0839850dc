"""Rules that decide while a plan runs, beside static plans of the same number of computed steps, on digits.

    python benchmarks/online.py                            100 held-out samples, 10 and 7 computed of 20 (an hour)
    python benchmarks/online.py --samples 6 --budgets 10   a look

Thresholds are set on other samples (``--calibration``) to the mean number of computed steps, sample by sample, as
each decides alone. Then every method samples the held-out ones at the guidance that thresholds, TeaCache's polynomial
and the tuned plan are for, and at another. PSNR is to the samples without a cache at the same setting; differences are
paired with reuse on evenly spread steps. Writes benchmarks/results/online-digits.json.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import common
import torch

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.evaluate import psnr
from forecache.sampling import sources
from forecache.sampling.sources import Sampling

STEPS, GUIDANCE, OTHER, SEED, HELD_OUT = 20, 1.5, 4.0, 0, 1000
MOST = 80.0


def rules(coefficients: Sequence[float]) -> dict[str, fc.Method]:
    """The rules, with thresholds where the search for them starts."""
    return {
        "fbcache": fc.fbcache(0.2, last=1),
        "teacache": fc.teacache(0.3, coefficients),
        "easycache": fc.easycache(0.2, first=2),
        "seacache": fc.seacache(0.3, max_gap=4),
        "dicache": fc.dicache(0.1, first=2),
    }


def methods(source: Any, conditions: Sequence[int], budget: int, tries: int) -> dict[str, fc.Method | fc.Plan]:
    """Every method at this number of computed steps: static ones, rules, and `adaptive` on the tuned plan's steps."""
    fits = fc.fit.measure_rules(source, conditions, num_steps=STEPS, guidance=GUIDANCE, seed=SEED + 1)
    even = fc.methods.spread(STEPS / budget)
    made: dict[str, fc.Method | fc.Plan] = {"even": even, "even, Taylor 1": fc.taylorseer(even, 1)}
    tuned = fc.Plan.load(zoo.record("digits").tuned_path(budget))
    made["tuned"] = tuned
    pattern = "".join("#" if cell.computed else "." for cell in tuned.rows[0])
    listed = fc.explicit(pattern=pattern)
    made["the tuned steps, Taylor 1"] = fc.taylorseer(listed, 1)
    how: dict[str, Any] = {"guidance": GUIDANCE, "seed": SEED + 1, "num_steps": STEPS, "tries": tries}
    for name, rule in rules(fits.coefficients).items():
        found = fc.fit.threshold_for(rule, source, conditions, computed=budget, **how)
        print(f"{name}: threshold {found.threshold:.4g} for {found.computed:g} steps", flush=True)
        made[name] = found.method
        made[f"{name}, Taylor 1"] = fc.taylorseer(found.method, 1)
    corrected = fc.adaptive(pattern, fits.changes, budget=budget)
    made["adaptive, Taylor 1"] = fc.taylorseer(corrected, 1)
    return made


def measured(source: Any, method: fc.Method | fc.Plan, how: Sampling, bare: Sequence[torch.Tensor]) -> dict[str, Any]:
    """PSNR and computed steps of every held-out sample, each sampled alone."""
    near, computed = [], []
    num_steps = None if isinstance(method, fc.Plan) else STEPS
    with fc.apply(source.target, method, num_steps=num_steps) as session:
        for number, uncached in enumerate(bare):
            image = source.generate([number % 10], how, HELD_OUT + number)
            near.append(psnr(image, uncached).clamp_max(MOST).item())
            rows = session.decided().rows
            computed.append(sum(all(cell.computed for cell in cells) for cells in zip(*rows, strict=True)))
    return {"psnr": near, "computed": computed}


def row(name: str, figures: Mapping[str, Sequence[float]], even: Sequence[float]) -> dict[str, Any]:
    """A row of the table: means, the worst twentieth, the spread of computed steps, the paired difference."""
    near, computed = figures["psnr"], figures["computed"]
    worst = sorted(near)[: max(1, len(near) // 20)]
    gains = [own - other for own, other in zip(near, even, strict=True)]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return {
        "name": name, "psnr": statistics.mean(near), "worst": statistics.mean(worst),
        "computed": statistics.mean(computed), "fewest": min(computed), "most": max(computed),
        "gain": statistics.mean(gains), "gain_error": error,
    }  # fmt: skip


def measure(samples: int, calibration: int, budgets: Sequence[int], tries: int) -> list[dict[str, Any]]:
    source = sources.as_source(zoo.load_digits())
    conditions = [number % 10 for number in range(calibration)]
    rows: list[dict[str, Any]] = []
    for budget in budgets:
        made = methods(source, conditions, budget, tries)
        for guidance in (GUIDANCE, OTHER):
            how = Sampling(STEPS, guidance, SEED)
            bare = [source.generate([number % 10], how, HELD_OUT + number) for number in range(samples)]
            even: Sequence[float] = ()
            for name, method in made.items():
                figures = measured(source, method, how, bare)
                even = even or figures["psnr"]
                rows.append({"budget": budget, "guidance": guidance, **row(name, figures, even)})
                print({key: round(value, 2) if isinstance(value, float) else value
                       for key, value in rows[-1].items()}, flush=True)  # fmt: skip
    return rows


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--samples", type=int, default=100, help="held-out samples of a row")
    parser.add_argument("--calibration", type=int, default=20, help="samples that thresholds are set on")
    parser.add_argument("--budgets", type=int, nargs="+", default=[10, 7], help="computed steps of 20")
    parser.add_argument("--tries", type=int, default=8, help="thresholds that are tried for a rule")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    about = {"command": common.command("online.py", words), "environment": environment()}
    counts = {"samples": args.samples, "calibration": args.calibration}
    rows = measure(args.samples, args.calibration, args.budgets, args.tries)
    common.save("online-digits", about | counts | {"rows": rows})


if __name__ == "__main__":
    main(sys.argv[1:])
