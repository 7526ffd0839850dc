"""The files of a sampling run in shards: the manifest, with the settings of the run, and shards with their checksums.

shards.json, versioned JSON, checked when it is read:

    {"format": "forecache-shards", "version": 2, "forecache": "0.1.0",
     "settings": {"model": "DiTTransformer2DModel", ..., "count": 50000, "shard_size": 256, "call_size": 16}}

shards/00000.safetensors: ``images`` (count, H, W, C) uint8, and in its metadata the run, the first sample, the SHA-256
of the images, how long they took, where, what they cost, and what was decided while they were sampled.

Every file appears at once, complete and on the disk, or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, uint8

from forecache._version import __version__
from forecache.errors import ShardError
from forecache.io import files, tensor_files
from forecache.io.document import Document, fields, items, refusing
from forecache.io.text import short

MANIFEST = Document("forecache-shards", 2)
SHARD = Document("forecache-shard", 4)
MAX_BYTES = 16 * 2**30
KEYS = {"forecache": str, "settings": dict}
SETTINGS = {
    "model": str, "weights": dict, "scheduler": str, "dtype": str, "plan": dict,
    "num_steps": int, "guidance": float, "seed": int, "conditions": str, "count": int, "shard_size": int,
    "options": dict,
}  # fmt: skip
SHARD_TYPES = {
    "run": str, "first": int, "sha256": str, "seconds": float, "made_on": str, "cost": dict,
    "decided": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The settings that determine the samples of a run, and how they are divided into shards.

    weights: fingerprints by component. plan: its method and digest, empty without a cache. conditions: digest of one
    condition a sample. call_size: samples in every model call, None where it may vary. options: those of every call of
    the pipeline that were given, such as its height.
    """

    model: str
    weights: Mapping[str, str]
    scheduler: str
    dtype: str
    plan: Mapping[str, str]
    num_steps: int
    guidance: float
    seed: int
    conditions: str
    count: int
    shard_size: int
    call_size: int | None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """The digest of the settings, by which shards are assigned to their run."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard_size)

    def part(self, number: int) -> range:
        """The numbers of the samples of a shard."""
        return range(number * self.shard_size, min(self.count, (number + 1) * self.shard_size))


@dataclass(frozen=True)
class Shard:
    """Consecutive samples.

    images: (count, H, W, C), uint8
    seconds: latency of sampling them
    made_on: hardware and versions of torch and diffusers
    cost: MACs of an image and cache bytes of a call, as `costs.image_cost`; empty without a plan
    decided: what was decided while they were sampled, as pictures of plans, with the number of generations of each;
        empty for a plan that decides nothing
    """

    images: Tensor
    seconds: float
    made_on: str
    cost: Mapping[str, Any] = field(default_factory=dict)
    decided: Mapping[str, int] = field(default_factory=dict)


def write_manifest(path: Path, settings: Settings) -> None:
    MANIFEST.write(path, {"forecache": __version__, "settings": asdict(settings)})


def read_manifest(path: Path) -> Settings:
    """The settings of the run in a folder; a ShardError names the file and the problem."""
    with refusing(path, ShardError, "manifest of samples", "Sample into another folder, or delete this one"):
        document = MANIFEST.fields(files.document(path, 2**20), KEYS)
        return _settings(document["settings"])


def _settings(document: Any) -> Settings:
    optional = type(document.get("call_size")) if isinstance(document, dict) else int
    settings = Settings(**fields(document, SETTINGS | {"call_size": optional}))
    for name in ("weights", "plan"):
        items(list(getattr(settings, name).values()), name, str)
    sizes = (settings.count, settings.shard_size, 1 if settings.call_size is None else settings.call_size)
    if any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(f"count, shard_size and call_size are at least 1, not {short(sizes)}")
    return settings


def write_shard(path: Path, settings: Settings, number: int, shard: Shard) -> None:
    values = {
        "run": settings.run,
        "first": settings.part(number).start,
        "sha256": _digest(shard.images),
        "seconds": shard.seconds,
        "made_on": shard.made_on,
        "cost": dict(shard.cost),
        "decided": dict(shard.decided),
    }
    tensor_files.write(path, SHARD, values, {"images": shard.images})


def read_shard(path: Path, settings: Settings, number: int) -> Shard:
    """The shard of a number; ShardError if the file differs in any way from what was written for this run."""
    part = settings.part(number)
    with refusing(path, ShardError, "shard of this run", "It can be deleted, and is then sampled again"):
        values, tensors = tensor_files.read(path, SHARD, SHARD_TYPES, MAX_BYTES)
        if (values["run"], values["first"]) != (settings.run, part.start):
            raise ValueError("it belongs to another run, or to another place in it")
        images = tensors.get("images")
        if images is None or images.dtype is not uint8 or images.ndim != 4 or len(images) != len(part):
            raise ValueError(f"it does not hold {len(part)} images")
        if _digest(images) != values["sha256"]:
            raise ValueError("its images do not match their checksum")
        decided = values["decided"]
        if not all(type(count) is int and count > 0 for count in decided.values()):
            raise ValueError("what was decided is not counted in whole generations")
        return Shard(images, values["seconds"], values["made_on"], values["cost"], decided)


def _digest(images: Tensor) -> str:
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()
