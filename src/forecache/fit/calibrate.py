"""Calibration: what a model's features do on average, measured while it samples without a cache.

B batch, N tokens, D width.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from forecache import distributed
from forecache._version import __version__
from forecache.errors import InputError, StatisticsError
from forecache.fit.accumulators import Accumulators, Recent
from forecache.methods.explicit import explicit
from forecache.models.find import find, grid, layout_for, measure
from forecache.parts.grid import Grid
from forecache.parts.identity import is_same
from forecache.parts.statistics import Origin, Statistics
from forecache.runtime.session import Session
from forecache.sampling import sources

Rows = Literal["first", "second", "all"]
CHECKPOINT_SECONDS = 60.0
CHECKPOINT_ROUNDS = 16
"""With several processes, how many batches each makes between two files: they have to meet for one."""


class Need(NamedTuple):
    """Bytes that calibration holds: ``means``, one accumulator per (step, site) and a spare one per site, and
    ``recent``, the last features.
    """

    means: int
    recent: int


def calibration_bytes(target: Any, num_steps: int, *, batch: int = 32, gaps: int = 3) -> Need:
    """What `calibrate` is going to hold, from shapes alone; it does not depend on the number of conditions.

    means: float32, on the accumulators' device. recent: ``gaps`` features per site and sample of a batch, where the
    model is; twice as many with rows="all" and guidance.
    """
    source = sources.as_source(target)
    model, inputs = source.target, sources.call_inputs(source, 1)
    feature = sum(measure(model, grid(model, num_steps), 1, inputs).site_bytes)
    itemsize = next(find(model).parameters()).dtype.itemsize
    return Need(feature * 4 // itemsize * (num_steps + 1), feature * batch * gaps)


def calibrate(
    target: Any,
    conditions: Sequence[sources.Condition],
    *,
    num_steps: int,
    guidance: float = 1.5,
    seed: int = 0,
    batch: int = 32,
    gaps: int = 3,
    rows: Rows | None = None,
    shared_noise: bool = False,
    keep_on: str | torch.device | None = None,
    path: str | os.PathLike[str] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Statistics:
    """The average features of a model and their changes, over one sample per condition, in one pass without a cache.

    target: a DiTPipeline, one that makes images of texts, the bundled digits, or any `sources.Source`. conditions:
    class labels, or texts. gaps: the changes over 1 to ``gaps`` steps are measured. rows: in a batch with a guidance
    pair, the half that is averaged; by default the conditional one, which is the first in DiT and the second in PixArt.
    shared_noise: start every sample from the same noise, as the EOC paper does. keep_on: device of the accumulators;
    where the features are by default. on_start: called with the number of model calls to come; on_step: after each.

    path: the file to write, every minute and at the end. If there is one already, of the same run, it is continued; an
    interruption (Ctrl-C) leaves a valid one. Under torchrun or ``accelerate launch`` the processes share the conditions
    and all give the same result.

    Nothing per sample is kept: see `calibration_bytes`. Raises StatisticsError if ``path`` holds other statistics.
    """
    source = sources.as_source(target)
    labels = sources.check_conditions(source, conditions)
    rows = getattr(source, "conditional", "first") if rows is None else rows
    if not labels or batch < 1 or gaps < 1:
        raise InputError(
            "Calibration needs at least one condition, and a batch and gaps of at least 1; there are "
            f"{len(labels)} conditions, batch={batch} and gaps={gaps}."
        )
    if rows not in ("first", "second", "all"):
        raise InputError(f"rows must be 'first', 'second' or 'all', not {rows!r}.")
    chosen = grid(source.target, num_steps)
    scheduler = chosen.scheduler
    about = (chosen.model, chosen.fingerprint, scheduler, float(guidance), seed, shared_noise, rows, batch)
    origin = Origin(*about, labels, __version__)
    run = _Run(source, chosen, origin, gaps, keep_on, Path(path) if path is not None else None)
    return run.finish(on_start, on_step)


@dataclass(frozen=True)
class _Batch:
    """The samples first to first + count - 1, as one generation."""

    first: int
    count: int


class _Run:
    """One calibration of this process."""

    def __init__(
        self,
        source: sources.Source,
        chosen: Grid,
        origin: Origin,
        gaps: int,
        keep_on: str | torch.device | None,
        path: Path | None,
    ) -> None:
        self._source, self._grid, self._origin, self._path = source, chosen, origin, path
        self._gaps = gaps
        self._world = distributed.current()
        self._accumulators = Accumulators(chosen, gaps, keep_on)
        self._kept = self._load()
        if self._kept is not None and self._world.leads:
            self._accumulators.continue_from(self._kept)
        self._batch = _Batch(0, 0)
        self._recent = [Recent(gaps) for _ in chosen.sites]

    def finish(self, on_start: Callable[[int], None] | None, on_step: Callable[[int], None] | None) -> Statistics:
        if self._kept is not None and not self._kept.is_partial:
            return self._kept
        rounds = self._rounds()
        if on_start is not None:
            on_start(self._grid.num_steps * sum(batch is not None for batch in rounds))
        everything = explicit(compute=range(self._grid.num_steps)).plan(self._grid)
        layout = layout_for(find(self._source.target), self._grid)
        saved = time.monotonic()
        try:
            with Session(everything, [layout], watch=self._see) as session:
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
        return self._save() or _nothing()

    def _rounds(self) -> list[_Batch | None]:
        """The batches of this process, one a round; the processes have the same number of rounds."""
        done = self._kept.count if self._kept is not None else 0
        wanted, size = len(self._origin.conditions), self._origin.batch
        starts = range(done, wanted, size)
        batches = [_Batch(first, min(size, wanted - first)) for first in starts]
        rounds = -(-len(batches) // self._world.size)
        mine = batches[self._world.rank :: self._world.size]
        return [*mine, *[None] * (rounds - len(mine))]

    def _sample(self, session: Session, batch: _Batch, on_step: Callable[[int], None] | None) -> None:
        origin = self._origin
        self._batch = batch
        for recent in self._recent:
            recent.clear()
        session.new_run()
        how = sources.Sampling(self._grid.num_steps, origin.guidance, origin.seed, origin.shared_noise)
        labels = list(origin.conditions[batch.first : batch.first + batch.count])
        self._source.generate(labels, how, batch.first, on_step)
        session.check_complete()

    def _see(self, step: int, site: int, feature: Tensor) -> None:
        """A feature that the model gave out: the rows that count are added, unless an interrupted run had them."""
        count, rows = self._batch.count, self._origin.rows
        if len(feature) not in (count, 2 * count):
            raise InputError(
                f"{self._grid.sites[site].name} gives out {len(feature)} rows for {count} samples: calibration knows "
                "models that are called with one row a sample, or with a guidance pair."
            )
        if len(feature) == count and rows == "second":
            raise InputError(
                "rows='second' asks for the other half of a guidance pair, and the model is called with one row a "
                "sample: use rows='first', or a guidance scale over 1."
            )
        if len(feature) == 2 * count and rows != "all":
            feature = feature[:count] if rows == "first" else feature[count:]
        recent = self._recent[site]
        had = self._kept is not None and self._world.leads and int(self._kept.counts[step, site]) > self._batch.first
        if had:
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
        if merged is not None and self._path is not None and self._world.leads:
            merged.save(self._path)
        return merged

    def _load(self) -> Statistics | None:
        if self._path is None or not self._path.exists():
            return None
        kept = Statistics.load(self._path)
        names = [each.name for each in fields(Origin) if each.name not in ("forecache", "fingerprint")]
        differ = [name for name in names if getattr(kept.origin, name) != getattr(self._origin, name)]
        if not is_same(kept.origin.fingerprint, self._origin.fingerprint):
            differ.append("fingerprint")
        if kept.sites != self._grid.sites or kept.num_steps != self._grid.num_steps:
            differ.insert(0, "sites or steps")
        if kept.changes.shape[2] != self._gaps:
            differ.append("gaps")
        compact = kept.resolution == "channel" or any(mean.dtype is not torch.float32 for mean in kept.means)
        if differ or (kept.is_partial and compact):
            what = f"of another run ({', '.join(differ)} differ)" if differ else "compact and partial"
            raise StatisticsError(f"{self._path} holds statistics {what}: write to another file, or delete it first.")
        return kept


def with_resolution(stats: Statistics, resolution: Literal["full", "half", "channel"], path: Path) -> Statistics:
    """Finished statistics in the resolution asked for; the file is rewritten where it has another one.

    full: a mean a token in float32, half: in float16, channel: a mean a channel. Raises StatisticsError if the file
    holds compact statistics and full ones are asked for.
    """
    if resolution != "full":
        stats = stats.compact(per="token" if resolution == "half" else "channel")
        stats.save(path)
    elif stats.means[0].dtype is not torch.float32:
        raise StatisticsError(f"{path} holds compact statistics of this run: delete it to keep full ones.")
    return stats


def _nothing() -> Statistics:
    raise StatisticsError("No site was seen: the source did not call the model that it names as its target.")
