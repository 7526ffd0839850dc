"""What computed model calls are best spent on: plans, other tuners and samplers without a cache, side by side.

    python benchmarks/budgets.py --model digits --calls 10 --calls 7 --held-out 16
    python benchmarks/budgets.py --show                             the table again, from the record

Rows of a model and a number of calls, each with its PSNR in dB to the converged samples of the same noise and to the
pipeline's own run without a cache, mean over held-out samples, and with what its search cost in images without a cache:

    tuned            `fc.tune` over samplers (own, DPM-Solver++, UniPC), on --samples samples, without refinement
    quick            `fc.tune(..., quick=True)` over the same samplers
    DPCache's rule   the schedule that dynamic programming finds over the errors of reusing the last feature, with reuse
    annealed         a schedule with reuse by simulated annealing on the error of the final images, as BudCache searches
    SeaCache, TeaCache   these rules, at the threshold with which they compute as many steps in the mean
    even, Taylor 1   evenly spread steps
    NAME, no cache   a sampler without a cache

`--samples` and `--held-out` set what a run costs; no time is measured, so that it may run beside other work. The
differences to the best sampler without a cache are paired, and have a
standard error. A model and a number of calls that are in benchmarks/results/budgets.json are not measured again. Writes
that file, with command, hardware and versions, and the table in docs/tuning.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import common
import numpy as np
import torch

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.evaluate import psnr
from forecache.fit.tuning.gram import measure_gram
from forecache.fit.tuning.optimal import OptimalSchedules
from forecache.fit.tuning.samplers import SamplerRun, schedulers, steps_for
from forecache.parts.forecasts import Reuse
from forecache.parts.grid import Grid
from forecache.sampling.sources import Condition, Sampling, Source, all_conditions, as_source, in_batches

STEPS, SEED, LONGEST = 20, 4000, 8
SAMPLERS = ("own", "dpmsolver++", "unipc")
UNCACHED = (*SAMPLERS, "euler", "heun")
NAME = "budgets"
TRIES = 6
"""Thresholds that are tried for a rule."""
ANNEALED, HOT, COLD = 60, 0.3, 0.02
"""Schedules that annealing samples with, and its first and last temperature, of the logarithm of the error."""


@dataclass
class Bench:
    """A model with its held-out samples, and the rows so far."""

    source: Source
    guidance: float
    conditions: list[Condition]
    rows: list[dict[str, object]]

    def __post_init__(self) -> None:
        how = Sampling(STEPS, self.guidance, SEED)
        self.own = in_batches(self.source, self.conditions, how, 32)
        best = fc.sampling.converged(self.source, self.conditions, num_steps=STEPS, guidance=self.guidance, seed=SEED)
        self.converged, self.run = best.images, str(best.run)

    def add(self, name: str, text: str, images: torch.Tensor, search: float) -> None:
        """A row of these images of the held-out samples."""
        decibels = psnr(images, self.converged).clamp_max(100)
        own = float(psnr(images, self.own).clamp_max(100).mean())
        to_converged = [round(float(value), 3) for value in decibels]
        row = {"name": name, "plan": text, "search": search, "converged": to_converged, "own": round(own, 3)}
        self.rows.append(row)
        print(f"{name:24}{float(decibels.mean()):7.2f} {own:7.2f}  {search:5.0f}  {text}", flush=True)

    def decided(self, name: str, rule: fc.Method, calls: int, given: list[Condition], fitting: float) -> None:
        """A row of a rule that decides for each sample, at so many computed steps in the mean. fitting: its images."""
        found = fc.fit.threshold_for(
            rule, self.source, given, computed=calls, num_steps=STEPS, guidance=self.guidance, seed=1000, tries=TRIES
        )
        with fc.apply(self.source.target, found.method, num_steps=STEPS):
            images = in_batches(self.source, self.conditions, Sampling(STEPS, self.guidance, SEED), 1)
        search = fitting + TRIES * len(given) * calls / STEPS
        self.add(name, f"threshold {found.threshold:.3g}, {found.computed:g} steps when set", images, search)

    def planned(self, name: str, plan: fc.Plan, search: float, text: str) -> None:
        """A row of a plan."""
        steps = plan.sampler.num_steps if plan.sampler is not None else plan.num_steps
        with fc.apply(self.source.target, plan):
            images = in_batches(self.source, self.conditions, Sampling(steps, self.guidance, SEED), 32)
        self.add(name, text, images, search)


def annealed(source: Source, given: list[Condition], how: Sampling, start: str, grid: Grid) -> str:
    """The schedule with reuse that simulated annealing finds, by the mean squared error of the final images."""
    rng, calls = np.random.default_rng(0), start.count("#")
    bare = in_batches(source, given, how, 32)

    def error(pattern: str) -> float:
        with fc.apply(source.target, fc.explicit(pattern=pattern).plan(grid)):
            return float((in_batches(source, given, how, 32) - bare).double().square().mean())

    best = here = (error(start), start)
    for temperature in np.geomspace(HOT, COLD, ANNEALED):
        computed = set(fc.parts.patterns.computed(here[1]))
        out = int(rng.choice(sorted(computed - {0})))
        put = int(rng.choice([step for step in range(1, STEPS) if step not in computed]))
        other = fc.parts.patterns.from_steps(computed - {out} | {put}, STEPS)
        assert other.count("#") == calls
        moved = (error(other), other)
        if np.log(moved[0] / here[0]) < -temperature * np.log(rng.uniform()):
            here = moved
        best = min(best, here)
    return best[1]


def measured(model: str, calls: int, samples: int, held_out: int) -> dict[str, object]:
    """The rows of a model and a number of calls."""
    record = zoo.record(model)
    source = as_source(record.open(torch.float32, "cpu"))
    every = list(all_conditions(source))
    conditions = [every[number % len(every)] for number in range(held_out)]
    given = [every[(3 * number + 1) % len(every)] for number in range(samples)]
    bench = Bench(source, record.guidance, conditions, [])
    kinds = schedulers(source, UNCACHED)
    for name, kind in kinds.items():
        run = SamplerRun(name, steps_for(kind, calls), kind)
        with run.of(source) as other:
            how = Sampling(run.num_steps, record.guidance, SEED)
            bench.add(f"{name}, no cache", f"{run.num_steps} steps", in_batches(other, conditions, how, 32), 0.0)
    grid = fc.grid(source.target, STEPS)
    even = fc.parts.patterns.from_steps({round(step * STEPS / calls - 1e-9) for step in range(calls)}, STEPS)
    bench.planned("even, Taylor 1", fc.taylorseer(fc.explicit(pattern=even), 1).plan(grid), 0.0, even)
    how = Sampling(STEPS, record.guidance, 1000)
    stack = fc.grid(source.target, STEPS, level="stack")
    gram, _ = measure_gram(source, given, how, 32, sites=stack)
    pattern = OptimalSchedules(gram, Reuse(), LONGEST).pattern(np.ones(STEPS), calls)
    bench.planned("DPCache's rule", fc.explicit(pattern=pattern).plan(grid), samples, pattern)
    pattern = annealed(source, given, how, even, grid)
    cost = samples * (1 + (1 + ANNEALED) * calls / STEPS)
    bench.planned("annealed", fc.explicit(pattern=pattern).plan(grid), cost, pattern)
    fits = fc.calibrate(source, given, num_steps=STEPS, guidance=record.guidance, seed=1000)
    bench.decided("SeaCache", fc.seacache(0.3), calls, given, 0.0)
    bench.decided("TeaCache", fc.teacache(0.3, stats=fits), calls, given, samples)
    asked: dict[str, Any] = {"num_steps": STEPS, "samplers": SAMPLERS, "budget": fc.fit.Calls(calls)}
    asked |= {"guidance": record.guidance, "longest": LONGEST}
    quick = fc.tune(source, given, **asked, quick=True)
    bench.planned("quick", quick.plan, quick.images, quick.title(0))
    tuned = fc.tune(source, given, **asked, number=8, refining=False)
    bench.planned("tuned", tuned.plan, tuned.images, tuned.title(0))
    return {
        "samples": samples,
        "held_out": held_out,
        "converged": bench.run,
        "rows": bench.rows,
        "command": common.command("budgets.py", sys.argv[1:]),
        "environment": environment(),
    }


def table(record: dict[str, dict]) -> Iterable[str]:
    """The lines of the page."""
    for key, entry in record.items():
        rivals = [row for row in entry["rows"] if row["name"].endswith("no cache")]
        best = np.array(max((row["converged"] for row in rivals), key=np.mean))
        model, calls = key.rsplit(" ", 1)
        yield f"{model}, {calls} computed calls; {entry['held_out']} held-out samples, tuned on {entry['samples']}:"
        yield ""
        yield "| | to converged | to own | ahead of the best without a cache | search, images |"
        yield "|---|---|---|---|---|"
        for row in sorted(entry["rows"], key=lambda row: -np.mean(row["converged"])):
            ahead = np.array(row["converged"]) - best
            error = ahead.std(ddof=1) / len(ahead) ** 0.5
            cost = f"{row['search']:.0f}" if row["search"] else "-"
            mean = float(np.mean(row["converged"]))
            text = row["name"] + (f": {row['plan']}" if row["name"] in ("tuned", "quick") else "")
            yield f"| {text} | {mean:.1f} | {row['own']:.1f} | {ahead.mean():+.1f} (se {error:.1f}) | {cost} |"
        yield ""
    first = next(iter(record.values()))
    yield f"`{first['command']}`; {common.machine(first['environment'], 'diffusers')}."


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--calls", type=int, action="append")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    record = common.load(NAME)
    for calls in [] if args.show else args.calls or [10]:
        key = f"{args.model} {calls}"
        if key not in record:
            record[key] = measured(args.model, calls, args.samples, args.held_out)
            common.save(NAME, record)
    common.fill_page(NAME, list(table(record)))


if __name__ == "__main__":
    main()
