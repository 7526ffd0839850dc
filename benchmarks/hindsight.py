"""Correction in hindsight, alone and with the forecasts that it stands on.

    python benchmarks/hindsight.py digits          measure, and write the table
    python benchmarks/hindsight.py digits-text
    python benchmarks/hindsight.py --table         write the table again, from benchmarks/results

PSNR to the converged samples and to the run without a cache, on held-out samples: even schedules of 20 steps, without
hindsight, with theta 0.5, and with a share for every gap from calibration on other samples. It measures no time, so
that load does not matter. Writes benchmarks/results/hindsight-<model>.json and its part of docs/methods/hindsight.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import common
from torch import Tensor
from tuned_others import even

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.evaluate import psnr
from forecache.fit.hindsight import TRIED, fit_hindsight
from forecache.fit.tuning.fitted import Fitted
from forecache.fit.tuning.gram import Gram, measure_gram
from forecache.sampling.fine import converged, fine_solver, rescheduled, scheduler_of
from forecache.sampling.sources import Condition, Sampling, all_conditions, as_source, in_batches, own_guidance

MODELS = ("digits", "digits-text")
STEPS, BATCH, MOST = 20, 32, 100.0
SEED, CALIBRATION_SEED = 3, 1000


def bases(count: int, gram: Gram) -> Iterator[tuple[str, fc.Method]]:
    """The methods that are corrected, on the even schedule with so many computed steps."""
    base = fc.explicit(pattern=even(STEPS, count))
    yield "reuse", base
    yield "GOC 0.8", fc.goc(base, 0.8)
    yield "Taylor 1", fc.taylorseer(base, 1)
    yield "fitted 2", base.with_forecast("fitted 2", Fitted(gram, 2))
    yield "fitted 2, feedback 0.5", base.with_forecast("fitted 2, feedback 0.5", Fitted(gram, 2, 0.5))


def measure(asked: argparse.Namespace, words: Sequence[str]) -> None:
    """Measure the rows of a model; the record is written after each of them."""
    name, samples, calibration = asked.model, asked.samples, asked.calibration
    model = zoo.load_digits() if name == "digits" else zoo.load_digits_text()
    source = as_source(model)
    known, guidance = all_conditions(source), own_guidance(source)

    def some(number: int) -> list[Condition]:
        return [known[index % len(known)] for index in range(number)]

    def fine(number: int, seed: int) -> Tensor:
        if asked.fine is None:
            how = {"num_steps": STEPS, "guidance": guidance, "seed": seed, "batch": BATCH}
            return converged(model, some(number), **how).images
        with rescheduled(source, fine_solver(scheduler_of(source))) as finer:
            return in_batches(finer, some(number), Sampling(asked.fine, guidance, seed), BATCH)

    how = Sampling(STEPS, guidance, SEED)
    own, truth = in_batches(source, some(samples), how, BATCH), fine(samples, SEED)
    gram, _ = measure_gram(source, some(calibration), Sampling(STEPS, guidance, CALIBRATION_SEED), BATCH)
    known_truth = None if asked.no_shares else fine(calibration, CALIBRATION_SEED)
    grid = fc.grid(source.target, STEPS)

    def scores(method: fc.Method) -> dict[str, float]:
        with fc.apply(source.target, method.plan(grid)):
            images = in_batches(source, some(samples), how, BATCH)
        return {
            key: round(psnr(images, others).clamp_max(MOST).mean().item(), 3)
            for key, others in (("converged", truth), ("own", own))
        }

    rows: list[dict[str, Any]] = []
    for count in asked.counts:
        for label, base in bases(count, gram):
            even = scores(fc.hindsight(base, TRIED))
            row = {"computed": count, "forecast": label, "without": scores(base), "even": even}
            if known_truth is not None:
                how_fitted = {"num_steps": STEPS, "guidance": guidance, "seed": CALIBRATION_SEED, "batch": BATCH}
                fitted = fit_hindsight(model, base, some(calibration), **how_fitted, reference=known_truth)
                row |= {"fitted": scores(fitted.method), "thetas": list(fitted.thetas)}
            rows.append(row)
            print(row, flush=True)
            record = {
                "command": common.command(Path(__file__).name, words),
                "model": name,
                "samples": samples,
                "calibration": calibration,
                "fine": asked.fine,
                "uncached": round(psnr(own, truth).clamp_max(MOST).mean().item(), 3),
                "rows": rows,
                "environment": environment(),
            }
            common.save(f"hindsight-{name}", record)


def lines() -> Iterator[str]:
    """The table of docs/methods/hindsight.md."""
    yield (
        "| model | computed | forecast | without | theta 0.5 | calibrated | to own: without | theta 0.5 | calibrated |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    notes = []
    for name in MODELS:
        if not (result := common.load(f"hindsight-{name}")):
            continue
        for row in result["rows"]:
            kinds = ("without", "even", "fitted")
            numbers = [row.get(kind, {}).get(reference) for reference in ("converged", "own") for kind in kinds]
            cells = " | ".join("-" if number is None else f"{number:.1f}" for number in numbers)
            yield f"| {name} | {row['computed']} | {row['forecast']} | {cells} |"
        steps = f"{result['fine']} steps of" if result["fine"] else "a fine run of"
        notes.append(
            f"{name}: {result['samples']} held-out samples, {result['calibration']} of another seed for fitted weights "
            f"and shares; converged is {steps} DPM-Solver++ from the same noise, and without a cache the samples are "
            f"{result['uncached']:.1f} dB from it."
        )
    yield ""
    yield "PSNR in dB, to the converged samples in the first three columns. " + " ".join(notes)


def main(words: Sequence[str]) -> None:
    """Measure what is asked for, and write the table."""
    parser = common.parser(__doc__)
    parser.add_argument("model", nargs="?", choices=MODELS)
    parser.add_argument("--table", action="store_true", help="write the table alone")
    parser.add_argument("--samples", type=int, default=32, help="held-out samples")
    parser.add_argument("--calibration", type=int, default=10, help="samples for weights and shares")
    parser.add_argument("--fine", type=int, help="steps of the converged samples; by default as many as are needed")
    parser.add_argument("--no-shares", action="store_true", help="leave out the shares from calibration")
    parser.add_argument("--counts", type=int, nargs="*", default=[10, 7, 5], help="computed steps")
    asked = parser.parse_args(words)
    if not asked.table:
        if asked.model is None:
            parser.error("name a model, or give --table")
        measure(asked, words)
    common.fill_page("hindsight", list(lines()))


if __name__ == "__main__":
    main(sys.argv[1:])
