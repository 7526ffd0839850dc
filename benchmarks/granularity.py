"""Does a schedule of its own for each kind of branch or depth win over one for all? Do refreshed tokens? At equal MACs.

    python benchmarks/granularity.py digits              the table of docs/measured/tuned-plans.md (ten minutes)

Starts from tuned plans, without their refinement. Every group of sites by itself moves one computed step by one or
two, and whole groups compute one step later than the others (staggered); the best are judged on other samples. Tokens:
one computed step is given up, whichever, and so many tokens are computed in the gaps that the MACs stay. Writes
benchmarks/results/granularity-<model>.json with every trial.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import tuned_pages
from digits import ROOT, fill
from torch import Tensor
from tuned import MOST, plans
from tuned_others import halved

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.evaluate import psnr
from forecache.fit.tuning.forecasts import ForecastSpec
from forecache.fit.tuning.gram import measure_gram
from forecache.sampling import sources
from forecache.sampling.sources import Sampling, in_batches

STEPS, GUIDANCE = 20, 1.5
SEED, OTHER = 1000, 77
Group = Callable[[fc.parts.Site], Any]


class Study:
    """A tuned plan's forecast on schedules that differ between groups of sites."""

    def __init__(self, model: Any, plan: fc.Plan, samples: int, held_out: int) -> None:
        self.source = sources.as_source(model)
        self.grid = fc.grid(self.source.target, STEPS)
        self.pattern, self.forecast = tuned_pages.pattern(plan), ForecastSpec.parse(tuned_pages.unrefined(plan))
        every = sources.all_conditions(self.source)
        self._asked = {seed: [every[index % len(every)] for index in range(count)]
                       for seed, count in ((SEED, samples), (OTHER, held_out))}  # fmt: skip
        how = Sampling(STEPS, GUIDANCE, SEED)
        self._gram, uncached = measure_gram(self.source, self._asked[SEED], how, samples)
        self._uncached = {SEED: uncached, OTHER: self._sampled(OTHER)}

    def psnr(self, method: fc.Method, seed: int = SEED) -> float:
        """Mean dB to the samples without a cache."""
        with fc.apply(self.source.target, method.plan(self.grid)):
            images = self._sampled(seed)
        return psnr(images, self._uncached[seed]).clamp_max(MOST).mean().item()

    def macs(self, method: fc.Method) -> float:
        """Of a run with guidance."""
        return method.plan(self.grid).cost(self.source.target, inputs=sources.call_inputs(self.source, 2)).macs

    def method(self, patterns: Mapping[Any, str], group: Group) -> fc.Method:
        """The plan's forecast, with a pattern for each group."""

        def schedule(step: int, site: fc.parts.Site, grid: fc.Grid) -> fc.parts.Action:
            return fc.parts.Action.COMPUTE if patterns[group(site)][step] == "#" else fc.parts.Action.SKIP

        forecast, correction = self.forecast.forecast(self._gram), self.forecast.correction(self._gram)
        return fc.Method("groups", schedule, forecast, correction=correction)

    def _sampled(self, seed: int) -> Tensor:
        asked = self._asked[seed]
        return in_batches(self.source, asked, Sampling(STEPS, GUIDANCE, seed), len(asked))


def moved(pattern: str) -> Iterator[str]:
    """One computed step, not the first, earlier or later by one or two."""
    for at, by in itertools.product([at for at, sign in enumerate(pattern) if sign == "#" and at], (-2, -1, 1, 2)):
        if 0 < at + by < len(pattern) and pattern[at + by] == ".":
            signs = list(pattern)
            signs[at], signs[at + by] = ".", "#"
            yield "".join(signs)


def later(pattern: str) -> str:
    """Every computed step but the first one later, as far as there is room."""
    chosen = [at for at, sign in enumerate(pattern) if sign == "#"]
    last = chosen[-1] + 1 < len(pattern)
    return "".join("#" if at in {0, *(each + last for each in chosen[1:])} else "." for at in range(len(pattern)))


def study(found: Study, group: Group) -> dict[str, Any]:
    """Every schedule that was tried, and the best of them on other samples."""
    groups = sorted({group(site) for site in found.grid.sites}, key=str)
    shared = dict.fromkeys(groups, found.pattern)
    tried = [("moved", {**shared, one: pattern}) for one in groups for pattern in moved(found.pattern)]
    sets: Sequence[tuple[Any, ...]] = [
        some for size in range(1, len(groups)) for some in itertools.combinations(groups, size)
    ]
    tried += [("staggered", {**shared, **dict.fromkeys(some, later(found.pattern))}) for some in sets]
    rows = []
    for kind, patterns in tried:
        written = {str(one): pattern for one, pattern in patterns.items()}
        rows.append({"kind": kind, "patterns": written, "psnr_db": found.psnr(found.method(patterns, group))})
        print(f"{kind} {written}: {rows[-1]['psnr_db']:.2f} dB", flush=True)
    best = max(range(len(rows)), key=lambda number: rows[number]["psnr_db"])
    return {
        "groups": len(groups),
        "shared": found.psnr(found.method(shared, group)),
        "shared_held_out": found.psnr(found.method(shared, group), OTHER),
        "best_held_out": found.psnr(found.method(tried[best][1], group), OTHER),
        "best": rows[best],
        "rows": rows,
    }


def tokens(found: Study) -> list[dict[str, Any]]:
    """One computed step less, and some tokens of the gaps instead: in every block, and in the deepest quarter."""
    whole = found.macs(found.method({None: found.pattern}, lambda site: None))
    rows = []
    for from_depth, at in itertools.product((0, 0.75), range(1, STEPS)):
        if found.pattern[at] == ".":
            continue
        fewer = found.pattern[:at] + "." + found.pattern[at + 1 :]
        base = found.method({None: fewer}, lambda site: None)

        def made(share: float, base: fc.Method = base, from_depth: float = from_depth) -> fc.Method:
            return fc.selective(base, from_depth, share, every=1)

        share = halved(lambda share, made=made: found.macs(made(share)) <= whole, 0.02, 0.98)
        row = {"pattern": fewer, "from_depth": from_depth, "share": share, "psnr_db": found.psnr(made(share))}
        row |= {"alone": found.psnr(base), "macs": found.macs(made(share)) / whole}
        rows.append(row)
        print(f"{fewer}, {share:.0%} of the tokens from depth {from_depth:g}: {row['psnr_db']:.2f} dB", flush=True)
    return rows


def told(document: Mapping[str, Any]) -> list[str]:
    """What the tokens did."""
    lines = []
    for each in document["tokens"]:
        best = max(each["rows"], key=lambda row: row["psnr_db"])
        lines.append(
            f"{each['computed']} computed, one of them given up for {best['share']:.0%} of the gaps' tokens (the best "
            f"of {len(each['rows'])} ways): {best['psnr_db']:.2f} dB instead of {each['whole']:.2f}; without these "
            f"tokens {best['alone']:.2f}."
        )
    return lines


def table(document: Mapping[str, Any]) -> list[str]:
    lines = [
        "| computed | a schedule for each | tried | one for all, dB | median of moved | best | one for all, others "
        "| best, others | staggered, best |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["studies"]:
        kinds = {
            kind: [each["psnr_db"] for each in row["rows"] if each["kind"] == kind] for kind in ("moved", "staggered")
        }
        lines.append(
            f"| {row['computed']} | {row['by']} | {len(row['rows'])} | {row['shared']:.2f} "
            f"| {statistics.median(kinds['moved']):.2f} | {row['best']['psnr_db']:.2f} | {row['shared_held_out']:.2f} "
            f"| {row['best_held_out']:.2f} | {max(kinds['staggered']):.2f} |"
        )
    place = document["environment"]
    note = (
        f"{document['model']}, {STEPS} steps, {document['samples']} samples, {document['held_out']} others. "
        f"{place['cpu']}, torch {place['torch']}."
    )
    return [*lines, "", *told(document), "", note]


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["digits", "digits-text"])
    parser.add_argument("--counts", type=int, nargs="*", default=[10, 7], help="computed steps of tuned plans")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--held-out", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    model = zoo.load_digits() if args.model == "digits" else zoo.load_digits_text()
    document: dict[str, Any] = {
        "command": " ".join(["python benchmarks/granularity.py", *words]),
        "environment": environment(),
        "model": args.model,
        "samples": args.samples,
        "held_out": args.held_out,
        "studies": [],
        "tokens": [],
    }
    depths = 1 + max(site.depth for site in fc.grid(sources.as_source(model).target, STEPS).sites)
    ways: dict[str, Group] = {
        "kind of branch": lambda site: site.kind,
        "third of the depth": lambda site: site.depth * 3 // depths,
        "kind and half": lambda site: (site.kind, site.depth * 2 // depths),
    }
    for count in args.counts:
        found = Study(model, plans(args.model, None, STEPS)[count], args.samples, args.held_out)
        for by, group in ways.items():
            print(f"{count} computed ({found.forecast}), a schedule for each {by}", flush=True)
            document["studies"].append(
                {"computed": count, "by": by, "forecast": str(found.forecast), **study(found, group)}
            )
        whole = found.psnr(found.method({None: found.pattern}, lambda site: None))
        document["tokens"].append({"computed": count, "whole": whole, "rows": tokens(found)})
    results = ROOT / f"benchmarks/results/granularity-{args.model}.json"
    results.write_text(json.dumps(document, indent=1) + "\n")
    fill(ROOT / "docs/measured/tuned-plans.md", f"table granularity {args.model}", table(document))


if __name__ == "__main__":
    main(sys.argv[1:])
