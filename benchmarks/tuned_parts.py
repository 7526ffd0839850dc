"""What each part of a tuned plan does, and how far the model of its error can be trusted.

    python benchmarks/tuned_parts.py digits --correlation     expected against measured error of random schedules
    python benchmarks/tuned_parts.py digits --superposition   whether the errors of steps add up
    python benchmarks/tuned_parts.py digits --ablation        schedule, weights and feedback one by one

Each writes benchmarks/results/tuned-<study>-<model>.json and its part of docs/measured/tuned-plans.md. 20 steps.
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
import tuned_pages
from digits import ROOT, fill
from tuned import MOST, SEED, Rows, plans
from tuned_others import even

import forecache as fc
from forecache.environment import environment
from forecache.evaluate import psnr
from forecache.fit.tuning import proposals, surrogate
from forecache.fit.tuning.fitted import Fitted
from forecache.fit.tuning.forecasts import ForecastSpec
from forecache.fit.tuning.gram import measure_gram
from forecache.fit.tuning.optimal import OptimalSchedules
from forecache.report import tuning_figures
from forecache.sampling.sources import Sampling, in_batches


def correlation(rows: Rows, count: int, number: int, fitting: int = 40) -> dict[str, Any]:
    """Random schedules: the error that is expected, with gains from the first ``fitting``, against the measured one."""
    labels = rows.asked[:16]
    how = Sampling(rows.steps, rows.guidance, 1000)
    gram, uncached = measure_gram(rows.source, labels, how, 16)
    forecast = Fitted(gram, 2)
    history = proposals.TrialHistory(gram, [ForecastSpec.parse("fitted 2")], 8)
    search = proposals.ScheduleSearch(history, count, number, seed=5)
    patterns = list(dict.fromkeys(search.random() for _ in range(5 * number)))[:number]
    measured = []
    for pattern in patterns:
        method = fc.Method("random", fc.parts.schedules.by_step(pattern), forecast)
        with fc.apply(rows.source.target, method.plan(fc.grid(rows.source.target, rows.steps))):
            images = in_batches(rows.source, labels, how, 16)
        measured.append(psnr(images, uncached).clamp_max(MOST).mean().item())
    errors = [gram.errors(pattern, forecast) for pattern in patterns]
    fitted = surrogate.fit(errors[:fitting], measured[:fitting])
    plain = surrogate.uninformed(gram.pooled)
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
    labels, how = rows.asked[:samples], Sampling(rows.steps, rows.guidance, 1000)
    plan = fc.taylorseer(fc.fora(3), 1).plan(fc.grid(rows.source.target, rows.steps))

    def sampled(made: fc.Plan) -> torch.Tensor:
        with fc.apply(rows.source.target, made):
            return in_batches(rows.source, labels, how, samples)

    uncached = in_batches(rows.source, labels, how, samples)
    error = sampled(plan) - uncached
    alone = []
    for step in (step for step in range(rows.steps) if step % 3):
        cells = tuple(
            tuple(cell if at == step else fc.parts.Cell() for at, cell in enumerate(row)) for row in plan.rows
        )
        alone.append(sampled(replace(plan, rows=cells)) - uncached)
    whole = float(error.square().sum())
    left = float((error - torch.stack(alone).sum(0)).square().sum()) / whole
    return {"left": left, "apart": sum(float(each.square().sum()) for each in alone) / whole, "samples": samples}


def ablation(rows: Rows, folder: Path | None, count: int = 7) -> list[dict[str, Any]]:
    """What each part of a tuned plan adds: schedule, fitted weights, feedback, and the gains behind the schedule."""
    gram, _ = measure_gram(rows.source, rows.asked[:20], Sampling(rows.steps, rows.guidance, 1000), 20)
    plan = plans(rows.name, folder)[count]
    tuned = tuned_pages.pattern(plan)
    flat = surrogate.uninformed(gram.pooled).gains
    schedules = {
        "even": even(rows.steps, count),
        "tuned": tuned,
        "optimal without gains": OptimalSchedules(gram, Fitted(gram, 2)).pattern(flat, count),
    }
    found = []
    for schedule, forecast in (
        ("even", "taylor 2"), ("tuned", "taylor 2"), ("even", "taylor 2, feedback 0.5"), ("even", "fitted 2"),
        ("optimal without gains", "fitted 2"), ("tuned", "fitted 2"), ("tuned", "fitted 2, feedback 0.5"),
        ("tuned", "the plan's, not corrected"), ("tuned", "the plan's, not refined"), ("tuned", ""),
    ):  # fmt: skip
        named = tuned_pages.forecast(plan)
        if "the plan's" in forecast:
            forecast = tuned_pages.unrefined(plan).split(", eoc" if "corrected" in forecast else ", refined")[0]
        if forecast:
            method = ForecastSpec.parse(forecast).method(schedules[schedule], gram)
            made = method.plan(fc.grid(rows.source.target, rows.steps))
        else:
            made, forecast = plan, named
        with fc.apply(rows.source.target, made):
            near = psnr(rows.plain(rows.asked), rows.uncached).clamp_max(MOST).mean().item()
        found.append({"schedule": schedule, "pattern": schedules[schedule], "forecast": forecast, "psnr_db": near})
        print(f"{schedule}, {forecast}: {near:.2f} dB", flush=True)
    return found


def rank_correlation(one: list[float], two: list[float]) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(each)) for each in (one, two)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["digits", "digits-text"])
    study = parser.add_mutually_exclusive_group(required=True)
    for name in ("correlation", "superposition", "ablation"):
        study.add_argument(f"--{name}", action="store_const", const=name, dest="study")
    parser.add_argument("--samples", type=int, default=100, help="of the ablation")
    parser.add_argument("--random", type=int, default=200, help="how many random schedules --correlation samples with")
    parser.add_argument("--plans", type=Path, help="folder of `forecache tune`; by default the plans that ship")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    rows = Rows(args.model, args.samples)
    if args.study == "correlation":
        found = correlation(rows, 7, args.random)
        tuning_figures.draw_expected(
            found["expected"], found["measured"], ROOT / f"docs/images/expected-{args.model}.png"
        )
        lines = correlation_lines(args.model, found)
    elif args.study == "superposition":
        found = superposition(rows)
        lines = superposition_lines(args.model, found)
    else:
        found = {"samples": args.samples, "rows": ablation(rows, args.plans)}
        lines = ablation_lines(args.model, found)
    about = {"command": " ".join(["python benchmarks/tuned_parts.py", *words]), "environment": environment()}
    path = ROOT / f"benchmarks/results/tuned-{args.study}-{args.model}.json"
    path.write_text(json.dumps(about | found, indent=1) + "\n")
    fill(ROOT / "docs/measured/tuned-plans.md", f"{args.study} {args.model}", lines)


def correlation_lines(model: str, found: Mapping[str, Any]) -> list[str]:
    ranks = found["rank_correlation"]
    return [
        f"{model}: {found['patterns']} random schedules with {found['computed']} of 20 steps computed; gains "
        f"learned from {found['fitted_on']} of them. Rank correlation of expected and measured PSNR over the others: "
        f"{ranks['learned gains']:.2f}; without gains {ranks['no gains']:.2f}.",
        "",
        f"![Expected against measured](../images/expected-{model}.png)",
    ]


def superposition_lines(model: str, found: Mapping[str, Any]) -> list[str]:
    return [
        f"   {model}, 20 steps, Taylor of order 1 with every third step computed, {found['samples']} samples: the sum "
        f"of the errors that the skipped steps make one by one misses {found['left']:.0%} of the images' squared "
        f"error; their squares add up to {found['apart']:.0%} of it."
    ]


def ablation_lines(model: str, found: Mapping[str, Any]) -> list[str]:
    lines = ["| schedule | forecast | PSNR, dB |", "|---|---|---|"]
    lines += [
        f"| {row['schedule']} `{row['pattern']}` | {row['forecast']} | {row['psnr_db']:.2f} |" for row in found["rows"]
    ]
    return [*lines, "", f"{model}, 20 steps, {found['samples']} samples of seed {SEED}."]


if __name__ == "__main__":
    main(sys.argv[1:])
