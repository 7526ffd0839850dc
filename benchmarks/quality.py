"""Quality of many plans on the bundled digits model, with the spread over seeds: the tables of docs/.

    python benchmarks/quality.py corrections                 every seed, then the table (about 35 minutes)
    python benchmarks/quality.py corrections --seeds 0       one seed; several processes can share the work
    python benchmarks/quality.py corrections --seeds         the table from what was measured

Guidance 1.5, label i is i mod 10. Every row is written when it is done (out/quality/), and not measured again.
Writes benchmarks/results/quality-<table>.json with command, hardware and versions, and the table between the markers in
its page. Statistics: `make statistics`, measured with another seed than the ones here.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import procache
import torch
from digits import ROOT, fill
from routers import at_random, in_order
from torch import Tensor

import forecache as fc
from forecache import bench, zoo
from forecache.evaluate import Moments, frechet_distance, psnr
from forecache.forecasts import Gradient
from forecache.sources import DigitsSource, Sampling, in_batches

GUIDANCE, BATCH = 1.5, 50
KEPT = ROOT / "out/quality"
UNCACHED = "no cache"


def per_token() -> fc.Statistics:
    return fc.Statistics.load(ROOT / "out/statistics-20.safetensors")


class Undivided(Gradient):
    """GOC's queue with eta as it is in every gap."""

    def weights(self, step: int, past: Sequence[int], gap: int = 0) -> tuple[float, ...]:
        return super().weights(step, past)


def corrections() -> dict[str, fc.Method]:
    """FORA 50 % and 75 %, and every correction on both."""
    stats = per_token()
    gate = fc.gates.god(stats, gamma=0.5, threshold=0.45)
    rows = {}
    for level in (50, 75):
        base = fc.fora_paper(level)
        rows[f"FORA {level} %"] = base
        rows[f"FORA {level} % + GC 0.8"] = fc.goc(base, 0.8)
        rows[f"FORA {level} % + GOC 0.8"] = fc.goc(base, 0.8, gate=gate)
        for judge in ("prior", "all"):
            rows[f"FORA {level} % + EOC relative, {judge}"] = fc.eoc(base, stats, judge=judge)
        for judge in ("prior", "all"):
            rows[f"FORA {level} % + EOC additive 0.3, {judge}"] = fc.eoc(base, stats, 0.3, form="additive", judge=judge)
    overshooting = replace(fc.goc(fc.fora_paper(75), 0.8), forecast=Undivided(0.8))
    rows["FORA 75 % + GC 0.8, not divided by the gap"] = overshooting
    taylor = fc.taylorseer(fc.fora_paper(50), 1)
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
        router = fc.Router.load(zoo.router_path(level))
        base, count = fc.l2c(router), int(router.skips().sum())
        rows[f"FORA {level} %, first odd calls"] = in_order(grid, count, list(range(1, 20, 2)))
        rows[f"random router {level} %"] = at_random(grid, count, 0)
        rows[f"L2C {level} %"] = base
        rows[f"L2C {level} % + GOC 1.0"] = fc.goc(base, 1.0)
        rows[f"L2C {level} % + EOC relative"] = fc.eoc(base, stats)
    return rows


class Table(NamedTuple):
    """The rows of a table, the page that it stands on, and the steps of its runs."""

    methods: Callable[[], dict[str, fc.Method]]
    page: str
    steps: int


TABLES: Mapping[str, Table] = {
    "corrections": Table(corrections, "docs/eoc.md", 20),
    "l2c": Table(l2c, "docs/l2c.md", 20),
    "procache": Table(procache.methods, "docs/procache.md", procache.STEPS),
}


class Seed:
    """The rows of one table at one seed, kept in a file."""

    def __init__(self, table: str, seed: int, samples: int) -> None:
        self.path = KEPT / f"{table}-{seed}-{samples}.json"
        self.rows: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.labels = [index % 10 for index in range(samples)]
        self.how = Sampling(TABLES[table].steps, GUIDANCE, seed)
        self.uncached = KEPT / f"uncached-{self.how.num_steps}-{seed}-{samples}.pt"

    def measure(self, source: DigitsSource, methods: Mapping[str, fc.Method]) -> None:
        KEPT.mkdir(parents=True, exist_ok=True)
        reference = self._reference(source)
        self._keep(UNCACHED, self._figures(source, reference, reference))
        for name, method in methods.items():
            if name in self.rows:
                continue
            plan = method.plan(fc.grid(source.target, self.how.num_steps))
            with fc.apply(source.target, plan):
                images = in_batches(source, self.labels, self.how, BATCH)
            about = {
                "method": method.name,
                "picture": plan.picture(),
                "macs_ratio": plan.cost(source.target).speedup,
                "constant_bytes": plan.constants.nbytes,
            }
            self._keep(name, about | self._figures(source, images, reference))
            print(f"seed {self.how.seed}, {name}: {self.rows[name]['psnr_db']:.2f} dB", flush=True)

    def _reference(self, source: DigitsSource) -> Tensor:
        if not self.uncached.exists():
            torch.save(in_batches(source, self.labels, self.how, BATCH), self.uncached)
        return torch.load(self.uncached, weights_only=True)

    def _figures(self, source: DigitsSource, images: Tensor, reference: Tensor) -> dict[str, float]:
        digits = source.digits
        return {
            "psnr_db": psnr(images, reference).mean().item(),
            "frechet": frechet_distance(Moments.of(digits.features(images)), digits.reference),
            "class_accuracy": (digits.recognised(images) == torch.tensor(self.labels)).float().mean().item(),
        }

    def _keep(self, name: str, row: dict[str, Any]) -> None:
        self.rows[name] = row
        self.path.write_text(json.dumps(self.rows, indent=1))


def spread(values: list[float], digits: int, scale: float = 1.0) -> str:
    """Mean, and half the range over the seeds."""
    half = (max(values) - min(values)) / 2
    return f"{statistics.fmean(values) * scale:.{digits}f} ± {half * scale:.{digits}f}"


def write_table(table: str, wanted: list[str], seeds: list[Seed], command: str) -> None:
    page, steps = TABLES[table].page, TABLES[table].steps
    names = [name for name in wanted if all(name in seed.rows for seed in seeds)]
    lines = ["| plan | fewer MACs | PSNR, dB | Fréchet | class, % |", "|---|---|---|---|---|"]
    for name in names:
        rows = [seed.rows[name] for seed in seeds]
        macs = f"{rows[0]['macs_ratio']:.2f}x" if name != UNCACHED else ""
        decibels = spread([row["psnr_db"] for row in rows], 2) if name != UNCACHED else ""
        quality = spread([row["frechet"] for row in rows], 2)
        accuracy = spread([row["class_accuracy"] for row in rows], 2, 100)
        lines.append(f"| {name} | {macs} | {decibels} | {quality} | {accuracy} |")
    environment = bench.environment()
    note = (
        f"digits, DDIM-{steps}, guidance {GUIDANCE}, {len(seeds[0].labels)} samples a row and seed, mean and half the "
        f"range over {len(seeds)} seeds. PSNR to the uncached samples; Fréchet distance of classifier features to the "
        f"MNIST test set; share recognised as the class asked for. {environment['cpu']}, torch {environment['torch']}, "
        f"diffusers {environment['diffusers']}."
    )
    document = {
        "command": command,
        "environment": environment,
        "sampler": {"name": f"DDIM-{steps}", "guidance": GUIDANCE, "samples": len(seeds[0].labels), "batch": BATCH},
        "seeds": {seed.how.seed: {name: seed.rows[name] for name in names} for seed in seeds},
    }
    (ROOT / f"benchmarks/results/quality-{table}.json").write_text(json.dumps(document, indent=1) + "\n")
    fill(ROOT / page, f"table {table}", [*lines, "", note])
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[0, 1, 2], help="measure these; none only writes the table"
    )
    args = parser.parse_args()
    methods = TABLES[args.table].methods()
    if args.seeds:
        source = DigitsSource(zoo.load_digits())
        for seed in args.seeds:
            Seed(args.table, seed, args.samples).measure(source, methods)
    if args.seeds in ([], [0, 1, 2]):
        seeds = [Seed(args.table, seed, args.samples) for seed in (0, 1, 2)]
        wanted = [UNCACHED, *methods]
        write_table(args.table, wanted, seeds, f"python benchmarks/quality.py {args.table} --samples {args.samples}")


if __name__ == "__main__":
    main()
