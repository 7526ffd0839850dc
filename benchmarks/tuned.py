"""Tuned plans beside every other way to the same number of computed steps, on samples that they were not tuned on.

    python benchmarks/tuned.py digits                     the table and the plot of docs/tuning.md (an hour)
    python benchmarks/tuned.py digits --steps 50 --counts 33 25 17 11 --samples 400
    python benchmarks/tuned.py digits --samples 200       a quicker look
    python benchmarks/tuned.py digits --no-more           table and plots of what benchmarks/results has, nothing sampled
    python benchmarks/tuned.py digits --ship out/tune     the plans of a folder of `forecache tune` ship from now on

Plans: those that ship with the model (`zoo.tuned_path`), or of a folder of `forecache tune` (--plans). The other
methods compute as many steps, evenly spread where they have no schedule of their own (benchmarks/tuned_others.py). Rows
of other libraries are those of benchmarks/peers.py (out/peers), if they were measured with as many samples. Every row
is kept when it is done (out/tuned/): a run that was stopped goes on. Writes the plot, the table in docs/tuning.md, and
benchmarks/results/tuned-<model>-<steps>.json. What each part of a tuned plan does: benchmarks/tuned_parts.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from digits import ROOT, fill
from peer_runs import BARE
from tuned_others import Others

import forecache as fc
from forecache import bench, report, sources, zoo
from forecache.evaluate import Moments, frechet_distance, psnr
from forecache.sources import Sampling, in_batches
from forecache.zoo import DigitsText, digits_text
from forecache.zoo.captions import pairs

BATCH, SEED = 100, 0
COUNTS = (13, 10, 7, 5)
KEPT = ROOT / "out/tuned"
MOST = 80.0


class Rows:
    """What was measured on a model, kept in a file."""

    def __init__(self, name: str, samples: int, steps: int = 20) -> None:
        self.name, self.steps = name, steps
        self.model: Any = zoo.load_digits() if name == "digits" else zoo.load_digits_text()
        self.source = sources.as_source(self.model)
        every = sources.everything(self.source)
        self.asked = [every[index % len(every)] for index in range(samples)]
        self.guidance = sources.own_guidance(self.source)
        KEPT.mkdir(parents=True, exist_ok=True)
        self.path = KEPT / f"{name}-{samples}-{steps}.json"
        self._images = KEPT / f"{name}-uncached-{samples}-{steps}.pt"
        if not self._images.exists():
            torch.save(self.sample(steps), self._images)
        self.uncached = torch.load(self._images, weights_only=True)
        self.keep("no cache", steps, 1.0, self.uncached)

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Those that are done, by this process or another one beside it."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def sample(self, steps: int) -> torch.Tensor:
        return in_batches(self.source, self.asked, Sampling(steps, self.guidance, SEED), BATCH)

    def keep(
        self, name: str, computed: int, speedup: float, images: torch.Tensor, about: str = "", plan: str = ""
    ) -> None:
        if isinstance(self.model, DigitsText):
            right = self.model.recognised(images) == torch.tensor(pairs(len(self.asked)))
            right = right.all(1)
        else:
            right = self.model.recognised(images) == torch.tensor(self.asked)
        near = psnr(images, self.uncached).clamp_max(MOST).mean().item()
        row = {
            "name": name,
            "computed": computed,
            "fewer_macs": speedup,
            "schedule": about,
            "plan": plan,
            "psnr_db": None if name == "no cache" else near,
            "frechet": frechet_distance(Moments.of(self.model.features(images)), self.model.reference),
            "class_accuracy": right.float().mean().item(),
        }
        self.path.write_text(json.dumps(self.rows | {f"{name} | {computed}": row}, indent=1))
        print(f"{computed} of {self.steps}, {name}: {near:.2f} dB", flush=True)

    def measure(self, name: str, plan: fc.Plan, computed: int) -> None:
        digest = hashlib.sha256(repr(plan.rows).encode()).hexdigest()[:16]
        known = self.rows.get(f"{name} | {computed}")
        if known is not None and known.get("plan", digest) == digest:
            return
        with fc.apply(self.source.target, plan):
            images = self.sample(self.steps)
        cost = plan.cost(self.source.target, inputs=sources.call(self.source, 2))
        self.keep(name, computed, cost.speedup, images, plan.picture(), digest)

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
        self.keep(name, count, self.steps / count, images)


def plans(name: str, folder: Path | None, steps: int = 20) -> dict[int, fc.Plan]:
    """The tuned plans for so many steps, by computed steps."""
    files = sorted((folder or zoo.tuned_folder(name)).glob("plan-*.json"))
    found = [plan for plan in map(fc.Plan.load, files) if plan.num_steps == steps]
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
    kept, timed = ROOT / f"out/peers/digits-{samples}-20.json", ROOT / "benchmarks/results/peers-digits.json"
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


def draw(found: Mapping[str, Mapping[str, Any]], counts: tuple[int, ...], path: Path, title: str) -> None:
    """PSNR against computed steps: tuned plans as a line, the others as points."""
    plt = report.pyplot()
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    rows = [row for row in found.values() if row["psnr_db"] is not None and row["computed"] in counts]
    kinds = {
        "tuned": ("o-", [row for row in rows if row["name"] == "tuned"]),
        "fewer steps, no cache": ("v", [row for row in rows if " steps" in row["name"] and row["name"][0].isdigit()]),
    }
    known = [row["name"] for _, some in kinds.values() for row in some]
    rest = [row for row in rows if row["name"] not in known]
    kinds["forecache's other methods"] = ("s", [row for row in rest if not row["name"].startswith(PEERS)])
    kinds["other libraries"] = ("x", [row for row in rest if row["name"].startswith(PEERS)])
    for name, (style, some) in kinds.items():
        ordered = sorted(some, key=lambda row: row["computed"])
        places = [row["computed"] for row in ordered]
        axes.plot(places, [row["psnr_db"] for row in ordered], style, label=name, alpha=0.8)
    axes.set(xlabel="computed steps", ylabel="PSNR to the samples without a cache, dB", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


PEERS = ("cache-dit", "diffusers", "SmoothCache static")


def summary(found: Mapping[str, Mapping[str, Any]], counts: tuple[int, ...]) -> list[str]:
    """PSNR of the tuned plans beside the best of every other kind, for the README."""
    lines = [
        "| computed | tuned | best published method | best other library | as many steps |",
        "|---|---|---|---|---|",
    ]
    for count in counts:
        mine = [row for row in found.values() if row["computed"] == count and row["psnr_db"] is not None]
        tuned = next((row for row in mine if row["name"] == "tuned"), None)
        if tuned is None:
            continue
        plain = [row for row in mine if row["name"][0].isdigit()]
        theirs = [row for row in mine if row["name"].startswith(PEERS)]
        published = [row for row in mine if row is not tuned and row not in plain and row not in theirs]
        best = [max(rows, key=lambda row: row["psnr_db"], default=None) for rows in (published, theirs, plain)]
        others = [f"{row['psnr_db']:.1f} ({row['name'].removeprefix('ours: ')})" if row else "" for row in best]
        others[2] = others[2].split(" (")[0]
        macs = f", {tuned['fewer_macs']:.2f}x fewer MACs"
        lines.append(f"| {count} of 20{macs} | **{tuned['psnr_db']:.1f}** | {' | '.join(others)} |")
    return lines


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["digits", "digits-text"])
    parser.add_argument("--ship", type=Path, help="a folder of `forecache tune` whose plans ship from now on; and stop")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--plans", type=Path, help="folder of `forecache tune`; by default the plans that ship")
    parser.add_argument("--counts", type=int, nargs="*", default=list(COUNTS), help="computed steps")
    parser.add_argument("--no-more", action="store_true", help="write again what benchmarks/results has")
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
        document = measured(args) | {"command": " ".join(["python benchmarks/tuned.py", *words])}
        path.write_text(json.dumps(document, indent=1) + "\n")
    publish(args, json.loads(path.read_text()))


def ship(model: str, folder: Path) -> None:
    """Plans by what they compute, and the list of all."""
    for plan in map(fc.Plan.load, sorted(folder.glob("plan-*.json"))):
        computed = sum(cell.computed for cell in plan.rows[0])
        plan.save(zoo.tuned_folder(model) / f"plan-{computed}-of-{plan.num_steps}.json")
    fill(ROOT / "docs/tuning.md", "table ready", ready())


def measured(args: argparse.Namespace) -> dict[str, Any]:
    rows = Rows(args.model, args.samples, args.steps)
    with_theirs = args.model == "digits" and args.steps == 20
    measure_all(rows, args, with_peers(rows.rows, args.samples) if with_theirs else rows.rows)
    found = with_peers(rows.rows, args.samples) if with_theirs else rows.rows
    about = {"environment": bench.environment(), "seed": SEED, "samples": args.samples}
    return about | {"counts": args.counts, "rows": list(found.values())}


def publish(args: argparse.Namespace, document: Mapping[str, Any]) -> None:
    """Table and plot in docs/tuning.md, and the short table of the README."""
    name, counts = f"{args.model}-{args.steps}", tuple(document["counts"])
    found = {f"{row['name']} | {row['computed']}": row for row in document["rows"]}
    said = note(args, document)
    title = f"{args.model}, {args.steps} steps, {document['samples']} samples"
    draw(found, counts, ROOT / f"docs/images/tuned-{name}.png", title)
    picture = f"![PSNR against computed steps](images/tuned-{name}.png)"
    fill(ROOT / "docs/tuning.md", f"table tuned {name}", [*table(found, counts), "", said, "", picture])
    if name == "digits-20":
        fill(ROOT / "README.md", "tuned", [*summary(found, counts), "", said])


def measure_all(rows: Rows, args: argparse.Namespace, known: Mapping[str, Any]) -> None:
    """Every row that is not known."""
    for count, plan in plans(args.model, args.plans, args.steps).items():
        if count in args.counts:
            rows.measure("tuned", plan, count)
    paths = {"digits": zoo.statistics_path, "digits-text": digits_text.statistics_path}
    statistics = fc.Statistics.load(paths[args.model](20)) if args.steps == 20 else None
    others = Others(rows.source, args.model, args.steps, statistics)
    for count in args.counts:
        rows.fewer_steps(count, solver=False)
        rows.fewer_steps(count, solver=True)
        for name, plan in others.plans(count):
            if f"{name} | {count}" not in known and f"{name} | {count}" not in rows.rows:
                rows.measure(name, plan(), count)


def ready() -> list[str]:
    """The plans that ship, and what their provenance says."""
    lines = ["| model | computed | schedule | found | PSNR to no cache |", "|---|---|---|---|---|"]
    for model in ("digits", "digits-text"):
        ordered = [(steps, *each) for steps in (20, 50) for each in sorted(plans(model, None, steps).items())[::-1]]
        for of, count, plan in ordered:
            steps = "".join("#" if cell.computed else "." for cell in plan.rows[0])
            forecast = plan.provenance["method"].split(", ", 1)[1].strip("')")
            found = f"{forecast}; {plan.provenance['tuned'].split(' with')[0]}"
            lines.append(f"| {model} | {count} of {of} | `{steps}` | {found} | {plan.provenance['psnr']} |")
    return lines


def note(args: argparse.Namespace, document: Mapping[str, Any]) -> str:
    place = document["environment"]
    return (
        f"{args.model}, {args.steps} steps, {document['samples']} samples of seed {SEED}; tuned on other noise. PSNR to "
        f"samples without a cache; Fréchet distance of the judge's features to the MNIST test set. {place['cpu']}, "
        f"torch {place['torch']}, diffusers {place['diffusers']}."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
