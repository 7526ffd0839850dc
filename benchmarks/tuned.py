"""Tuned plans beside every other way to the same number of computed steps, on samples that they were not tuned on.

    python benchmarks/tuned.py digits              the table and the plot of docs/measured/tuned-plans.md (three hours)
    python benchmarks/tuned.py digits --steps 50 --counts 33 25 17 11 --samples 400
    python benchmarks/tuned.py digits --samples 200       a quicker look
    python benchmarks/tuned.py digits --no-more           what benchmarks/results has, drawn again
    python benchmarks/tuned.py digits --ship out/tune     the plans of a folder of `forecache tune` ship from now on

Plans: those that ship with the model (`zoo.tuned_path`), or of a folder of `forecache tune` (--plans). The other
methods compute as many steps, evenly spread where they have no schedule of their own (benchmarks/tuned_others.py), and
so do other libraries (benchmarks/tuned_peers.py; pip install 'forecache[peers]'). Every row is kept when it is done
(out/tuned/): a run that was stopped goes on, and --only lets two share the work before a third writes the plot, the
table in docs/measured/tuned-plans.md (benchmarks/tuned_pages.py), and
benchmarks/results/tuned-<model>-<steps>.json. What each part of a tuned plan does: benchmarks/tuned_parts.py.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import tuned_pages
from diffusers import DPMSolverMultistepScheduler
from digits import ROOT, fill
from torch import Tensor
from tuned_others import Others
from tuned_peers import Peers

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.evaluate import Moments, frechet_distance, psnr
from forecache.sampling import sources
from forecache.sampling.sources import Condition, Sampling, in_batches
from forecache.zoo import DigitsText
from forecache.zoo.captions import pairs

BATCH, SEED = 100, 0
KEPT = ROOT / "out/tuned"
MOST = 80.0
TIMED, ROUNDS = 8, 3
Sampled = Callable[[Sequence[Condition]], Tensor]


class Rows:
    """What was measured on a model, kept in a file."""

    def __init__(self, name: str, samples: int, steps: int = 20, timed: bool = False) -> None:
        self.name, self.steps, self.timed = name, steps, timed
        self.model: Any = zoo.load_digits() if name == "digits" else zoo.load_digits_text()
        self.source = sources.as_source(self.model)
        every = sources.all_conditions(self.source)
        self.asked = [every[index % len(every)] for index in range(samples)]
        self.guidance = sources.own_guidance(self.source)
        KEPT.mkdir(parents=True, exist_ok=True)
        self.path = KEPT / f"{name}-{samples}-{steps}.json"
        self._images = KEPT / f"{name}-uncached-{samples}-{steps}.pt"
        if not self._images.exists():
            torch.save(self.plain(self.asked), self._images)
        self.uncached = torch.load(self._images, weights_only=True)
        self.row("no cache", steps, self.plain, lambda: {"fewer_macs": 1.0})

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Those that are done, by this process or another one beside it."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def plain(self, asked: Sequence[Condition], steps: int | None = None) -> Tensor:
        """Samples as the model stands."""
        return in_batches(self.source, asked, Sampling(steps or self.steps, self.guidance, SEED), BATCH)

    def row(
        self, name: str, computed: int, sampled: Sampled, about: Callable[[], Mapping[str, Any]], plan: str = ""
    ) -> None:
        """Judge and time what was not yet; plan: a row of another one is measured again."""
        known = self.rows.get(f"{name} | {computed}", {})
        if not known or known.get("plan", plan) != plan:
            images = self.uncached if name == "no cache" else sampled(self.asked)
            known = {"name": name, "computed": computed, "plan": plan, **about(), **self._quality(images)}
            print(f"{computed} of {self.steps}, {name}: {known['psnr_db']:.2f} dB", flush=True)
            known["psnr_db"] = None if name == "no cache" else known["psnr_db"]
            self._keep(known)
        if self.timed and "less_time" not in known:
            few = self.asked[:TIMED]
            self._keep(known | {"less_time": faster(lambda: self.plain(few), lambda: sampled(few))})

    def _keep(self, row: dict[str, Any]) -> None:
        self.path.write_text(json.dumps(self.rows | {f"{row['name']} | {row['computed']}": row}, indent=1))

    def _quality(self, images: Tensor) -> dict[str, Any]:
        if isinstance(self.model, DigitsText):
            right = (self.model.recognised(images) == torch.tensor(pairs(len(self.asked)))).all(1)
        else:
            right = self.model.recognised(images) == torch.tensor(self.asked)
        return {
            "psnr_db": psnr(images, self.uncached).clamp_max(MOST).mean().item(),
            "frechet": frechet_distance(Moments.of(self.model.features(images)), self.model.reference),
            "class_accuracy": right.float().mean().item(),
        }

    def measure(self, name: str, plan: fc.Plan, computed: int) -> None:
        """Under a plan."""

        def sampled(asked: Sequence[Condition]) -> Tensor:
            with fc.apply(self.source.target, plan):
                return self.plain(asked)

        def about() -> dict[str, Any]:
            cost = plan.cost(self.source.target, inputs=sources.call_inputs(self.source, 2))
            return {"fewer_macs": cost.speedup, "schedule": plan.picture()}

        self.row(name, computed, sampled, about, hashlib.sha256(repr(plan.rows).encode()).hexdigest()[:16])

    def fewer_steps(self, count: int) -> None:
        """The honest baseline: as many steps as are computed, nothing skipped."""
        self.row(
            f"{count} steps", count, lambda asked: self.plain(asked, count), lambda: {"fewer_macs": self.steps / count}
        )

    def better_solver(self, count: int) -> None:
        """The same with DPM-Solver++."""
        kept = self.model.scheduler

        def sampled(asked: Sequence[Condition]) -> Tensor:
            object.__setattr__(self.model, "scheduler", DPMSolverMultistepScheduler.from_config(kept.config))
            try:
                return self.plain(asked, count)
            finally:
                object.__setattr__(self.model, "scheduler", kept)

        self.row(f"{count} steps of DPM-Solver++", count, sampled, lambda: {"fewer_macs": self.steps / count})


def faster(without: Callable[[], object], run: Callable[[], object]) -> float:
    """How many times less time it takes: the median of rounds in turn, after one that warms up."""

    def seconds(call: Callable[[], object]) -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return statistics.median([seconds(without) / seconds(run) for _ in range(1 + ROUNDS)][1:])


def plans(name: str, folder: Path | None, steps: int = 20) -> dict[int, fc.Plan]:
    """The tuned plans for so many steps, by computed steps."""
    files = sorted((folder or zoo.record(name).tuned_folder).glob("plan-*.json"))
    found = [plan for plan in map(fc.Plan.load, files) if plan.num_steps == steps]
    return {tuned_pages.pattern(plan).count("#"): plan for plan in found}


def listed(name: str, steps: int) -> list[tuple[str, fc.Plan]]:
    """The plans that ship with a model, those that compute most first."""
    return [(name, plan) for _, plan in sorted(plans(name, None, steps).items(), key=lambda each: -each[0])]


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["digits", "digits-text"])
    parser.add_argument("--ship", type=Path, help="a folder of `forecache tune` whose plans ship from now on; and stop")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--plans", type=Path, help="folder of `forecache tune`; by default the plans that ship")
    parser.add_argument("--counts", type=int, nargs="*", help="computed steps; by default those of the plans")
    parser.add_argument("--no-more", action="store_true", help="write again what benchmarks/results has")
    parser.add_argument(
        "--only", choices=["ours", "peers", "known"], help="measure these rows, and stop; known: none, and go on"
    )
    parser.add_argument("--timed", action="store_true", help="and time every row; needs a machine that is idle")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    args = arguments(words)
    torch.set_num_threads(args.threads)
    if args.ship is not None:
        ship(args.model, args.ship)
        return
    path = ROOT / f"benchmarks/results/tuned-{args.model}-{args.steps}.json"
    if not args.no_more:
        args.counts = args.counts or sorted(plans(args.model, args.plans, args.steps))[::-1]
        document = measured(args) | {
            "command": " ".join(["python benchmarks/tuned.py", *words]).removesuffix(" --only known")
        }
        if args.only in ("ours", "peers"):
            return
        path.write_text(json.dumps(document, indent=1) + "\n")
    publish(f"{args.model}-{args.steps}", json.loads(path.read_text()))


def ship(model: str, folder: Path) -> None:
    """Plans by what they compute, in place of those that shipped before, and the list of all."""
    for plan in map(fc.Plan.load, sorted(folder.glob("plan-*.json"))):
        path = zoo.record(model).tuned_folder / f"plan-{tuned_pages.pattern(plan).count('#')}-of-{plan.num_steps}.json"
        for before in path.parent.glob(f"{path.stem}.*"):
            before.unlink()
        plan.save(path)
    found = [each for name in ("digits", "digits-text") for steps in (20, 50) for each in listed(name, steps)]
    fill(ROOT / "docs/measured/tuned-plans.md", "table ready", tuned_pages.ready(found))


def measured(args: argparse.Namespace) -> dict[str, Any]:
    rows = Rows(args.model, args.samples, args.steps, args.timed)
    if args.only in (None, "ours"):
        measure_ours(rows, args)
    if args.only in (None, "peers"):
        measure_peers(rows, args.counts)
    about = {"environment": environment(), "seed": SEED, "samples": args.samples}
    return about | {
        "counts": args.counts,
        "rows": [row for row in rows.rows.values() if row["computed"] in (args.steps, *args.counts)],
    }


def publish(name: str, document: Mapping[str, Any]) -> None:
    """Table and plot in docs/measured/tuned-plans.md, and the short table of the README."""
    rows, counts = document["rows"], document["counts"]
    said = tuned_pages.note(name, document)
    picture = ROOT / f"docs/images/tuned-{name}.png"
    tuned_pages.draw(rows, counts, picture, said.split(" of seed")[0])
    shown = f"![PSNR against computed steps](../images/{picture.name})"
    lines = [*tuned_pages.table(rows, counts), "", said, "", shown]
    fill(ROOT / "docs/measured/tuned-plans.md", f"table tuned {name}", lines)
    if name == "digits-20":
        fill(ROOT / "README.md", "tuned", [*tuned_pages.summary(rows, counts), "", said])


def measure_peers(rows: Rows, counts: Sequence[int]) -> None:
    """Caches of other libraries."""
    peers = Peers(rows.model, rows.steps)
    for count in counts:
        for name, put_on in peers.caches(count):
            made = functools.cache(put_on)
            try:
                rows.row(name, count, lambda asked, made=made: made().images(asked),
                         lambda made=made: peers.about(made()))  # fmt: skip
            except LookupError as error:
                print(f"{count} of {rows.steps}, {name}: left out. {error}", flush=True)


def measure_ours(rows: Rows, args: argparse.Namespace) -> None:
    """Every row of this library that is not known."""
    for count, plan in plans(args.model, args.plans, args.steps).items():
        if count in args.counts:
            rows.measure("tuned", plan, count)
    path = zoo.record(args.model).statistics.get(20) if args.steps == 20 else None
    statistics = fc.Statistics.load(path) if path is not None else None
    others = Others(rows.source, args.model, args.steps, statistics)
    for count in args.counts:
        rows.fewer_steps(count)
        if args.model == "digits":
            rows.better_solver(count)
        for name, plan in others.plans(count):
            known = rows.rows.get(f"{name} | {count}", {})
            if not known or (args.timed and "less_time" not in known):
                try:
                    rows.measure(name, plan(), count)
                except (
                    fc.errors.PlanError
                ) as error:  # some tokens need gaps of two steps, which few skipped steps do not have
                    print(f"{count} of {args.steps}, {name}: left out. {error}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
