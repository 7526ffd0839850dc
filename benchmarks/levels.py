"""Stack against groups, blocks and branches at equal computed steps: quality and bytes, in the table of docs/levels.md.

    python benchmarks/levels.py                          both models (half an hour on an idle core)
    python benchmarks/levels.py --models digits --tune   with plans that are tuned at each level as well

Every method samples the same noise at every level. PSNR is to the pipeline's own samples and to the converged ones,
mean over samples; bytes are those of one image with guidance, as `plan.cost` says and the run counted. Rows that are
there are kept, so that an interrupted run goes on. Writes benchmarks/results/levels.json. No times are measured here.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import common
import torch
from torch import Tensor

import forecache as fc
from forecache.environment import environment
from forecache.evaluate import psnr
from forecache.models.find import grid_at
from forecache.models.levels import FINEST, AskedSites
from forecache.sampling import converged, sources
from forecache.sampling.sources import Sampling, in_batches
from forecache.zoo import record

SEED, TUNING_SEED, BATCH = 77, 1000, 16
MOST = 100.0
"""PSNR that equal images count as, in dB."""
LEVELS: Mapping[str, AskedSites] = {
    "branches": FINEST,
    "blocks": AskedSites(level="blocks"),
    "groups of 3": AskedSites(level="groups", group=3),
    "stack": AskedSites(level="stack"),
    "stack, output": AskedSites(level="stack", of="output"),
}
TUNED = ("branches", "stack")
"""The levels that plans are tuned at."""
CALCULATED = ("blocks", "groups of 3")
"""Levels that are sampled with one method alone, because those with equal weights give the samples of the stack."""


def methods(interval: int) -> dict[str, fc.Method]:
    """The methods over one base, so that all compute the same steps."""
    base = fc.fora(interval)
    return {
        "reuse": base,
        "GOC 0.8": fc.goc(base, 0.8),
        "Taylor 1": fc.taylorseer(base, 1),
        "Taylor 2": fc.taylorseer(base, 2),
    }


class Study:
    """One bundled model and the samples that it is judged by.

    source: the model.
    steps: sampling steps.
    """

    def __init__(self, name: str, samples: int) -> None:
        self.record = record(name)
        self.source = self.record.open(torch.float32, "cpu")
        self.steps = self.record.steps
        self.asked = self._conditions(samples)
        self.own = self._sampled()
        how: dict[str, Any] = {"num_steps": self.steps, "guidance": self.record.guidance, "seed": SEED, "batch": BATCH}
        fine = converged(self.source, self.asked, **how)
        self.fine, self.run = fine.images, str(fine.run)
        self.gap = self._psnr(self.own, self.fine)

    def row(self, level: str, name: str, plan: fc.Plan) -> dict[str, Any]:
        """The figures of a plan."""
        target = self.source.target
        with fc.apply(target, plan) as session:
            images = self._sampled()
        one, batch = (self._cost(plan, images) for images in (1, min(BATCH, len(self.asked))))
        if session.stats.peak_cache_bytes != batch.cache_bytes:
            sys.exit(f"{level}, {name}: {session.stats.peak_cache_bytes} bytes were held, {batch.cache_bytes} said.")
        computed = sum(cell.computed for cell in plan.rows[0])
        row = {"level": level, "method": name, "computed": computed, "sites": len(plan.grid.sites)}
        row |= {"cache_bytes": one.cache_bytes, "fewer_macs": one.speedup}
        return row | {"own": self._psnr(images, self.own), "converged": self._psnr(images, self.fine)}

    def _cost(self, plan: fc.Plan, images: int) -> fc.Cost:
        """The cost of a plan for so many images in a call, with guidance."""
        inputs = sources.call_inputs(self.source, 2 * images)
        if inputs is not None:
            inputs |= {"timestep": torch.zeros(2 * images, dtype=torch.long)}
        return plan.cost(self.source.target, images, guidance=True, inputs=inputs)

    def tuned(self, level: str, samples: int) -> fc.Plan:
        """The plan that is tuned at a level for a third of the MACs, on other noise, without refinement."""
        return fc.tune(
            self.source,
            self._conditions(samples),
            num_steps=self.steps,
            budget=1 / 3,
            guidance=self.record.guidance,
            seed=TUNING_SEED,
            batch=BATCH,
            number=16,
            reference="own",
            correcting=False,
            refining=False,
            **LEVELS[level].options,
        ).plan

    def _conditions(self, samples: int) -> list[Any]:
        return [self.record.conditions[index % len(self.record.conditions)] for index in range(samples)]

    def _sampled(self) -> Tensor:
        return in_batches(self.source, self.asked, Sampling(self.steps, self.record.guidance, SEED), BATCH)

    def _psnr(self, images: Tensor, reference: Tensor) -> dict[str, float]:
        values = psnr(images, reference).clamp_max(MOST).tolist()
        error = statistics.stdev(values) / len(values) ** 0.5
        return {"mean": statistics.fmean(values), "standard_error": error}


def rows(study: Study, known: Sequence[Mapping[str, Any]], tune: bool, samples: int) -> Iterator[dict[str, Any]]:
    """The rows that are missing."""
    done = {(row["level"], row["method"], row["interval"]) for row in known}
    for interval in (2, 3):
        for name, method in methods(interval).items():
            for level, asked in LEVELS.items():
                if (level, name, interval) in done or (level in CALCULATED and name != "Taylor 1"):
                    continue
                plan = method.plan(grid_at(study.source.target, study.steps, asked))
                yield {**study.row(level, name, plan), "interval": interval}
    for level in TUNED if tune else ():
        if (level, "tuned", 0) not in done:
            yield {**study.row(level, "tuned", study.tuned(level, samples // 2)), "interval": 0}


def table(document: Mapping[str, Any]) -> list[str]:
    """The table of docs/levels.md."""
    lines = [
        "| model | computed | method | level | sites | KiB an image | PSNR to own, dB | to converged, dB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, study in document["models"].items():
        for row in sorted(study["rows"], key=lambda row: (-row["computed"], row["method"])):
            own, fine = (
                f"{row[name]['mean']:.2f} ± {row[name]['standard_error']:.2f}" for name in ("own", "converged")
            )
            lines.append(
                f"| {model} | {row['computed']} of {study['steps']} | {row['method']} | {row['level']} "
                f"| {row['sites']} | {row['cache_bytes'] / 1024:,.0f} | {own} | {fine} |"
            )
    gaps = ", ".join(
        f"{model} {study['gap']['mean']:.1f} dB ({study['run']})" for model, study in document["models"].items()
    )
    note = (
        f"{document['samples']} samples of each model, the same noise everywhere; ± is the standard error of the mean. "
        f"The pipelines' own samples lie this far from the converged ones: {gaps}. "
        f"{common.machine(document['environment'])}."
    )
    return [*lines, "", note]


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--models", nargs="*", default=["digits", "digits-text"], choices=["digits", "digits-text"])
    parser.add_argument("--samples", type=int, default=32, help="samples of each model")
    parser.add_argument("--tune", action="store_true", help="tune plans at levels, too")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    document = common.load("levels")
    if document.get("samples") != args.samples:
        document = {"samples": args.samples, "models": {}}
    document |= {"command": common.command("levels.py", words), "environment": environment()}
    for name in args.models:
        study = Study(name, args.samples)
        kept = document["models"].setdefault(name, {"rows": []})
        kept |= {"steps": study.steps, "run": study.run, "gap": study.gap}
        for row in rows(study, kept["rows"], args.tune, args.samples):
            kept["rows"].append(row)
            print(f"{name}: {row}", flush=True)
            common.save("levels", document)
    common.fill_page("table levels", table(document))


if __name__ == "__main__":
    main(sys.argv[1:])
