"""Schedules of their own for kinds of branches or depths against one for all, and refreshed tokens, at equal MACs.

    python benchmarks/granularity.py digits              the table of docs/measured/tuned-plans.md (ten minutes)

Starts from tuned plans, without their refinement. Every group of sites by itself moves one computed step by one or
two, and whole groups compute one step later than the others (staggered); the best are judged on other samples. Tokens:
one computed step is given up, whichever, and so many tokens are computed in the gaps that the MACs stay. Writes
benchmarks/results/granularity-<model>.json with every trial.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import common
import torch
import tuned_pages
from torch import Tensor
from tuned import MOST, plans
from tuned_others import bisect

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
    """A tuned plan's forecast on schedules that differ between groups of sites.

    source: the model.
    grid: its grid.
    pattern: of the tuned plan.
    forecast: of the tuned plan, without refinement.
    """

    def __init__(self, model: Any, plan: fc.Plan, samples: int, held_out: int) -> None:
        self.source = sources.as_source(model)
        self.grid = fc.grid(self.source.target, STEPS)
        self.pattern, self.forecast = tuned_pages.pattern(plan), ForecastSpec.parse(tuned_pages.unrefined(plan))
        conditions = sources.all_conditions(self.source)
        self._asked = {seed: [conditions[index % len(conditions)] for index in range(count)]
                       for seed, count in ((SEED, samples), (OTHER, held_out))}  # fmt: skip
        how = Sampling(STEPS, GUIDANCE, SEED)
        self._gram, uncached = measure_gram(self.source, self._asked[SEED], how, samples)
        self._uncached = {SEED: uncached, OTHER: self._sampled(OTHER)}

    def psnr(self, method: fc.Method, seed: int = SEED) -> float:
        """Mean PSNR to the samples without a cache, in dB."""
        with fc.apply(self.source.target, method.plan(self.grid)):
            images = self._sampled(seed)
        return psnr(images, self._uncached[seed]).clamp_max(MOST).mean().item()

    def macs(self, method: fc.Method) -> float:
        """MACs of a run with guidance."""
        return method.plan(self.grid).cost(self.source.target, inputs=sources.call_inputs(self.source, 2)).macs

    def method(self, patterns: Mapping[Any, str], group: Group) -> fc.Method:
        """The method with the plan's forecast and a pattern for each group."""

        def schedule(step: int, site: fc.parts.Site, grid: fc.Grid) -> fc.parts.Action:
            return fc.parts.Action.COMPUTE if patterns[group(site)][step] == "#" else fc.parts.Action.SKIP

        forecast, correction = self.forecast.forecast(self._gram), self.forecast.correction(self._gram)
        return fc.Method("groups", schedule, forecast, correction=correction)

    def _sampled(self, seed: int) -> Tensor:
        asked = self._asked[seed]
        return in_batches(self.source, asked, Sampling(STEPS, GUIDANCE, seed), len(asked))


def moved(pattern: str) -> Iterator[str]:
    """The patterns with one computed step, not the first, moved by one or two."""
    for at, by in itertools.product([at for at, sign in enumerate(pattern) if sign == "#" and at], (-2, -1, 1, 2)):
        if 0 < at + by < len(pattern) and pattern[at + by] == ".":
            signs = list(pattern)
            signs[at], signs[at + by] = ".", "#"
            yield "".join(signs)


def later(pattern: str) -> str:
    """The pattern with every computed step but the first one step later, if there is room."""
    computed = [at for at, sign in enumerate(pattern) if sign == "#"]
    shift = int(computed[-1] + 1 < len(pattern))
    shifted = {0, *(at + shift for at in computed[1:])}
    return "".join("#" if at in shifted else "." for at in range(len(pattern)))


def compare(study: Study, group: Group) -> dict[str, Any]:
    """Every schedule that was tried, and the best of them on other samples."""
    groups = sorted({group(site) for site in study.grid.sites}, key=str)
    shared = dict.fromkeys(groups, study.pattern)
    tried = [("moved", {**shared, one: pattern}) for one in groups for pattern in moved(study.pattern)]
    sets: Sequence[tuple[Any, ...]] = [
        some for size in range(1, len(groups)) for some in itertools.combinations(groups, size)
    ]
    tried += [("staggered", {**shared, **dict.fromkeys(some, later(study.pattern))}) for some in sets]
    rows = []
    for kind, patterns in tried:
        written = {str(one): pattern for one, pattern in patterns.items()}
        rows.append({"kind": kind, "patterns": written, "psnr": study.psnr(study.method(patterns, group))})
        print(f"{kind} {written}: {rows[-1]['psnr']:.2f} dB", flush=True)
    best = max(range(len(rows)), key=lambda number: rows[number]["psnr"])
    return {
        "groups": len(groups),
        "shared": study.psnr(study.method(shared, group)),
        "shared_held_out": study.psnr(study.method(shared, group), OTHER),
        "best_held_out": study.psnr(study.method(tried[best][1], group), OTHER),
        "best": rows[best],
        "rows": rows,
    }


def tokens(study: Study) -> list[dict[str, Any]]:
    """One computed step less, and some tokens of the gaps in its place: in every block, and in the deepest quarter."""
    whole = study.macs(study.method({None: study.pattern}, lambda site: None))
    rows = []
    for from_depth, at in itertools.product((0, 0.75), range(1, STEPS)):
        if study.pattern[at] == ".":
            continue
        fewer = study.pattern[:at] + "." + study.pattern[at + 1 :]
        base = study.method({None: fewer}, lambda site: None)

        def selective(share: float, base: fc.Method = base, from_depth: float = from_depth) -> fc.Method:
            return fc.selective(base, from_depth, share, every=1)

        share = bisect(lambda share, selective=selective: study.macs(selective(share)) <= whole, 0.02, 0.98)
        row = {"pattern": fewer, "from_depth": from_depth, "share": share, "psnr": study.psnr(selective(share))}
        row |= {"alone": study.psnr(base), "macs": study.macs(selective(share)) / whole}
        rows.append(row)
        print(f"{fewer}, {share:.0%} of the tokens from depth {from_depth:g}: {row['psnr']:.2f} dB", flush=True)
    return rows


def token_sentences(document: Mapping[str, Any]) -> list[str]:
    """The effect of the tokens."""
    lines = []
    for trial in document["tokens"]:
        best = max(trial["rows"], key=lambda row: row["psnr"])
        lines.append(
            f"{trial['computed']} computed, one of them given up for {best['share']:.0%} of the gaps' tokens (the best "
            f"of {len(trial['rows'])} ways): {best['psnr']:.2f} dB instead of {trial['whole']:.2f}; without these "
            f"tokens {best['alone']:.2f}."
        )
    return lines


def table(document: Mapping[str, Any]) -> list[str]:
    """The table, the sentences on tokens, and the note."""
    lines = [
        "| computed | a schedule for each | tried | one for all, dB | median of moved | best | one for all, others "
        "| best, others | staggered, best |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["studies"]:
        kinds = {
            kind: [trial["psnr"] for trial in row["rows"] if trial["kind"] == kind] for kind in ("moved", "staggered")
        }
        lines.append(
            f"| {row['computed']} | {row['by']} | {len(row['rows'])} | {row['shared']:.2f} "
            f"| {statistics.median(kinds['moved']):.2f} | {row['best']['psnr']:.2f} | {row['shared_held_out']:.2f} "
            f"| {row['best_held_out']:.2f} | {max(kinds['staggered']):.2f} |"
        )
    note = (
        f"{document['model']}, {STEPS} steps, {document['samples']} samples, {document['held_out']} others. "
        f"{common.machine(document['environment'])}."
    )
    return [*lines, "", *token_sentences(document), "", note]


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", choices=["digits", "digits-text"])
    parser.add_argument("--counts", type=int, nargs="*", default=[10, 7], help="computed steps of tuned plans")
    parser.add_argument("--samples", type=int, default=20, help="samples that schedules are tried on")
    parser.add_argument("--held-out", type=int, default=60, help="other samples")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    model = zoo.load_digits() if args.model == "digits" else zoo.load_digits_text()
    document: dict[str, Any] = {
        "command": common.command("granularity.py", words),
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
        study = Study(model, plans(args.model, None, STEPS)[count], args.samples, args.held_out)
        for by, group in ways.items():
            print(f"{count} computed ({study.forecast}), a schedule for each {by}", flush=True)
            document["studies"].append(
                {"computed": count, "by": by, "forecast": str(study.forecast), **compare(study, group)}
            )
        whole = study.psnr(study.method({None: study.pattern}, lambda site: None))
        document["tokens"].append({"computed": count, "whole": whole, "rows": tokens(study)})
    common.save(f"granularity-{args.model}", document)
    common.fill_page(f"table granularity {args.model}", table(document))


if __name__ == "__main__":
    main(sys.argv[1:])
