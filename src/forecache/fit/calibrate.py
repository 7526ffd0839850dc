"""Calibration: the average features of a model and their changes, measured while it samples without a cache.

B batch, N tokens, D width.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from forecache import distributed
from forecache._version import __version__
from forecache.errors import InputError, StatisticsError
from forecache.fit.accumulators import Accumulators, Recent
from forecache.fit.signals import Recorder
from forecache.io.text import dtype_name
from forecache.methods.explicit import explicit
from forecache.models.find import find, grid_at, layout_for, measure
from forecache.models.layout import Level
from forecache.models.levels import AskedSites
from forecache.models.span import Of
from forecache.parts.grid import Grid
from forecache.parts.identity import is_same
from forecache.parts.signals import Signals
from forecache.parts.statistics import Origin, Statistics
from forecache.runtime.plan_source import Fixed
from forecache.runtime.session import Session
from forecache.sampling import sources

Rows = Literal["first", "second", "all"]
CHECKPOINT_SECONDS = 60.0
"""Seconds between two files of one process."""
SIGNALS = 32
"""Samples of which signals are kept."""
CHECKPOINT_ROUNDS = 16
"""Batches of each of several processes between two files, which they have to write together."""


class CalibrationBytes(NamedTuple):
    """Memory of a calibration.

    means: bytes of the accumulators, one for each step and site and a spare one for each site.
    recent: bytes of the last features.
    """

    means: int
    recent: int


def calibration_bytes(
    target: Any,
    num_steps: int,
    *,
    batch: int = 32,
    gaps: int = 3,
    level: Level | None = None,
    group: int | None = None,
    of: Of = "residual",
    blocks: Sequence[str] | str | None = None,
) -> CalibrationBytes:
    """The memory that `calibrate` takes, from shapes alone; it does not depend on the number of conditions.

    The accumulators are float32, on their device. Recent are ``gaps`` features for each site and sample of a batch, on
    the model's device; twice as many with rows="all" and guidance.
    """
    source = sources.as_source(target)
    model, inputs = source.target, sources.call_inputs(source, 1)
    whole = grid_at(model, num_steps, AskedSites(None, level, group, of, blocks))
    feature = sum(measure(model, whole, 1, inputs).site_bytes)
    itemsize = next(find(model).parameters()).dtype.itemsize
    return CalibrationBytes(feature * 4 // itemsize * (num_steps + 1), feature * batch * gaps)


def calibrate(
    target: Any,
    conditions: Sequence[sources.Condition],
    *,
    num_steps: int,
    guidance: float = 1.5,
    seed: int = 0,
    batch: int = 32,
    gaps: int = 3,
    signals: int = SIGNALS,
    rows: Rows | None = None,
    shared_noise: bool = False,
    keep_on: str | torch.device | None = None,
    level: Level | None = None,
    group: int | None = None,
    of: Of = "residual",
    blocks: Sequence[str] | str | None = None,
    path: str | os.PathLike[str] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Statistics:
    """The average features of a model and their changes, over one sample per condition, in one pass without a cache.

    target: a DiTPipeline, a text-to-image pipeline, a bundled model, or any `sources.Source`.
    conditions: class labels or texts, one for each sample.
    num_steps: sampling steps.
    guidance: classifier-free guidance scale.
    seed: of the noise.
    batch: samples of a generation.
    gaps: changes over 1 to ``gaps`` steps are measured.
    signals: samples, the first ones, of which is kept what rules look at that decide while a plan runs
        (`Statistics.signals`); 0 for none.
    rows: in a batch with a guidance pair, the half that is averaged: "first", "second" or "all"; by default the
        conditional one, which is the first in DiT and the second in PixArt. A pipeline that calls the model twice a
        step, such as Wan's, has no pair: its first call is measured.
    shared_noise: whether every sample starts from the same noise, as in the EOC paper.
    keep_on: device of the accumulators; that of the features by default.
    level, group, of, blocks: what sites are, as `forecache.grid` takes them; a plan at another level refuses the
        statistics.
    path: the file to write, every minute and at the end. A file of the same calibration is continued, and an
        interruption (Ctrl-C) leaves a valid one.
    on_start: called with the number of model calls to come. on_step: called after each.

    Under torchrun or ``accelerate launch`` the processes share the conditions, and all return the same. Nothing is kept
    of single samples: see `calibration_bytes`. Raises StatisticsError if ``path`` holds other statistics, InputError
    for settings that cannot be used.
    """
    source = sources.as_source(target)
    labels = sources.check_conditions(source, conditions)
    is_chosen = rows is not None
    rows = getattr(source, "conditional", "first") if rows is None else rows
    if not labels or batch < 1 or gaps < 1 or signals < 0:
        raise InputError(
            "Calibration needs at least one condition, a batch and gaps of at least 1, and signals of 0 samples or "
            f"more; there are {len(labels)} conditions, batch={batch}, gaps={gaps} and signals={signals}."
        )
    if rows not in ("first", "second", "all"):
        raise InputError(f"rows must be 'first', 'second' or 'all', not {rows!r}.")
    whole = grid_at(source.target, num_steps, AskedSites(None, level, group, of, blocks))
    about = (whole.model, whole.fingerprint, whole.scheduler, float(guidance), seed, shared_noise, rows, batch)
    dtype = next(find(source.target).parameters()).dtype
    options = sources.options_of(source) | ({} if dtype is torch.float32 else {"dtype": dtype_name(dtype)})
    origin = Origin(*about, labels, __version__, options)
    where = Path(path) if path is not None else None
    run = _Calibration(source, whole, origin, gaps, min(signals, len(labels)), keep_on, where, is_chosen)
    return run.finish(on_start, on_step)


@dataclass(frozen=True)
class _Batch:
    """The samples of one generation.

    first: number of the first sample.
    count: number of samples.
    """

    first: int
    count: int


class _Calibration:
    """The part of a calibration that this process does."""

    def __init__(
        self,
        source: sources.Source,
        whole: Grid,
        origin: Origin,
        gaps: int,
        signals: int,
        keep_on: str | torch.device | None,
        path: Path | None,
        rows_are_chosen: bool,
    ) -> None:
        self._source, self._grid, self._origin, self._path = source, whole, origin, path
        self._rows_are_chosen = rows_are_chosen
        self._gaps = gaps
        self._count = signals
        self._signals: dict[str, Tensor] = {}  # of the samples that this process measured; zeros elsewhere
        self._power = 2.0
        self._world = distributed.current()
        self._accumulators = Accumulators(whole, gaps, keep_on)
        self._earlier = self._load()
        if self._earlier is not None and self._world.leads:
            self._accumulators.continue_from(self._earlier)
            if self._earlier.signals is not None and self._earlier.is_partial:
                self._signals = {name: table.clone() for name, table in self._earlier.signals.tables.items()}
                self._power = self._earlier.signals.power
        self._batch = _Batch(0, 0)
        self._recent = [Recent(gaps) for _ in whole.sites]

    def finish(self, on_start: Callable[[int], None] | None, on_step: Callable[[int], None] | None) -> Statistics:
        if self._earlier is not None and not self._earlier.is_partial:
            return self._earlier
        rounds = self._rounds()
        if on_start is not None:
            on_start(self._grid.num_steps * sum(batch is not None for batch in rounds))
        every_step = explicit(compute=range(self._grid.num_steps)).plan(self._grid)
        layout = layout_for(find(self._source.target), self._grid)
        saved = time.monotonic()
        try:
            with Session(Fixed(every_step), [layout], watch=self._record) as session:
                for number, batch in enumerate(rounds, 1):
                    if batch is not None:
                        self._sample(session, batch, on_step)
                    if self._is_due(number, saved):
                        self._save()
                        saved = time.monotonic()
        except BaseException:
            if self._world.size == 1:
                self._save()
            raise
        return self._save() or _no_calls()

    def _rounds(self) -> list[_Batch | None]:
        """The batches of this process, one for each round; all processes have the same number of rounds."""
        done = self._earlier.count if self._earlier is not None else 0
        total, size = len(self._origin.conditions), self._origin.batch
        batches = [_Batch(first, min(size, total - first)) for first in range(done, total, size)]
        rounds = -(-len(batches) // self._world.size)
        own = batches[self._world.rank :: self._world.size]
        return [*own, *[None] * (rounds - len(own))]

    def _sample(self, session: Session, batch: _Batch, on_step: Callable[[int], None] | None) -> None:
        origin = self._origin
        self._batch = batch
        for recent in self._recent:
            recent.clear()
        session.new_run()
        how = sources.Sampling(self._grid.num_steps, origin.guidance, origin.seed, origin.shared_noise)
        labels = list(origin.conditions[batch.first : batch.first + batch.count])
        if batch.first >= self._count:
            self._source.generate(labels, how, batch.first, on_step)
            session.check_complete()
            return
        before = self._accumulators.fewest
        with Recorder(self._source.target, find(self._source.target)) as recorder:
            try:
                self._source.generate(labels, how, batch.first, on_step)
                session.check_complete()
            finally:  # an interruption after the last model call has measured the batch as well
                if self._accumulators.fewest == before + batch.count:
                    self._keep(recorder, batch)

    def _keep(self, recorder: Recorder, batch: _Batch) -> None:
        """Keep the signals of a batch."""
        self._power = recorder.power
        last = min(batch.first + batch.count, self._count)
        for name, table in recorder.tables(batch.count, self._grid.num_steps).items():
            whole = self._signals.setdefault(name, torch.zeros(self._count, table.shape[1]))
            whole[batch.first : last] = table[: last - batch.first]

    def _record(self, step: int, site: int, feature: Tensor) -> None:
        """Adds the rows of a feature that count, unless the file of an earlier run has them."""
        count, rows = self._batch.count, self._origin.rows
        if len(feature) not in (count, 2 * count):
            raise InputError(
                f"The output of {self._grid.sites[site].name} has {len(feature)} rows for {count} samples: calibration "
                "supports models that are called with one row a sample, or with a guidance pair."
            )
        if len(feature) == count and rows == "second" and self._rows_are_chosen:
            raise InputError(
                "rows='second' asks for the second half of a guidance pair, and the model is called with one row a "
                "sample: use rows='first', or a guidance scale above 1."
            )
        if len(feature) == 2 * count and rows != "all":  # a pipeline that calls the model twice has one row a sample
            feature = feature[:count] if rows == "first" else feature[count:]
        recent = self._recent[site]
        earlier = self._earlier if self._world.leads else None
        if earlier is not None and int(earlier.counts[step, site]) > self._batch.first:
            recent.push(feature.detach().flatten(1))
        else:
            self._accumulators.add(step, site, feature.detach(), recent, samples=count)

    def _is_due(self, number: int, saved: float) -> bool:
        if self._path is None:
            return False
        if self._world.size > 1:
            return number % CHECKPOINT_ROUNDS == 0
        return time.monotonic() - saved > CHECKPOINT_SECONDS

    def _save(self) -> Statistics | None:
        merged = self._accumulators.merged(self._origin, self._world)
        signals = self._merged_signals()
        if merged is not None:
            merged = replace(merged, signals=signals)
        if merged is not None and self._path is not None and self._world.leads:
            merged.save(self._path)
        return merged

    def _merged_signals(self) -> Signals | None:
        """The signals of all processes, each of which has its own samples. A collective call of all processes."""
        widths = {name: table.shape[1] for name, table in self._signals.items()}
        power = self._power
        if self._world.size > 1:
            widths, power = self._world.agree([widths or None, power if widths else None])
        if not widths:
            return None
        tables = {name: self._signals.get(name, torch.zeros(self._count, width)) for name, width in widths.items()}
        if self._world.size > 1:
            tables = {name: table.clone() for name, table in tables.items()}
            self._world.sum_([tables[name] for name in sorted(tables)])
        return Signals(tables, power)

    def _load(self) -> Statistics | None:
        if self._path is None or not self._path.exists():
            return None
        earlier = Statistics.load(self._path)
        names = [field.name for field in fields(Origin) if field.name not in ("forecache", "fingerprint")]
        differ = [name for name in names if getattr(earlier.origin, name) != getattr(self._origin, name)]
        if not is_same(earlier.origin.fingerprint, self._origin.fingerprint):
            differ.append("fingerprint")
        if earlier.sites != self._grid.sites or earlier.num_steps != self._grid.num_steps:
            differ.insert(0, "sites or steps")
        if earlier.changes.shape[2] != self._gaps:
            differ.append("gaps")
        kept = earlier.signals
        if kept is not None and earlier.is_partial and len(kept.tables["outputs"]) != self._count:
            differ.append("signals")
        compact = earlier.resolution == "channel" or any(mean.dtype is not torch.float32 for mean in earlier.means)
        if differ or (earlier.is_partial and compact):
            what = f"of another run ({', '.join(differ)} differ)" if differ else "compact and partial"
            raise StatisticsError(f"{self._path} holds statistics {what}: write to another file, or delete it first.")
        return earlier


def with_resolution(stats: Statistics, resolution: Literal["full", "half", "channel"], path: Path) -> Statistics:
    """Finished statistics in a resolution; the file is written again if it has another one.

    full: a mean per token in float32. half: a mean per token in float16. channel: a mean per channel. Raises
    StatisticsError if the file holds compact statistics and full ones were asked for.
    """
    if resolution != "full":
        stats = stats.compact(per="token" if resolution == "half" else "channel")
        stats.save(path)
    elif stats.means[0].dtype is not torch.float32:
        raise StatisticsError(f"{path} holds compact statistics of this run: delete it to keep full ones.")
    return stats


def _no_calls() -> Statistics:
    raise StatisticsError("No site was called: the source does not sample with the model that it names as its target.")
