"""Tuned plans beside every other way to the same number of computed steps, on samples that they were not tuned on.

    python benchmarks/tuned.py digits              the table and the plot of docs/measured/tuned-plans.md (three hours)
    python benchmarks/tuned.py digits --steps 50 --counts 33 25 17 11 --samples 400
    python benchmarks/tuned.py digits --samples 200       a quicker look
    python benchmarks/tuned.py digits --no-more           table and plot again, from benchmarks/results
    python benchmarks/tuned.py digits --ship out/tune     make the plans of a folder of `forecache tune` those that ship

Plans: those that ship with the model (`Record.tuned_folder`), or of a folder of `forecache tune` (--plans). The other
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
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import torch
import tuned_pages
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor
from tuned_others import Others
from tuned_peers import Peers

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.evaluate import Moments, frechet_distance, psnr
from forecache.sampling import sources
from forecache.sampling.sources import Condition, Sampling, in_batches
from forecache.sampling.timing import Spread, alternate, seconds_of
from forecache.zoo import DigitsText
from forecache.zoo.captions import pairs

BATCH, SEED = 100, 0
ROWS = common.WORK / "tuned"
MOST = 80.0
"""dB of an image that is equal to the uncached one."""
TIMED, ROUNDS = 8, 3
"""Images of a timed run, and rounds."""
Sampled = Callable[[Sequence[Condition]], Tensor]


class Rows:
    """The rows measured on a model, and their file, so that an interrupted run continues."""

    def __init__(self, name: str, samples: int, steps: int = 20, timed: bool = False) -> None:
        self.name, self.steps, self.timed = name, steps, timed
        self.model: Any = zoo.load_digits() if name == "digits" else zoo.load_digits_text()
        self.source = sources.as_source(self.model)
        conditions = sources.all_conditions(self.source)
        self.asked = [conditions[index % len(conditions)] for index in range(samples)]
        self.guidance = sources.own_guidance(self.source)
        ROWS.mkdir(parents=True, exist_ok=True)
        self.path = ROWS / f"{name}-{samples}-{steps}.json"
        self._images = ROWS / f"{name}-uncached-{samples}-{steps}.pt"
        if not self._images.exists():
            torch.save(self.plain(self.asked), self._images)
        self.uncached = torch.load(self._images, weights_only=True)
        self.row("no cache", steps, self.plain, lambda: {"fewer_macs": 1.0})

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The finished rows, of this process or of another one beside it."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def plain(self, asked: Sequence[Condition], steps: int | None = None) -> Tensor:
        """Samples without a plan."""
        return in_batches(self.source, asked, Sampling(steps or self.steps, self.guidance, SEED), BATCH)

    def row(
        self, name: str, computed: int, sampled: Sampled, about: Callable[[], Mapping[str, Any]], plan: str = ""
    ) -> None:
        """Judge and time a row that is not finished, or that is of another plan."""
        known = self.rows.get(f"{name} | {computed}", {})
        if not known or known.get("plan", plan) != plan:
            images = self.uncached if name == "no cache" else sampled(self.asked)
            known = {"name": name, "computed": computed, "plan": plan, **about(), **self._quality(images)}
            print(f"{computed} of {self.steps}, {name}: {known['psnr']:.2f} dB", flush=True)
            known["psnr"] = None if name == "no cache" else known["psnr"]
            self._save(known)
        if self.timed and "less_time" not in known:
            few = self.asked[:TIMED]
            self._save(known | {"less_time": faster(lambda: self.plain(few), lambda: sampled(few))})

    def _save(self, row: dict[str, Any]) -> None:
        self.path.write_text(json.dumps(self.rows | {f"{row['name']} | {row['computed']}": row}, indent=1))

    def _quality(self, images: Tensor) -> dict[str, Any]:
        if isinstance(self.model, DigitsText):
            right = (self.model.recognised(images) == torch.tensor(pairs(len(self.asked)))).all(1)
        else:
            right = self.model.recognised(images) == torch.tensor(self.asked)
        return {
            "psnr": psnr(images, self.uncached).clamp_max(MOST).mean().item(),
            "frechet": frechet_distance(Moments.of(self.model.features(images)), self.model.reference),
            "class_accuracy": right.float().mean().item(),
        }

    def measure(self, name: str, plan: fc.Plan, computed: int) -> None:
        """The row of a plan."""

        def sampled(asked: Sequence[Condition]) -> Tensor:
            with fc.apply(self.source.target, plan):
                return self.plain(asked)

        def about() -> dict[str, Any]:
            cost = plan.cost(self.source.target, inputs=sources.call_inputs(self.source, 2))
            return {"fewer_macs": cost.speedup, "schedule": plan.picture()}

        self.row(name, computed, sampled, about, hashlib.sha256(repr(plan.rows).encode()).hexdigest()[:16])

    def fewer_steps(self, count: int) -> None:
        """The baseline that samples with ``count`` steps and skips nothing."""
        self.row(
            f"{count} steps", count, lambda asked: self.plain(asked, count), lambda: {"fewer_macs": self.steps / count}
        )

    def better_solver(self, count: int) -> None:
        """The same with DPM-Solver++."""
        own = self.model.scheduler

        def sampled(asked: Sequence[Condition]) -> Tensor:
            object.__setattr__(self.model, "scheduler", DPMSolverMultistepScheduler.from_config(own.config))
            try:
                return self.plain(asked, count)
            finally:
                object.__setattr__(self.model, "scheduler", own)

        self.row(f"{count} steps of DPM-Solver++", count, sampled, lambda: {"fewer_macs": self.steps / count})


def faster(without: Callable[[], object], run: Callable[[], object]) -> float:
    """How many times less time ``run`` takes: the median over alternating rounds, after one that warms up."""
    seconds = alternate({"without": lambda: seconds_of(without), "run": lambda: seconds_of(run)}, ROUNDS)
    return Spread.of_ratios(seconds["without"], seconds["run"]).median


def plans(name: str, folder: Path | None, steps: int = 20) -> dict[int, fc.Plan]:
    """The tuned plans for a number of steps, by computed steps."""
    files = sorted((folder or zoo.record(name).tuned_folder).glob("plan-*.json"))
    of_length = [plan for plan in map(fc.Plan.load, files) if plan.num_steps == steps]
    return {tuned_pages.pattern(plan).count("#"): plan for plan in of_length}


def listed(name: str, steps: int) -> list[tuple[str, fc.Plan]]:
    """The plans that ship with a model, those that compute most first."""
    by_count = plans(name, None, steps)
    return [(name, by_count[count]) for count in sorted(by_count, reverse=True)]


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """The arguments."""
    parser = common.parser(__doc__)
    parser.add_argument("model", choices=["digits", "digits-text"])
    parser.add_argument("--ship", type=Path, help="ship the plans of a folder of `forecache tune`, and stop")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--samples", type=int, default=2000, help="samples of a row")
    parser.add_argument("--plans", type=Path, help="folder of `forecache tune`; by default the plans that ship")
    parser.add_argument("--counts", type=int, nargs="*", help="computed steps; by default those of the plans")
    parser.add_argument("--no-more", action="store_true", help="write table and plot again, from benchmarks/results")
    parser.add_argument(
        "--only", choices=["ours", "peers", "known"], help="measure these rows, and stop; known: none, and write"
    )
    parser.add_argument("--timed", action="store_true", help="time every row; needs an idle machine")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> None:
    args = arguments(words)
    torch.set_num_threads(args.threads)
    if args.ship is not None:
        ship(args.model, args.ship)
        return
    name = f"{args.model}-{args.steps}"
    if not args.no_more:
        args.counts = args.counts or sorted(plans(args.model, args.plans, args.steps))[::-1]
        document = measured(args) | {"command": common.command("tuned.py", words).removesuffix(" --only known")}
        if args.only in ("ours", "peers"):
            return
        common.save(f"tuned-{name}", document)
    publish(name, common.load(f"tuned-{name}"))


def ship(model: str, folder: Path) -> None:
    """Save the plans in place of those that shipped before, and write the list of all."""
    for plan in map(fc.Plan.load, sorted(folder.glob("plan-*.json"))):
        path = zoo.record(model).tuned_folder / f"plan-{tuned_pages.pattern(plan).count('#')}-of-{plan.num_steps}.json"
        for before in path.parent.glob(f"{path.stem}.*"):
            before.unlink()
        plan.save(path)
    shipped = [pair for name in ("digits", "digits-text") for steps in (20, 50) for pair in listed(name, steps)]
    common.fill_page("table ready", tuned_pages.ready(shipped))


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """The result, after the rows that are not finished were measured."""
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
    """Table and plot in docs/measured/tuned-plans.md, the short one there, and that of the README."""
    rows, counts = document["rows"], document["counts"]
    marker, picture, note = f"table tuned {name}", f"tuned-{name}.png", tuned_pages.note(name, document)
    tuned_pages.draw(rows, counts, common.IMAGES / picture, note.split(" of seed")[0])
    shown = common.picture(marker, picture, "PSNR against computed steps")
    common.fill_page(marker, [*tuned_pages.table(rows, counts), "", note, "", shown])
    if name == "digits-20":
        common.fill_page("tuned", [*tuned_pages.summary(rows, counts), "", note])
        readme = [*tuned_pages.readme(rows), "", tuned_pages.readme_note(document)]
        common.fill(common.ROOT / "README.md", "tuned", readme)


def measure_peers(rows: Rows, counts: Sequence[int]) -> None:
    """The rows of other libraries' caches."""
    peers = Peers(rows.model, rows.steps)
    for count in counts:
        for name, put_on in peers.caches(count):
            running = functools.cache(put_on)
            try:
                rows.row(name, count, lambda asked, running=running: running().images(asked),
                         lambda running=running: peers.about(running()))  # fmt: skip
            except LookupError as error:
                print(f"{count} of {rows.steps}, {name}: left out. {error}", flush=True)


def measure_ours(rows: Rows, args: argparse.Namespace) -> None:
    """The rows of this library that are not finished."""
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
                except fc.errors.PlanError as error:  # partial cells need gaps of two steps
                    print(f"{count} of {args.steps}, {name}: left out. {error}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
