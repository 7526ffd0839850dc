"""One process of a reproduction: every process samples shards of the rows; the first one evaluates and writes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from forecache import distributed, evaluate
from forecache.environment import environment
from forecache.errors import InputError, TableError
from forecache.evaluate import Bootstrap
from forecache.evaluate.metrics import METRICS
from forecache.fit.calibrate import calibrate
from forecache.models.find import grid
from forecache.parts import schedules
from forecache.parts.statistics import Statistics
from forecache.plan.cost import Cost
from forecache.plan.method import Method
from forecache.plan.plan import Plan
from forecache.reproduce import files, latency
from forecache.reproduce.files import Settings
from forecache.reproduce.recipes import Ingredients, levels, method_of, needs_statistics
from forecache.reproduce.table import Table, TableRow
from forecache.reproduce.testbed import Testbed
from forecache.sampling import sources
from forecache.sampling.shards import CALL_SIZE, Sampled, plan_digest, sample_shards, settings_of

OnProgress = Callable[[str, int, int], None]
BUNDLED_SAMPLES = 320
"""Most samples per row on a bundled model by default: ten minutes for eight rows on one CPU core."""


@dataclass(frozen=True)
class Protocol:
    """The settings that a user may change of a table's protocol.

    samples: samples per row. None: the table's, at most `BUNDLED_SAMPLES` on a bundled model.
    batch: samples in memory at a time, and in a model call if it is below 16. None: the table's.
    seed: of the noise and of random classes.
    resamples: bootstrap resamples of every figure; 0 for none.
    """

    samples: int | None = None
    batch: int | None = None
    seed: int = 0
    resamples: int = 100


class Worker:
    """One process of a reproduction.

    table: the paper's table.
    testbed: the model that it is measured on.
    out: folder of the reproduction.
    on_progress: called with the phase, the number of finished samples, and their total.
    world: the processes that take part.
    samples, batch, call_size, seed, resamples: the protocol, with the table's values where none were given.
    """

    def __init__(self, table: Table, testbed: Testbed, out: Path, protocol: Protocol, on_progress: OnProgress) -> None:
        self.table, self.testbed, self.out, self.on_progress = table, testbed, out, on_progress
        self.world = distributed.launched()
        self.seed, self.resamples = protocol.seed, protocol.resamples
        default = min(BUNDLED_SAMPLES, table.samples) if testbed.is_bundled else table.samples
        self.samples = default if protocol.samples is None else protocol.samples
        self.batch = table.batch if protocol.batch is None else protocol.batch
        self.call_size = min(CALL_SIZE, self.batch)
        self.conditions = list(testbed.conditions(table, self.samples, self.seed))
        self.bootstrap = Bootstrap(self.resamples)
        self._reference = testbed.reference
        self._uncached: Sampled | None = None

    def select(self, names: Sequence[str]) -> list[TableRow]:
        """The rows with these names or slugs, after the row without a cache; all rows if there are no names."""
        by_name = {key: row for row in self.table.rows for key in (row.name.lower(), row.slug)}
        if unknown := [name for name in names if name.lower() not in by_name]:
            known = ", ".join(repr(row.name) for row in self.table.rows)
            raise TableError(f"{self.table.name} has no row {unknown[0]!r}; it has {known}.")
        wanted = {by_name[name.lower()].name for name in names}
        if absent := [row for row in self.table.rows if row.absent and row.name in wanted]:
            raise InputError(f"{absent[0].name} of {self.table.name} cannot be measured: {absent[0].absent}.")
        measurable = [row for row in self.table.rows if not row.absent]
        return [row for row in measurable if row.recipe is None or not names or row.name in wanted]

    def check(self, rows: Sequence[TableRow]) -> None:
        """Raises InputError, before any work, if a row or a metric lacks what it needs."""
        for name in self.testbed.metrics:
            metric = METRICS[name]
            if self.samples < metric.at_least:
                raise InputError(f"{name} needs at least {metric.at_least} samples; {self.samples} were asked for.")
        needing = [row for row in rows if row.recipe and not set(levels(row.recipe)) <= set(self.testbed.routers)]
        if needing:
            missing = sorted({level for row in needing if row.recipe for level in levels(row.recipe)})
            raise InputError(
                f"{needing[0].name} needs a router that skips about {missing[0]} % of the cells of {self.testbed.name} "
                f"at {self.table.steps} steps: give one with --router, or choose other rows with --row."
            )
        if any(_calibrated(row) for row in rows) and self.testbed.statistics is None and self.table.calibration is None:
            raise InputError(f"{self.table.name} needs statistics of {self.testbed.name}: give them with --stats.")
        self._planned([row for row in rows if not _calibrated(row)], Ingredients(self.testbed.routers))

    def plans(self, rows: Sequence[TableRow]) -> dict[str, Plan | None]:
        """The plan of every row; an impossible plan is refused here, before anything is sampled."""
        needed = any(_calibrated(row) for row in rows)
        return self._planned(rows, Ingredients(self.testbed.routers, self._statistics() if needed else None))

    def _planned(self, rows: Sequence[TableRow], ingredients: Ingredients) -> dict[str, Plan | None]:
        cells = grid(self.testbed.source.target, self.table.steps)
        return {row.name: method_of(row.recipe, ingredients).plan(cells) if row.recipe else None for row in rows}

    def _statistics(self) -> Statistics:
        """The testbed's statistics, or ones measured as the table says; an interrupted measurement continues."""
        if self.testbed.statistics is not None:
            return self.testbed.statistics
        calibration, source = self.table.calibration, self.testbed.source
        assert calibration is not None
        count = min(calibration.samples, source.classes) if source.classes else calibration.samples
        cycle = self.testbed.prompts or sources.all_conditions(source)
        total, done = 0, 0

        def start(calls: int) -> None:
            nonlocal total
            total = calls

        def step(_: int) -> None:
            nonlocal done
            done += 1
            self.on_progress("calibrating", done, total)

        with distributed.started():
            return calibrate(
                source,
                [cycle[index % len(cycle)] for index in range(count)],
                num_steps=self.table.steps,
                guidance=calibration.guidance,
                seed=calibration.seed,
                batch=min(self.batch, 32),
                shared_noise=calibration.shared_noise,
                path=self.out / "statistics.safetensors",
                on_start=start,
                on_step=step,
            )

    def settings(self) -> Settings:
        """The settings that determine the figures."""
        how = sources.Sampling(self.table.steps, self.testbed.guidance, self.seed)
        sampling = settings_of(self.testbed.source, self.conditions, how, None, self._shard_size(), self.call_size)
        extractor, reference = self.testbed.judges.extractor, self.testbed.reference
        return Settings(
            self.table.name,
            self.table.sha256,
            sampling,
            self.testbed.metrics,
            self.resamples,
            extractor.name if extractor is not None else None,
            reference.name if reference is not None else None,
        )

    def _shard_size(self) -> int:
        return 256 // self.call_size * self.call_size

    def file(self, row: TableRow) -> Path:
        """The file of a finished row."""
        return self.out / "rows" / f"{row.slug}.json"

    def refuse_other_plans(self, plans: Mapping[str, Plan | None]) -> None:
        """Raises TableError if a finished row was measured with another plan, by another router or other statistics."""
        for row in (row for row in self.table.rows if row.name in plans):
            finished, plan = files.read_row(self.file(row)), plans[row.name]
            if finished is not None and finished["plan_sha256"] != (plan_digest(plan) if plan else ""):
                raise TableError(
                    f"{self.out} holds {row.name!r} with another plan (another router, other statistics, or another "
                    "forecache): choose another folder, or delete it."
                )

    def measure(self, row: TableRow, plan: Plan | None) -> None:
        """Sample a row, and in the first process evaluate and write it; a finished row is skipped."""
        if files.read_row(self.file(row)) is not None:
            return
        sampled = self._sample(row, plan)
        if not self.world.leads:
            return
        assert sampled.images is not None
        assert sampled.record is not None
        started = time.monotonic()
        figures, notes = self._evaluate(row, evaluate.open_images(sampled.images))
        cost = self._cost(plan)
        document = {
            "name": row.name,
            "method": plan.provenance.get("method", "plan") if plan else "",
            "picture": plan.picture() if plan else "",
            "plan_sha256": plan_digest(plan) if plan else "",
            "macs": cost.macs if cost else None,
            "macs_ratio": cost.speedup if cost else None,
            "cache_bytes": cost.cache_bytes if cost else None,
            "samples_sha256": sampled.record["sha256"],
            "samples": self.samples,
            "seed": self.seed,
            "sampling_seconds": sampled.record["seconds"],
            "evaluation_seconds": time.monotonic() - started,
            "made_on": sampled.record["made_on"],
            "figures": {name: figure.document() for name, figure in figures.items()},
            "notes": notes,
            "environment": environment(),
        }
        files.write_row(self.file(row), document)

    def _sample(self, row: TableRow, plan: Plan | None) -> Sampled:
        if plan is not None and self.world.leads and self._uncached is None:
            self._uncached = self._sample(self.table.rows[0], None)  # finished before: its shards are only checked
        sampled = sample_shards(
            self.testbed.source,
            self.conditions,
            self.out / "samples" / row.slug,
            num_steps=self.table.steps,
            plan=plan,
            guidance=self.testbed.guidance,
            seed=self.seed,
            shard_size=self._shard_size(),
            batch=self.batch,
            call_size=self.call_size,
            on_progress=partial(self._report, row),
        )
        if plan is None:
            self._uncached = sampled
        return sampled

    def _report(self, row: TableRow, phase: str, done: int, total: int) -> None:
        self.on_progress(f"{row.name}: {phase}", done, total)

    def _evaluate(self, row: TableRow, images: evaluate.ImageSet) -> tuple[Mapping[str, evaluate.Estimate], list[str]]:
        """The figures of a row, and notes on how to read them."""
        pairs = row.recipe is not None
        names = [name for name in self.testbed.metrics if pairs or METRICS[name].needs != "pairs"]
        if not names:  # every metric compares with the uncached samples, which are this row
            return {}, []
        assert self._uncached is not None
        assert self._uncached.images is not None
        against = evaluate.Against(
            self._prepared(names),
            evaluate.open_images(self._uncached.images) if pairs else None,
            tuple(map(str, self.conditions)) if "clip" in names else None,
        )
        evaluation = evaluate.evaluate(
            images,
            against,
            names,
            self.testbed.judges,
            bootstrap=self.bootstrap,
            batch=self.batch,
            device=self.testbed.device,
            on_progress=partial(self._report, row),
        )
        return evaluation.figures, list(evaluation.notes)

    def _prepared(self, names: Sequence[str]) -> evaluate.Reference | None:
        """The reference with the features that the metrics need, extracted once for all rows."""
        extractor, reference = self.testbed.judges.extractor, self._reference
        if reference is None or extractor is None:
            return reference
        metrics = [METRICS[name] for name in names if METRICS[name].needs == "reference"]
        layers = list(dict.fromkeys(metric.layer for metric in metrics if metric.kept and metric.layer))
        stream = list(dict.fromkeys(metric.layer for metric in metrics if not metric.kept and metric.layer))
        total = len(reference.images) if reference.images is not None else 0
        self._reference = evaluate.prepared(
            reference,
            extractor,
            layers,
            stream=stream,
            batch=self.batch,
            on_images=lambda done: self.on_progress("reference", done, total),
        )
        return self._reference

    def time(self, rows: Sequence[TableRow], plans: Mapping[str, Plan | None]) -> None:
        """Measure the latency of rows in the first process, if the table has it and it was not measured with them."""
        how, path = self.table.latency, self.out / "latency.json"
        if how is None or not self.world.leads:
            return
        digests = {row.name: plan_digest(plan) if (plan := plans[row.name]) else "" for row in rows}
        measured, _ = latency.read(path, how)
        if digests.items() <= measured.items():
            return
        sampling = sources.Sampling(self.table.steps, self.testbed.guidance, self.seed)
        total = len(rows) * (how.rounds + 1)
        timed = {row.name: plans[row.name] for row in rows}
        seconds = latency.measure(
            self.testbed.source,
            self.conditions,
            sampling,
            timed,
            how,
            on_round=lambda done: self.on_progress("timing", done, total),
        )
        latency.write(path, how, digests, seconds)

    def latencies(self) -> dict[str, latency.Spread]:
        """The latencies that were measured so far; empty for a table without them."""
        how = self.table.latency
        return latency.spreads(self.table, latency.read(self.out / "latency.json", how)[1]) if how else {}

    def _cost(self, plan: Plan | None) -> Cost | None:
        """The cost of a row; of the one without a cache, that of a plan that computes everything."""
        if plan is None:
            cells = grid(self.testbed.source.target, self.table.steps)
            plan = Method("no cache", schedules.every(1)).plan(cells)
        source, pair = self.testbed.source, self.testbed.guidance > 1
        try:
            return plan.cost(source.target, guidance=pair, inputs=sources.call_inputs(source, 1 + pair))
        except InputError:  # the model's forward depends on input values that are not known here
            return None


def _calibrated(row: TableRow) -> bool:
    """Whether its plan needs statistics of the model."""
    return needs_statistics(row.recipe)
