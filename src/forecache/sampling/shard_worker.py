"""One process of a sampling run in shards, and the folder through which processes see each other.

B batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forecache._version import __version__
from forecache.distributed import World
from forecache.environment import environment
from forecache.errors import InputError, RunError, ShardError
from forecache.io import files
from forecache.models.counting import first_call
from forecache.models.find import find
from forecache.plan.plan import Plan
from forecache.runtime.session import Session
from forecache.sampling import samples_file, shard_file
from forecache.sampling.costs import first_model, image_cost
from forecache.sampling.shard_file import Settings, Shard
from forecache.sampling.sources import Sampling, Source

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Folder:
    """The folder of a run in shards."""

    path: Path
    settings: Settings

    @property
    def samples(self) -> Path:
        return self.path / "samples.npz"

    def shard(self, number: int) -> Path:
        return self.path / "shards" / f"{number:05d}.safetensors"

    def missing(self) -> list[int]:
        """The numbers of the shards that no process has finished."""
        try:
            there = set(os.listdir(self.path / "shards"))
        except FileNotFoundError:
            there = set()
        return [number for number in range(self.settings.shards) if self.shard(number).name not in there]

    def read(self, number: int) -> Shard | None:
        """A finished shard; a damaged one is deleted, and None is returned."""
        path = self.shard(number)
        try:
            return shard_file.read_shard(path, self.settings, number)
        except ShardError as error:
            if isinstance(error.__cause__, OSError):  # nobody knows yet whether it is damaged
                raise
            path.unlink(missing_ok=True)
            return None

    def is_collected(self, *, checked: bool) -> bool:
        """Whether samples.npz exists, so that shards may have been deleted.

        checked: also whether its checksum is right
        """
        try:
            record = files.document(self.path / "run.json", 2**20)
            there = record["run"] == self.settings.run and self.samples.exists()
            return there and (not checked or record["sha256"] == _digest(self.samples))
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # not yet, or not by us
            return False

    def sweep(self) -> None:
        """Delete the temporary files of killed processes."""
        for path in (*self.path.glob("*.tmp"), *self.path.glob("shards/*.tmp"), *self.path.glob("png/*.tmp")):
            path.unlink(missing_ok=True)


@dataclass
class ShardRun:
    """One process of a run.

    plan: None computes everything
    session: of the plan
    call: samples in a model call
    made: numbers of the shards that it sampled
    damaged: numbers of the shards that it found damaged
    """

    folder: Folder
    world: World
    source: Source
    conditions: list[Any]
    how: Sampling
    plan: Plan | None
    session: Session | None
    call: int
    on_progress: OnProgress
    made: list[int] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    _collected: bool = False
    _cost: dict[str, Any] = field(default_factory=dict)

    def tell(self, what: str, done: int) -> None:
        self.on_progress(what, done, self.folder.settings.count)

    def finish(self) -> None:
        """Sample this process's own shards, and then those that others have not finished.

        Those are taken from the back, where nobody is yet, at another place by every process. Near the end two
        processes can be at one shard; the slower one leaves it when it sees that it is there.
        """
        settings, world = self.folder.settings, self.world
        self._collected = self.folder.is_collected(checked=world.leads)
        for number in range(world.rank, settings.shards, world.size):
            if self._read(number) is None and not (self._collected and number not in self.damaged):
                self._make(number)
        while not self._collected and (left := self.folder.missing()):
            self._make(left[-1 - len(left) * world.rank // world.size])

    def collect(self, labels: np.ndarray[Any, Any]) -> Path:
        """Write samples.npz and run.json from intact shards, if they are missing."""
        settings = self.folder.settings
        if not self._collected:
            seen: list[Shard] = []
            samples_file.write(self.folder.samples, settings.count, self._parts(seen), labels)
            record = {
                "run": settings.run,
                "settings": asdict(settings),
                "sha256": _digest(self.folder.samples),
                "shape": [settings.count, *seen[0].images.shape[1:]],
                "seconds": sum(shard.seconds for shard in seen),
                "made_on": dict(Counter(shard.made_on for shard in seen)),
                "cost_per_image": dict(next((shard.cost for shard in seen if shard.cost), {})),
                "forecache": __version__,
            }
            decided: Counter[str] = Counter()
            for shard in seen:
                decided.update(shard.decided)
            if decided:
                record["decided"] = dict(decided.most_common())
            files.write_json(self.folder.path / "run.json", record)
        self.folder.sweep()
        return self.folder.samples

    def _parts(self, seen: list[Shard]) -> Iterator[samples_file.Images]:
        """The images of all shards in order; ``seen`` gets each shard without its images."""
        settings = self.folder.settings
        for number in range(settings.shards):
            while (shard := self._read(number)) is None:
                self._make(number)
            yield shard.images.numpy()
            seen.append(replace(shard, images=shard.images[:0]))
            self.tell("writing samples.npz", settings.part(number).stop)

    def _read(self, number: int) -> Shard | None:
        """A finished shard; None if it is missing or damaged."""
        if not self.folder.shard(number).exists():
            return None
        self.tell("checking", self.folder.settings.part(number).stop)
        if (shard := self.folder.read(number)) is None:
            self.damaged.append(number)
        return shard

    def _make(self, number: int) -> None:
        settings, path = self.folder.settings, self.folder.shard(number)
        part, started = settings.part(number), time.monotonic()
        calls: list[Tensor] = []
        decided: Counter[str] = Counter()
        for first in range(part.start, part.stop, self.call):
            calls.append(self._counted(range(first, min(first + self.call, part.stop))))
            if (picture := self._decided()) is not None:
                decided[picture] += 1
            if path.exists():  # another process was faster
                return
            left = sum(len(settings.part(other)) for other in self.folder.missing())
            self.tell("sampling", min(settings.count, settings.count - left + len(calls) * self.call))
        shard = Shard(torch.cat(calls), time.monotonic() - started, self._made_on(), self._cost, decided)
        shard_file.write_shard(path, settings, number, shard)
        self.made.append(number)

    def _decided(self) -> str | None:
        """What was decided in the last generation, as the picture of a plan; None where nothing is decided."""
        if self.plan is None or not self.plan.is_undecided or self.session is None:
            return None
        last = self.session.stats.last
        return None if last is None else last.stretches[0].plan.picture()

    def _counted(self, part: range) -> Tensor:
        """The samples of one call; the cost of an image is counted at the first."""
        if self.plan is None or self._cost:
            return self._images(part)
        with first_call(first_model(self.source)) as calls:
            images_BHWC = self._images(part)
        stats = self.session.stats if self.session is not None else None
        rows = self.folder.settings.call_size or len(part)
        self._cost = image_cost(self.source, self.plan, calls[0], rows, stats)
        return images_BHWC

    def _images(self, part: range) -> Tensor:
        """The samples of one call, (B, H, W, C) uint8, rounded as in a PNG."""
        labels = [self.conditions[index] for index in part]
        full = self.folder.settings.call_size or len(labels)
        with _own_noise(self.source):
            images_BCHW = self.source.generate(labels + labels[-1:] * (full - len(labels)), self.how, part.start)
        images_BCHW = images_BCHW[: len(labels)]
        if not bool(images_BCHW.isfinite().all()):
            number = part.start + int(images_BCHW.isfinite().flatten(1).all(1).int().argmin())
            raise InputError(
                f"Sample {number} is not finite, and no file can hold it: look at the plan, or use another dtype."
            )
        return (images_BCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def _made_on(self) -> str:
        """The hardware and versions that can change the last bit of a sample."""
        place = environment()
        on_gpu = next(find(self.source.target).parameters()).is_cuda
        hardware = place["gpu"] if on_gpu else f"{place['cpu']}, {place['threads']} threads"
        return f"{hardware}, torch {place['torch']}, diffusers {place['diffusers']}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _own_noise(source: Source) -> Iterator[None]:
    """Raises RunError if the block draws from torch's global generators, whose numbers depend on all earlier draws."""
    gpu = next(find(source.target).parameters()).is_cuda
    before = _global_noise(gpu)
    yield
    if any(not torch.equal(a, b) for a, b in zip(before, _global_noise(gpu), strict=True)):
        scheduler = type(getattr(source.target, "scheduler", None)).__name__
        raise RunError(
            f"Sampling drew noise from torch's global generator (most likely in the steps of {scheduler}), so that "
            "a sample would depend on those before it: use a deterministic scheduler such as DDIM, or a source that "
            "gives the scheduler one generator a sample, as forecache.sampling.loop.sample does."
        )


def _global_noise(gpu: bool) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if gpu else [])]
