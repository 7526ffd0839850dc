"""Tuned plans beside every other way to the same number of computed steps, on samples that they were not tuned on.

    python benchmarks/tuned.py digits                     the table and the plot of docs/tuning.md (an hour)
    python benchmarks/tuned.py digits --correlation       expected against measured error of random schedules
    python benchmarks/tuned.py digits --ablation          schedule, weights and feedback one by one
    python benchmarks/tuned.py digits --samples 200       a quicker look

Plans: those that ship with the model (`zoo.tuned_path`), or of a folder of `forecache tune` (--plans). The other
methods compute as many steps evenly spread. Rows of other libraries are those of benchmarks/peers.py (out/peers), if
they were measured with as many samples. Every row is kept when it is done (out/tuned/): a run that was stopped goes on.
Writes benchmarks/results/tuned-<model>.json and the table between the markers in docs/tuning.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from digits import ROOT, fill
from peer_runs import BARE

import forecache as fc
from forecache import bench, sources, tuned_pictures, zoo
from forecache.evaluate import Moments, frechet_distance, psnr
from forecache.sources import Sampling, in_batches
from forecache.tuning import proposals, surrogate
from forecache.tuning.optimal import Optimal
from forecache.tuning.products import Fitted, observe
from forecache.tuning.trials import forecast_of
from forecache.zoo import DigitsText, digits_text
from forecache.zoo.captions import pairs

STEPS, BATCH, SEED = 20, 100, 0
COUNTS = (10, 7, 5)
KEPT = ROOT / "out/tuned"
MOST = 80.0


def even(count: int) -> str:
    chosen = {round(number * STEPS / count - 1e-9) for number in range(count)}
    return "".join("#" if step in chosen else "." for step in range(STEPS))


def others(count: int, stats: fc.Statistics) -> dict[str, fc.Method]:
    """The published methods on evenly spread steps, FORA's where they come to so many, and ours without a search."""
    interval = -(-STEPS // count)
    base = fc.fora(interval) if -(-STEPS // interval) == count else fc.explicit(pattern=even(count))
    falling = next(  # ProCache's constraint: intervals never grow
        pattern for v_max in range(STEPS) if (pattern := _falling(count, v_max)) is not None
    )
    return {
        f"ours: FORA, N = {interval}": base,
        f"ours: GOC 0.8, N = {interval}": fc.goc(base, 0.8),
        f"ours: Taylor 1, N = {interval}": fc.taylorseer(base, 1),
        f"ours: Taylor 2, N = {interval}": fc.taylorseer(base, 2),
        "EOC additive 0.3, per channel": fc.eoc(base, stats, 0.3, form="additive", per="channel"),
        "intervals that never grow (ProCache's rule), reuse": fc.explicit(pattern=falling),
        "Feedback 2, 0.5": fc.feedback(base, 2, 0.5),
    }


def _falling(count: int, v_max: int) -> str | None:
    """The longest intervals first, as even as they go."""
    left, intervals = STEPS, []
    for number in range(count):
        share = -(-left // (count - number))
        intervals.append(share)
        left -= share
    if max(intervals) > v_max + 1:
        return None
    return "".join("#" + "." * (interval - 1) for interval in intervals)


class Rows:
    """What was measured on a model, kept in a file."""

    def __init__(self, name: str, samples: int) -> None:
        self.name = name
        self.model: Any = zoo.load_digits() if name == "digits" else zoo.load_digits_text()
        self.source = sources.as_source(self.model)
        every = sources.everything(self.source)
        self.asked = [every[index % len(every)] for index in range(samples)]
        self.guidance = sources.own_guidance(self.source)
        KEPT.mkdir(parents=True, exist_ok=True)
        self.path = KEPT / f"{name}-{samples}.json"
        self.rows: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self._images = KEPT / f"{name}-uncached-{samples}.pt"
        if not self._images.exists():
            torch.save(self.sample(STEPS), self._images)
        self.uncached = torch.load(self._images, weights_only=True)
        self.keep("no cache", STEPS, 1.0, self.uncached)

    def sample(self, steps: int) -> torch.Tensor:
        return in_batches(self.source, self.asked, Sampling(steps, self.guidance, SEED), BATCH)

    def keep(self, name: str, computed: int, speedup: float, images: torch.Tensor, about: str = "") -> None:
        if isinstance(self.model, DigitsText):
            right = self.model.recognised(images) == torch.tensor(pairs(len(self.asked)))
            right = right.all(1)
        else:
            right = self.model.recognised(images) == torch.tensor(self.asked)
        near = psnr(images, self.uncached).clamp_max(MOST).mean().item()
        self.rows[f"{name} | {computed}"] = {
            "name": name,
            "computed": computed,
            "fewer_macs": speedup,
            "schedule": about,
            "psnr_db": None if name == "no cache" else near,
            "frechet": frechet_distance(Moments.of(self.model.features(images)), self.model.reference),
            "class_accuracy": right.float().mean().item(),
        }
        self.path.write_text(json.dumps(self.rows, indent=1))
        print(f"{computed} of {STEPS}, {name}: {near:.2f} dB", flush=True)

    def measure(self, name: str, plan: fc.Plan, computed: int) -> None:
        if f"{name} | {computed}" in self.rows:
            return
        with fc.apply(self.source.target, plan):
            images = self.sample(STEPS)
        cost = plan.cost(self.source.target, inputs=sources.call(self.source, 2))
        self.keep(name, computed, cost.speedup, images, plan.picture())

    def fewer_steps(self, count: int, solver: bool) -> None:
        """The honest baseline: as many steps as are computed, nothing skipped."""
        name = f"{count} steps of DPM-Solver++" if solver else f"{count} steps"
        if f"{name} | {count}" in self.rows or (solver and isinstance(self.model, DigitsText)):
            return
        kept = self.model.scheduler if hasattr(self.model, "scheduler") else None
        try:
            if solver and kept is not None:
                object.__setattr__(self.model, "scheduler", DPMSolverMultistepScheduler.from_config(kept.config))
            images = self.sample(count)
        finally:
            if solver and kept is not None:
                object.__setattr__(self.model, "scheduler", kept)
        self.keep(name, count, STEPS / count, images)


def plans(name: str, folder: Path | None) -> dict[int, fc.Plan]:
    """The tuned plans, by computed steps."""
    files = sorted((folder or zoo.tuned_folder(name)).glob("plan-*.json"))
    found = [fc.Plan.load(file) for file in files]
    return {sum(cell.computed for cell in plan.rows[0]): plan for plan in found}


def table(rows: Mapping[str, Mapping[str, Any]], counts: tuple[int, ...]) -> list[str]:
    lines = ["| computed | cache | fewer MACs | PSNR, dB | Fréchet | as asked |", "|---|---|---|---|---|---|"]
    chosen = [row for row in rows.values() if row["name"] == "no cache"]
    for count in counts:
        mine = [row for row in rows.values() if row["computed"] == count]
        chosen += sorted(mine, key=lambda row: -(row["psnr_db"] or 0))
    for row in chosen:
        near = f"{row['psnr_db']:.1f}" if row["psnr_db"] is not None else ""
        name = f"**{row['name']}**" if row["name"].startswith("tuned") else row["name"]
        macs = f"{row['fewer_macs']:.2f}x" if row["fewer_macs"] else ""
        lines.append(
            f"| {row['computed']} | {name} | {macs} | {near} | {row['frechet']:.2f} | {row['class_accuracy']:.1%} |"
        )
    return lines


def with_peers(rows: dict[str, dict[str, Any]], samples: int) -> dict[str, dict[str, Any]]:
    """And the rows of other libraries, which sampled the same noise; computed steps as counted in the middle block."""
    kept, timed = ROOT / f"out/peers/digits-{samples}-{STEPS}.json", ROOT / "benchmarks/results/peers-digits.json"
    if not kept.exists() or not timed.exists():
        return rows
    figures = json.loads(kept.read_text())
    found = dict(rows)
    for row in json.loads(timed.read_text())["rows"]:
        name, computed = row["name"], row["attention_computed"]
        if name != BARE and name in figures and computed == row["mlp_computed"]:
            about = {"name": name, "computed": computed, "fewer_macs": None, "schedule": row["kinds"]}
            found[f"{name} | {computed}"] = about | figures[name]
    return found


def correlation(rows: Rows, count: int, number: int, fitting: int = 40) -> dict[str, Any]:
    """Random schedules: the error that is expected, with gains from the first ``fitting``, against the measured one."""
    labels = rows.asked[:16]
    how = Sampling(STEPS, rows.guidance, 1000)
    products, uncached = observe(rows.source, labels, how, 16)
    forecast = Fitted(products, 2)
    learned = proposals.Learned(products, ["fitted 2"], 8)
    search = proposals.Search(learned, count, number, seed=5)
    patterns = list(dict.fromkeys(search.random() for _ in range(5 * number)))[:number]
    measured = []
    for pattern in patterns:
        method = fc.Method("random", fc.schedules.by_step(pattern), forecast)
        with fc.apply(rows.source.target, method.plan(fc.grid(rows.source.target, STEPS))):
            images = in_batches(rows.source, labels, how, 16)
        measured.append(psnr(images, uncached).clamp_max(MOST).mean().item())
    errors = [products.errors(pattern, forecast) for pattern in patterns]
    fitted = surrogate.fit(errors[:fitting], measured[:fitting])
    plain = surrogate.uninformed(products.pooled)
    told = {"learned gains": fitted, "no gains": plain}
    found = {
        name: [-10 * float(np.log10(gains.predict(each))) for each in errors[fitting:]] for name, gains in told.items()
    }
    rest = measured[fitting:]
    return {
        "patterns": len(patterns),
        "fitted_on": fitting,
        "computed": count,
        "rank_correlation": {name: rank_correlation(each, rest) for name, each in found.items()},
        "expected": found["learned gains"],
        "measured": rest,
    }


def superposition(rows: Rows, samples: int = 10) -> dict[str, float]:
    """How much of the images' error is the sum of what each skipped step adds by itself (Taylor 1, N = 3).

    left: what the sum misses, as a share of the squared error. apart: the sum of the squared errors that the steps make
    one by one, as a share of it: 1 if they were all at right angles.
    """
    labels, how = rows.asked[:samples], Sampling(STEPS, rows.guidance, 1000)
    plan = fc.taylorseer(fc.fora(3), 1).plan(fc.grid(rows.source.target, STEPS))

    def sampled(made: fc.Plan) -> torch.Tensor:
        with fc.apply(rows.source.target, made):
            return in_batches(rows.source, labels, how, samples)

    uncached = in_batches(rows.source, labels, how, samples)
    error = sampled(plan) - uncached
    alone = []
    for step in (step for step in range(STEPS) if step % 3):
        cells = tuple(tuple(cell if at == step else fc.Cell() for at, cell in enumerate(row)) for row in plan.rows)
        alone.append(sampled(replace(plan, rows=cells)) - uncached)
    whole = float(error.square().sum())
    left = float((error - torch.stack(alone).sum(0)).square().sum()) / whole
    return {"left": left, "apart": sum(float(each.square().sum()) for each in alone) / whole, "samples": samples}


def ablation(rows: Rows, folder: Path | None, count: int = 7) -> list[dict[str, Any]]:
    """What each part of a tuned plan adds: schedule, fitted weights, feedback, and the gains behind the schedule."""
    products, _ = observe(rows.source, rows.asked[:20], Sampling(STEPS, rows.guidance, 1000), 20)
    plan = plans(rows.name, folder)[count]
    tuned = "".join("#" if cell.computed else "." for cell in plan.rows[0])
    flat = surrogate.uninformed(products.pooled).gains
    schedules = {
        "even": even(count),
        "tuned": tuned,
        "optimal without gains": Optimal(products, Fitted(products, 2)).pattern(flat, count),
    }
    found = []
    for schedule, forecast in (
        ("even", "taylor 2"), ("tuned", "taylor 2"), ("even", "taylor 2, feedback 0.5"), ("even", "fitted 2"),
        ("optimal without gains", "fitted 2"), ("tuned", "fitted 2"), ("tuned", "fitted 2, feedback 0.5"),
        ("tuned", ""),
    ):  # fmt: skip
        if forecast:
            method = fc.Method("ablation", fc.schedules.by_step(schedules[schedule]), forecast_of(forecast, products))
            made = method.plan(fc.grid(rows.source.target, STEPS))
        else:
            made, forecast = plan, plan.provenance["method"].split(", ", 1)[1].strip("')")
        with fc.apply(rows.source.target, made):
            near = psnr(rows.sample(STEPS), rows.uncached).clamp_max(MOST).mean().item()
        found.append({"schedule": schedule, "pattern": schedules[schedule], "forecast": forecast, "psnr_db": near})
        print(f"{schedule}, {forecast}: {near:.2f} dB", flush=True)
    return found


def rank_correlation(one: list[float], two: list[float]) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(each)) for each in (one, two)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["digits", "digits-text"])
    parser.add_argument("--ready", action="store_true", help="list the plans that ship in docs/tuning.md, and stop")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--plans", type=Path, help="folder of `forecache tune`; by default the plans that ship")
    parser.add_argument("--counts", type=int, nargs="*", default=list(COUNTS), help="computed steps")
    parser.add_argument("--correlation", action="store_true", help="measure that instead of the table")
    parser.add_argument("--random", type=int, default=200, help="how many random schedules --correlation samples with")
    parser.add_argument("--superposition", action="store_true", help="whether the errors of steps add up, instead")
    parser.add_argument("--ablation", action="store_true", help="measure that instead of the table")
    parser.add_argument("--no-more", action="store_true", help="write the table of what is measured already")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    args = arguments(words)
    torch.set_num_threads(args.threads)
    if args.ready:
        fill(ROOT / "docs/tuning.md", "table ready", ready())
        return
    command = " ".join(["python benchmarks/tuned.py", *words])
    results = ROOT / "benchmarks/results"
    rows = Rows(args.model, args.samples)
    if args.correlation:
        found = correlation(rows, 7, args.random)
        about = {"command": command, "environment": bench.environment()}
        (results / f"tuned-correlation-{args.model}.json").write_text(json.dumps(about | found, indent=1) + "\n")
        tuned_pictures.draw_expected(found["expected"], found["measured"], ROOT / f"docs/images/tuned-{args.model}.png")
        fill(ROOT / "docs/tuning.md", f"correlation {args.model}", correlation_lines(args.model, found))
        return
    if args.superposition:
        found = superposition(rows)
        about = {"command": command, "environment": bench.environment()} | found
        (results / f"tuned-superposition-{args.model}.json").write_text(json.dumps(about, indent=1) + "\n")
        text = (
            f"   {args.model}, {STEPS} steps, Taylor of order 1 with every third step computed, {found['samples']} "
            f"samples: the sum of the errors that the skipped steps make one by one misses {found['left']:.0%} of the "
            f"images' squared error; their squares add up to {found['apart']:.0%} of it."
        )
        fill(ROOT / "docs/tuning.md", f"superposition {args.model}", [text])
        return
    if args.ablation:
        parts = ablation(rows, args.plans)
        about = {"command": command, "environment": bench.environment(), "samples": args.samples, "rows": parts}
        (results / f"tuned-ablation-{args.model}.json").write_text(json.dumps(about, indent=1) + "\n")
        lines = ["| schedule | forecast | PSNR, dB |", "|---|---|---|"]
        lines += [
            f"| {row['schedule']} `{row['pattern']}` | {row['forecast']} | {row['psnr_db']:.2f} |" for row in parts
        ]
        about["note"] = f"{args.model}, {STEPS} steps, {args.samples} samples of seed {SEED}."
        fill(ROOT / "docs/tuning.md", f"ablation {args.model}", [*lines, "", about["note"]])
        return
    statistics = fc.Statistics.load(
        zoo.statistics_path(20) if args.model == "digits" else digits_text.statistics_path(20)
    )
    for count, plan in plans(args.model, args.plans).items():
        rows.measure("tuned", plan, count)
    known = with_peers(rows.rows, args.samples) if args.model == "digits" else rows.rows
    for count in args.counts if not args.no_more else ():
        rows.fewer_steps(count, solver=False)
        rows.fewer_steps(count, solver=True)
        for name, method in others(count, statistics).items():
            if f"{name} | {count}" not in known:
                rows.measure(name, method.plan(fc.grid(rows.source.target, STEPS)), count)
    found = with_peers(rows.rows, args.samples) if args.model == "digits" else rows.rows
    about = {"command": command, "environment": bench.environment(), "seed": SEED, "samples": args.samples}
    document = about | {"rows": list(found.values())}
    (results / f"tuned-{args.model}.json").write_text(json.dumps(document, indent=1) + "\n")
    fill(
        ROOT / "docs/tuning.md", f"table tuned {args.model}", [*table(found, tuple(args.counts)), "", note(args, about)]
    )


def correlation_lines(model: str, found: Mapping[str, Any]) -> list[str]:
    ranks = found["rank_correlation"]
    return [
        f"{model}: {found['patterns']} random schedules with {found['computed']} of {STEPS} steps computed; gains "
        f"learned from {found['fitted_on']} of them. Rank correlation of expected and measured PSNR over the others: "
        f"{ranks['learned gains']:.2f}; without gains {ranks['no gains']:.2f}.",
        "",
        f"![Expected against measured](images/tuned-{model}.png)",
    ]


def ready() -> list[str]:
    """The plans that ship, and what their provenance says."""
    lines = ["| model | computed of 20 | schedule | found | PSNR to no cache |", "|---|---|---|---|---|"]
    for model in ("digits", "digits-text"):
        for count, plan in sorted(plans(model, None).items(), reverse=True):
            steps = "".join("#" if cell.computed else "." for cell in plan.rows[0])
            forecast = plan.provenance["method"].split(", ", 1)[1].strip("')")
            found = f"{forecast}; {plan.provenance['tuned'].split(' with')[0]}"
            lines.append(f"| {model} | {count} | `{steps}` | {found} | {plan.provenance['psnr']} |")
    return lines


def note(args: argparse.Namespace, about: Mapping[str, Any]) -> str:
    place = about["environment"]
    return (
        f"{args.model}, {STEPS} steps, {args.samples} samples of seed {SEED}; tuned on other noise. PSNR to the "
        f"samples without a cache; Fréchet distance of the judge's features to the MNIST test set. {place['cpu']}, "
        f"torch {place['torch']}, diffusers {place['diffusers']}."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
