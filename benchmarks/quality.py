"""Quality of many plans on the bundled models, with the spread over seeds: the tables of docs/.

    python benchmarks/quality.py corrections                 every seed, then the table (about 35 minutes)
    python benchmarks/quality.py corrections --seeds 0       one seed; several processes can share the work
    python benchmarks/quality.py corrections --seeds         the table from what was measured, MACs counted again
    python benchmarks/quality.py text-corrections            on digits-text (text-procache: the same)

Conditions are cycled: label i is i mod 10, and the hundred captions. Every row is written when it is done
(out/quality/), and not measured again. Writes benchmarks/results/quality-<table>.json with command, hardware and
versions, and the table between the markers in its page. Statistics: `make statistics`, measured with a seed of its own.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import common
import procache
import torch
from routers import at_random, in_order
from torch import Tensor

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.evaluate import Moments, frechet_distance, psnr
from forecache.parts.forecasts import Gradient
from forecache.sampling import sources
from forecache.sampling.sources import Condition, Sampling, Source, in_batches
from forecache.zoo import Digits, DigitsText
from forecache.zoo.captions import pairs
from forecache.zoo.digits_text import GUIDANCE

BATCH = 50
ROWS = common.WORK / "quality"
UNCACHED = "no cache"


class Model(NamedTuple):
    """A model that tables are measured on.

    name: of the model.
    load: opens it.
    guidance: classifier-free guidance scale.
    sampler: name of its scheduler.
    statistics: name of the file of statistics per token.
    about: what the columns of the table mean.
    """

    name: str
    load: Callable[[], Digits | DigitsText]
    guidance: float
    sampler: str
    statistics: str
    about: str


DIGITS = Model(
    "digits", zoo.load_digits, 1.5, "DDIM", "statistics-20",
    "classifier features to the MNIST test set; share recognised as the class asked for",
)  # fmt: skip
TEXT = Model(
    "digits-text", zoo.load_digits_text, GUIDANCE, "DPM-Solver++ 2M", "digits-text-statistics-20",
    "the judge's features to the MNIST test set; share with both digits as the caption says",
)  # fmt: skip


def per_token(model: Model = DIGITS) -> fc.Statistics:
    """The statistics per token that `make statistics` measures."""
    return fc.Statistics.load(common.WORK / f"{model.statistics}.safetensors")


class Undivided(Gradient):
    """GOC's queue with eta not divided by the gap."""

    def weights(self, step: int, past: Sequence[int], gap: int = 0) -> tuple[float, ...]:
        return super().weights(step, past)


def corrections(model: Model = DIGITS) -> dict[str, fc.Method]:
    """FORA 50 % and 75 %, and every correction on both."""
    stats = per_token(model)
    gate = fc.parts.gates.god(stats, gamma=0.5, threshold=0.45)
    rows = {}
    for level in (50, 75):
        base = fc.methods.fora_paper(level)
        rows[f"FORA {level} %"] = base
        rows[f"FORA {level} % + GC 0.8"] = fc.goc(base, 0.8)
        rows[f"FORA {level} % + GOC 0.8"] = fc.goc(base, 0.8, gate=gate)
        for judge in ("prior", "all"):
            rows[f"FORA {level} % + EOC relative, {judge}"] = fc.eoc(base, stats, judge=judge)
        for judge in ("prior", "all"):
            rows[f"FORA {level} % + EOC additive 0.3, {judge}"] = fc.eoc(base, stats, 0.3, form="additive", judge=judge)
    overshooting = replace(fc.goc(fc.methods.fora_paper(75), 0.8), forecast=Undivided(0.8))
    rows["FORA 75 % + GC 0.8, not divided by the gap"] = overshooting
    taylor = fc.taylorseer(fc.methods.fora_paper(50), 1)
    rows["Taylor 1, 50 %"] = taylor
    rows["Taylor 1, 50 % + EOC additive 1, prior"] = fc.eoc(taylor, stats, 1.0, form="additive")
    rows["the same, per channel"] = fc.eoc(taylor, stats, 1.0, form="additive", per="channel")
    return rows


def l2c() -> dict[str, fc.Method]:
    """The bundled routers with every correction, and schedules that skip as many cells."""
    stats, digits = per_token(), zoo.load_digits()
    grid = fc.grid(digits, 20)
    rows = {}
    for level in (22,):
        router = fc.Router.load(zoo.record("digits").router_path(level))
        base, count = fc.l2c(router), int(router.skips().sum())
        rows[f"FORA {level} %, first odd calls"] = in_order(grid, count, list(range(1, 20, 2)))
        rows[f"random router {level} %"] = at_random(grid, count, 0)
        rows[f"L2C {level} %"] = base
        rows[f"L2C {level} % + GOC 1.0"] = fc.goc(base, 1.0)
        rows[f"L2C {level} % + EOC relative"] = fc.eoc(base, stats)
    return rows


def intervals() -> dict[str, fc.Method]:
    """Every base schedule with every forecast that needs no calibration, and what stands beside them."""
    stats = fc.Statistics.load(zoo.record("digits").statistics_path(20))
    rows = {}
    for interval in (2, 3, 4):
        base, name = fc.fora(interval), f"N = {interval}"
        rows[f"FORA, {name}"] = base
        rows[f"GOC 0.8, {name}"] = fc.goc(base, 0.8)
        rows[f"Taylor 1, {name}"] = fc.taylorseer(base, 1)
        rows[f"Taylor 2, {name}"] = fc.taylorseer(base, 2)
        rows[f"Feedback 2, 0.5, {name}"] = fc.feedback(base, 2, 0.5)
    rows["FORA, N = 3, from the end"] = fc.fora(3, anchor="end")
    rows["Taylor 1, N = 3 after 3"] = fc.taylorseer(fc.warmup(fc.fora(3), 3), 1)
    for change in (0.2, 0.3, 0.5):
        rows[f"SmoothCache {change:g}"] = fc.smoothcache(stats, change)
    rows["SmoothCache 0.5, Taylor 1"] = fc.taylorseer(fc.smoothcache(stats, 0.5), 1)
    rows["ToCa 25 %, N = 4"] = fc.toca(fc.fora(4), 0.25)
    router = fc.Router.load(zoo.record("digits").router_path(40))
    rows["L2C 39 %"] = fc.l2c(router)
    rows["L2C 39 %, GOC 1.0"] = fc.goc(fc.l2c(router), 1.0)
    return rows


class Table(NamedTuple):
    """A table of quality.

    methods: the rows by name.
    steps: sampling steps.
    model: what samples.
    samples: of a row and seed.
    seeds: of the noise.
    """

    methods: Callable[[], dict[str, fc.Method]]
    steps: int
    model: Model = DIGITS
    samples: int = 1000
    seeds: tuple[int, ...] = (0, 1, 2)


TABLES: Mapping[str, Table] = {
    "corrections": Table(corrections, 20),
    "l2c": Table(l2c, 20),
    "intervals": Table(intervals, 20, samples=300),
    "procache": Table(procache.methods, procache.DIGITS.steps),
    "text-corrections": Table(lambda: corrections(TEXT), 20, TEXT, 300, (0, 1)),
    "text-procache": Table(lambda: procache.methods(procache.TEXT), 20, TEXT, 300, (0, 1)),
}


def recorded(table: str, seed: int, samples: int) -> dict[str, dict[str, Any]]:
    """The rows of one seed in the committed result; none if that has another number of samples."""
    document = common.load(f"quality-{table}")
    return document["seeds"].get(str(seed), {}) if document.get("sampler", {}).get("samples") == samples else {}


class Seed:
    """The rows of one table at one seed, and their file."""

    def __init__(self, table: str, seed: int, samples: int) -> None:
        self.path = ROWS / f"{table}-{seed}-{samples}.json"
        self.rows: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else {}
        model, steps = TABLES[table].model, TABLES[table].steps
        self.how = Sampling(steps, model.guidance, seed)
        prefix = "" if model is DIGITS else f"{model.name}-"
        self.samples = samples
        self.uncached = ROWS / f"{prefix}uncached-{steps}-{seed}-{samples}.pt"

    def measure(self, model: Digits | DigitsText, methods: Mapping[str, fc.Method]) -> None:
        """Measure the rows that are not there."""
        ROWS.mkdir(parents=True, exist_ok=True)
        source = sources.as_source(model)
        conditions = sources.all_conditions(source)
        asked = [conditions[index % len(conditions)] for index in range(self.samples)]
        reference = self._reference(source, asked)
        self._save(UNCACHED, self._figures(model, reference, reference))
        for name, method in methods.items():
            if name in self.rows:
                continue
            plan = method.plan(fc.grid(source.target, self.how.num_steps))
            with fc.apply(source.target, plan):
                images = in_batches(source, asked, self.how, BATCH)
            about = {
                "method": method.name,
                "picture": plan.picture(),
                "macs_ratio": macs_ratio(source, plan),
                "constant_bytes": plan.constants.nbytes,
            }
            self._save(name, about | self._figures(model, images, reference))
            print(f"seed {self.how.seed}, {name}: {self.rows[name]['psnr']:.2f} dB", flush=True)

    def _reference(self, source: Source, asked: list[Condition]) -> Tensor:
        if not self.uncached.exists():
            torch.save(in_batches(source, asked, self.how, BATCH), self.uncached)
        return torch.load(self.uncached, weights_only=True)

    def _figures(self, model: Digits | DigitsText, images: Tensor, reference: Tensor) -> dict[str, float]:
        if isinstance(model, DigitsText):
            right = (model.recognised(images) == torch.tensor(pairs(self.samples))).all(1)
        else:
            right = model.recognised(images) == torch.arange(self.samples) % 10
        return {
            "psnr": psnr(images, reference).mean().item(),
            "frechet": frechet_distance(Moments.of(model.features(images)), model.reference),
            "class_accuracy": right.float().mean().item(),
        }

    def _save(self, name: str, row: dict[str, Any]) -> None:
        self.rows[name] = row
        self.path.write_text(json.dumps(self.rows, indent=1))


def macs_ratio(source: Source, plan: fc.Plan) -> float:
    """How many times fewer MACs a run with guidance takes."""
    return plan.cost(source.target, inputs=sources.call_inputs(source, 2)).speedup


def spread(values: list[float], digits: int, scale: float = 1.0) -> str:
    """The mean with half the range over the seeds; of one seed, the figure alone."""
    if len(values) == 1:
        return f"{values[0] * scale:.{digits}f}"
    half = (max(values) - min(values)) / 2
    return f"{statistics.fmean(values) * scale:.{digits}f} ± {half * scale:.{digits}f}"


def _seeds_note(seeds: list[Seed]) -> str:
    """How the figures of a table depend on seeds."""
    several = f" and seed, mean and half the range over {len(seeds)} seeds"
    return several if len(seeds) > 1 else f", seed {seeds[0].how.seed} alone: differences have no interval here"


def write_table(table: str, wanted: list[str], seeds: list[Seed], command: str) -> None:
    """Write the result, and the table in its page."""
    steps, model = TABLES[table].steps, TABLES[table].model
    right = "class" if model is DIGITS else "as asked"
    names = [name for name in wanted if all(name in seed.rows for seed in seeds)]
    lines = [f"| plan | fewer MACs | PSNR, dB | Fréchet | {right}, % |", "|---|---|---|---|---|"]
    for name in names:
        rows = [seed.rows[name] for seed in seeds]
        macs = f"{rows[0]['macs_ratio']:.2f}x" if name != UNCACHED else ""
        decibels = spread([row["psnr"] for row in rows], 2) if name != UNCACHED else ""
        quality = spread([row["frechet"] for row in rows], 2)
        accuracy = spread([row["class_accuracy"] for row in rows], 2, 100)
        lines.append(f"| {name} | {macs} | {decibels} | {quality} | {accuracy} |")
    place = environment()
    count = seeds[0].samples
    sampler = f"{model.sampler}-{steps}" if model is DIGITS else f"{model.sampler}, {steps} steps"
    note = (
        f"{model.name}, {sampler}, guidance {model.guidance:g}, {count} samples a row{_seeds_note(seeds)}. "
        f"PSNR to the uncached samples; Fréchet distance of {model.about}. "
        f"{common.machine(place, 'diffusers')}."
    )
    document = {
        "command": command,
        "environment": place,
        "sampler": {"name": sampler, "guidance": model.guidance, "samples": count, "batch": BATCH},
        "seeds": {seed.how.seed: {name: seed.rows[name] for name in names} for seed in seeds},
    }
    common.save(f"quality-{table}", document)
    common.fill_page(f"table {table}", [*lines, "", note])
    print("\n".join(lines))


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--samples", type=int, default=None, help="a row and seed [1000; 300 on digits-text]")
    parser.add_argument("--seeds", type=int, nargs="*", default=None, help="measure these; none: only write the table")
    args = parser.parse_args(words)
    table = TABLES[args.table]
    samples, all_seeds = args.samples or table.samples, list(table.seeds)
    wanted = all_seeds if args.seeds is None else args.seeds
    methods = table.methods()
    if wanted:
        model = table.model.load()
        for seed in wanted:
            Seed(args.table, seed, samples).measure(model, methods)
    if wanted in ([], all_seeds):
        of_table = [Seed(args.table, seed, samples) for seed in all_seeds]
        for seed in of_table:
            if not wanted and not seed.rows:
                seed.rows = recorded(args.table, seed.how.seed, samples)
        seeds = [seed for seed in of_table if {UNCACHED, *methods} <= set(seed.rows)]
        if not seeds:
            raise SystemExit(f"No seed of {args.table} is measured in full: leave --seeds out, or name one.")
        source = sources.as_source(table.model.load())
        for name, method in methods.items():
            ratio = macs_ratio(source, method.plan(fc.grid(source.target, table.steps)))
            for seed in seeds:
                seed.rows[name]["macs_ratio"] = ratio
        command = common.command("quality.py", [args.table, "--samples", str(samples)])
        write_table(args.table, [UNCACHED, *methods], seeds, command)


if __name__ == "__main__":
    main(sys.argv[1:])
