"""Sampling of a comparison: in a round one batch of one seed is sampled by all columns in turn.

The first round of a process warms every column up; times of later rounds count, if all columns ran in them one after
the other. If there are fewer such rounds than asked for, the first batch is sampled again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forecache.bench.comparison.columns import UNCACHED, Column
from forecache.bench.comparison.folder import ColumnFolder, identity
from forecache.environment import environment
from forecache.errors import ShardError
from forecache.io import files
from forecache.io.document import Document, refusing
from forecache.methods.explicit import explicit
from forecache.models.counting import first_call
from forecache.models.find import grid
from forecache.runtime.apply import apply
from forecache.sampling.costs import first_model, image_cost
from forecache.sampling.runs import Run, Settings
from forecache.sampling.sources import OnStep, Sampling, Source
from forecache.sampling.timing import Turns, timed

TIMES = Document("forecache-times", 1)
KEYS = {"of": str, "environment": dict, "samples": int, "rounds": list}
OnRun = Callable[[str, int, int], None]
"""Called with the name of the column that samples, the finished generations and their number."""


@dataclass(frozen=True)
class Batch:
    """One batch of one seed.

    seed: seed of the noise
    indices: numbers of the conditions in it
    """

    seed: int
    indices: range


class Rounds:
    """The columns of a comparison on one model, and their folders.

    source: the model
    columns: as `Request.columns` gives them
    settings: conditions, steps of the columns without numbers of their own, guidance and batch; its seed is not used
    seeds: of the noise; every condition is sampled from each
    folder: of the comparison

    Raises ShardError for a folder with images of another comparison.
    """

    def __init__(
        self, source: Source, columns: Sequence[Column], settings: Settings, seeds: Sequence[int], folder: Path
    ) -> None:
        self.source, self.columns, self.settings = source, tuple(columns), settings
        self.seeds, self.folder = tuple(seeds), folder
        identities = {column.name: identity(source, column, settings, self.seeds) for column in columns}
        self.folders = {
            column.name: ColumnFolder.open(folder / "columns" / column.slug, identities[column.name])
            for column in columns
        }
        text = json.dumps([identities[column.name] for column in self.timed], sort_keys=True)
        self._of = hashlib.sha256(text.encode()).hexdigest()
        self._times = self._read_times()
        self._warm: set[str] = set()

    @property
    def timed(self) -> tuple[Column, ...]:
        """The columns whose times are compared."""
        return tuple(column for column in self.columns if column.is_timed)

    @property
    def batches(self) -> list[Batch]:
        """The batches of all seeds."""
        count, size = len(self.settings.conditions), self.settings.batch
        starts = range(0, count, size)
        return [Batch(seed, range(first, min(count, first + size))) for seed in self.seeds for first in starts]

    @property
    def finished(self) -> int:
        """The number of images or videos that are finished, of all columns."""
        return sum(len(folder.images) for folder in self.folders.values())

    @property
    def total(self) -> int:
        """The number of images or videos of the whole comparison."""
        return len(self.columns) * len(self.seeds) * len(self.settings.conditions)

    def run(self, rounds: int, on_run: OnRun | None = None, on_step: OnStep | None = None) -> Turns | None:
        """Sample what is missing, and the times of ``rounds`` rounds, or more if sampling takes more; None for none.

        Every image is on the disk before the next generation begins, so that an interruption loses one generation.
        """
        missing = [(batch, self._missing(batch)) for batch in self.batches]
        missing = [(batch, columns) for batch, columns in missing if columns]
        known = len(self._times) if rounds else rounds
        repeated = max(0, rounds - known - max(0, self._whole(missing) - 1))
        warm_up = len(self.timed) if repeated and not self._whole(missing) else 0
        total = sum(len(columns) for _, columns in missing) + warm_up + repeated * len(self.timed)
        done = 0

        def tell(name: str) -> None:
            nonlocal done
            if on_run is not None:
                on_run(name, done, total)
            done += 1

        for batch, columns in missing:
            self._round(batch, columns, tell, on_step, is_timed=bool(rounds))
        while len(self._times) < rounds:
            self._repeat(tell, on_step)
        return self.turns if rounds else None

    @property
    def turns(self) -> Turns | None:
        """The times so far; None if there are none."""
        if not self._times:
            return None
        names = [column.name for column in self.timed]
        return Turns(self._full, {name: tuple(seconds[name] for seconds in self._times) for name in names})

    @property
    def _full(self) -> int:
        """Images in a batch whose time counts."""
        return min(self.settings.batch, len(self.settings.conditions))

    def _missing(self, batch: Batch) -> list[Column]:
        folders = self.folders
        return [column for column in self.columns if not folders[column.name].has(batch.seed, batch.indices)]

    def _whole(self, missing: Sequence[tuple[Batch, list[Column]]]) -> int:
        """The number of batches that all timed columns are to sample."""
        names = {column.name for column in self.timed}
        return sum(
            names <= {column.name for column in columns} and len(batch.indices) == self._full
            for batch, columns in missing
        )

    def _round(
        self, batch: Batch, columns: Sequence[Column], tell: Callable[[str], None], on_step: OnStep | None, *,
        is_timed: bool,
    ) -> None:  # fmt: skip
        """Sample a batch by the columns that lack it; keep the times if all were warm and took part."""
        names = {column.name for column in self.timed}
        counts = is_timed and names <= self._warm and names <= {column.name for column in columns}
        seconds: dict[str, float] = {}
        for column in columns:
            tell(column.name)
            run = self._generate(column, batch, on_step)
            folder = self.folders[column.name]
            folder.add(batch.seed, batch.indices, run, self._cost(column, run, folder), column.num_steps)
            seconds[column.name] = run.seconds
        if counts and len(batch.indices) == self._full:
            self._keep({name: seconds[name] for name in names})

    def _repeat(self, tell: Callable[[str], None], on_step: OnStep | None) -> None:
        """Sample the first batch again by all timed columns, for their times alone."""
        batch = self.batches[0]
        cold = [column for column in self.timed if column.name not in self._warm]
        for column in cold:
            tell(column.name)
            self._generate(column, batch, on_step)
        seconds = {}
        for column in self.timed:
            tell(column.name)
            seconds[column.name] = self._generate(column, batch, on_step).seconds
        self._keep(seconds)

    def _generate(self, column: Column, batch: Batch, on_step: OnStep | None) -> Run:
        """The images of a batch; their noise depends on the seed and the number of the condition alone."""
        how = Sampling(column.num_steps, self.settings.guidance, batch.seed)
        conditions = [self.settings.conditions[index] for index in batch.indices]

        def images() -> Any:
            return self.source.generate(conditions, how, batch.indices.start, on_step)

        with first_call(first_model(self.source)) as calls:
            if column.plan is None:
                pixels, seconds = timed(images)
                stats = None
            else:
                with apply(self.source.target, column.plan) as session:
                    pixels, seconds = timed(images)
                stats = session.stats
        self._warm.add(column.name)
        return Run(pixels, seconds, stats, *calls)

    def _cost(self, column: Column, run: Run, folder: ColumnFolder) -> dict[str, Any]:
        """The cost of one image, counted at the first generation of a column; empty where it cannot be counted."""
        if folder.cost or run.call is None:
            return folder.cost
        whole = grid(self.source.target, column.num_steps)
        plan = column.plan or explicit(compute=range(column.num_steps)).plan(whole)
        return image_cost(self.source, plan, run.call, len(run.images), run.stats)

    def _keep(self, seconds: Mapping[str, float]) -> None:
        self._times.append(dict(seconds))
        values = {"of": self._of, "environment": environment(), "samples": self._full, "rounds": self._times}
        TIMES.write(self.folder / "times.json", values)

    def _read_times(self) -> list[dict[str, float]]:
        """The times of earlier processes, if they are of the same columns on the same machine and versions."""
        path = self.folder / "times.json"
        if not path.exists():
            return []
        with refusing(path, ShardError, "record of times", "Delete it, and times are measured again"):
            values = TIMES.fields(files.document(path, 2**24), KEYS)
            now = (self._of, environment(), self._full)
            if (values["of"], values["environment"], values["samples"]) != now:
                return []
            names = {column.name for column in self.timed}
            for seconds in values["rounds"]:
                if not isinstance(seconds, dict) or seconds.keys() != names:
                    raise ValueError("a round does not have the time of every column")
                if not all(isinstance(value, float) and value > 0 for value in seconds.values()):
                    raise ValueError("its times are not all above 0")
            return values["rounds"]


def uncached_macs(folders: Mapping[str, ColumnFolder]) -> float | None:
    """MACs of an image without a cache: as a column with a plan counted them, which knows the calls of a step."""
    counted = [folder.cost for name, folder in folders.items() if name != UNCACHED and folder.stats]
    own = folders[UNCACHED].cost
    costs = [cost for cost in counted if cost] or [own]
    return costs[0].get("macs_uncached")
