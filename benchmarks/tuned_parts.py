"""The effect of each part of a tuned plan, and the accuracy of the surrogate of its error.

    python benchmarks/tuned_parts.py digits --correlation     expected and measured error of random schedules
    python benchmarks/tuned_parts.py digits --superposition   whether the errors of steps add up
    python benchmarks/tuned_parts.py digits --ablation        schedule, weights and feedback one by one

Each writes benchmarks/results/tuned-<study>-<model>.json and its part of docs/measured/tuned-plans.md. 20 steps. Ten
minutes on one core, of the superposition one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
import tuned_pages
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
    """Expected against measured error of random schedules, with gains fitted to the first ``fitting`` of them."""
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
    surrogates = {"learned gains": fitted, "no gains": plain}
    expected = {
        name: [-10 * float(np.log10(gains.predict(row))) for row in errors[fitting:]]
        for name, gains in surrogates.items()
    }
    rest = measured[fitting:]
    return {
        "patterns": len(patterns),
        "fitted_on": fitting,
        "computed": count,
        "rank_correlation": {name: rank_correlation(decibels, rest) for name, decibels in expected.items()},
        "expected": expected["learned gains"],
        "measured": rest,
    }


def superposition(rows: Rows, samples: int = 10) -> dict[str, float]:
    """How well the images' error is the sum of the errors of single skipped steps (Taylor 1, N = 3).

    left: the squared error that the sum misses, as a share of the squared error. apart: the sum of the squared errors
    of single steps, as a share of it: 1 if they were all orthogonal.
    """
    labels, how = rows.asked[:samples], Sampling(rows.steps, rows.guidance, 1000)
    plan = fc.taylorseer(fc.fora(3), 1).plan(fc.grid(rows.source.target, rows.steps))

    def sampled(plan: fc.Plan) -> torch.Tensor:
        with fc.apply(rows.source.target, plan):
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
    apart = sum(float(step_error.square().sum()) for step_error in alone) / whole
    return {"left": left, "apart": apart, "samples": samples}


def ablation(rows: Rows, folder: Path | None, count: int = 7) -> list[dict[str, Any]]:
    """The PSNR of a tuned plan, part by part: schedule, fitted weights, feedback, and the gains behind the schedule."""
    gram, _ = measure_gram(rows.source, rows.asked[:20], Sampling(rows.steps, rows.guidance, 1000), 20)
    tuned_plan = plans(rows.name, folder)[count]
    tuned = tuned_pages.pattern(tuned_plan)
    flat = surrogate.uninformed(gram.pooled).gains
    schedules = {
        "even": even(rows.steps, count),
        "tuned": tuned,
        "optimal without gains": OptimalSchedules(gram, Fitted(gram, 2)).pattern(flat, count),
    }
    measured = []
    for schedule, forecast in (
        ("even", "taylor 2"), ("tuned", "taylor 2"), ("even", "taylor 2, feedback 0.5"), ("even", "fitted 2"),
        ("optimal without gains", "fitted 2"), ("tuned", "fitted 2"), ("tuned", "fitted 2, feedback 0.5"),
        ("tuned", "the plan's, not corrected"), ("tuned", "the plan's, not refined"), ("tuned", ""),
    ):  # fmt: skip
        named = tuned_pages.forecast(tuned_plan)
        if "the plan's" in forecast:
            forecast = tuned_pages.unrefined(tuned_plan).split(", eoc" if "corrected" in forecast else ", refined")[0]
        if forecast:
            method = ForecastSpec.parse(forecast).method(schedules[schedule], gram)
            plan = method.plan(fc.grid(rows.source.target, rows.steps))
        else:
            plan, forecast = tuned_plan, named
        with fc.apply(rows.source.target, plan):
            near = psnr(rows.plain(rows.asked), rows.uncached).clamp_max(MOST).mean().item()
        measured.append({"schedule": schedule, "pattern": schedules[schedule], "forecast": forecast, "psnr": near})
        print(f"{schedule}, {forecast}: {near:.2f} dB", flush=True)
    return measured


def rank_correlation(one: list[float], two: list[float]) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, two)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", choices=["digits", "digits-text"])
    study = parser.add_mutually_exclusive_group(required=True)
    for name in ("correlation", "superposition", "ablation"):
        study.add_argument(f"--{name}", action="store_const", const=name, dest="study")
    parser.add_argument("--samples", type=int, default=100, help="samples of the ablation")
    parser.add_argument("--random", type=int, default=200, help="how many random schedules --correlation samples with")
    parser.add_argument("--plans", type=Path, help="folder of `forecache tune`; by default the plans that ship")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    rows = Rows(args.model, args.samples)
    if args.study == "correlation":
        result = correlation(rows, 7, args.random)
        tuning_figures.draw_expected(
            result["expected"], result["measured"], common.IMAGES / f"expected-{args.model}.png"
        )
        lines = correlation_lines(args.model, result)
    elif args.study == "superposition":
        result = superposition(rows)
        lines = superposition_lines(args.model, result)
    else:
        result = {"samples": args.samples, "rows": ablation(rows, args.plans)}
        lines = ablation_lines(args.model, result)
    about = {"command": common.command("tuned_parts.py", words), "environment": environment()}
    common.save(f"tuned-{args.study}-{args.model}", about | result)
    common.fill_page(f"{args.study} {args.model}", lines)


def correlation_lines(model: str, result: Mapping[str, Any]) -> list[str]:
    """The sentence and the picture of the correlation."""
    ranks = result["rank_correlation"]
    return [
        f"{model}: {result['patterns']} random schedules with {result['computed']} of 20 steps computed; gains "
        f"learned from {result['fitted_on']} of them. Rank correlation of expected and measured PSNR over the others: "
        f"{ranks['learned gains']:.2f}; without gains {ranks['no gains']:.2f}.",
        "",
        common.picture(f"correlation {model}", f"expected-{model}.png", "Expected against measured"),
    ]


def superposition_lines(model: str, result: Mapping[str, Any]) -> list[str]:
    """The sentence of the superposition."""
    return [
        f"   {model}, 20 steps, Taylor of order 1 with every third step computed, {result['samples']} samples: the sum "
        f"of the errors that the skipped steps make one by one misses {result['left']:.0%} of the images' squared "
        f"error; their squares add up to {result['apart']:.0%} of it."
    ]


def ablation_lines(model: str, result: Mapping[str, Any]) -> list[str]:
    """The table of the ablation."""
    lines = ["| schedule | forecast | PSNR, dB |", "|---|---|---|"]
    lines += [
        f"| {row['schedule']} `{row['pattern']}` | {row['forecast']} | {row['psnr']:.2f} |" for row in result["rows"]
    ]
    return [*lines, "", f"{model}, 20 steps, {result['samples']} samples of seed {SEED}."]


if __name__ == "__main__":
    main(sys.argv[1:])
