"""The images of one column on the disk, with a record by which an interrupted comparison goes on.

columns/goc-eta-0.8/run.json, versioned JSON:

    {"format": "forecache-column", "version": 1, "identity": {...}, "stats": {...}, "cost": {...}, "lanes": 1,
     "images": {"seed-0/00003.png": "<sha256>", ...}, "frames": 0}

The identity has everything that decides the images: weights, scheduler, dtype, plan, steps, guidance, seeds,
conditions and options of the call. A folder of another identity is refused; an image whose digest is not that of the
record is sampled again.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forecache.bench.comparison.columns import Column
from forecache.errors import ShardError
from forecache.evaluate.imagesets import read_image
from forecache.io import files
from forecache.io.document import Document, refusing
from forecache.models.find import transformers
from forecache.models.fingerprint import describe_scheduler, fingerprint
from forecache.parts.identity import is_same
from forecache.sampling import runs, videos
from forecache.sampling.costs import first_model
from forecache.sampling.runs import Run, Settings
from forecache.sampling.shards import plan_digest
from forecache.sampling.sources import Source

DOCUMENT = Document("forecache-column", 1)
KEYS = {"identity": dict, "stats": dict, "cost": dict, "lanes": int, "images": dict, "frames": int}
MAX_BYTES = 16 * 2**20
ADVICE = "Delete the folder, and it is sampled again"


def identity(source: Source, column: Column, settings: Settings, seeds: Sequence[int]) -> dict[str, Any]:
    """Everything that decides the images of a column, as plain data."""
    parts = getattr(source.target, "components", None) or {"transformer": first_model(source)}
    weights = {name: fingerprint(part) for name, part in sorted(parts.items()) if isinstance(part, nn.Module)}
    plan = column.plan
    about = runs.described(source)
    return {
        "model": [type(model).__name__ for model in transformers(source.target)] or [about["class"]],
        "weights": weights,
        "scheduler": describe_scheduler(getattr(source.target, "scheduler", None)),
        "dtype": about["dtype"],
        "options": about["options"],
        "plan": {"method": plan.provenance.get("method", "plan"), "sha256": plan_digest(plan)} if plan else {},
        "num_steps": column.num_steps,
        "guidance": settings.guidance,
        "seeds": list(seeds),
        "conditions": list(settings.conditions),
    }


@dataclass
class ColumnFolder:
    """The folder of a column. `ColumnFolder.open` reads what an earlier process left in it.

    path: of the folder
    identity: as `identity` gives it
    stats: counts of one generation, as `runtime.stats.Stats` names them; empty without a cache
    cost: as `sampling.costs.image_cost`; empty where it cannot be counted
    lanes: calls of the model in a step
    images: SHA-256 of every finished image or video, by its path in the folder
    frames: of every video; 0 for images
    """

    path: Path
    identity: Mapping[str, Any]
    stats: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    lanes: int = 1
    images: dict[str, str] = field(default_factory=dict)
    frames: int = 0

    @classmethod
    def open(cls, path: Path, wanted: Mapping[str, Any]) -> ColumnFolder:
        """The folder, with the images that are there and intact.

        Raises ShardError for a folder of another identity, which says what differs, and for a damaged record.
        """
        record = path / "run.json"
        if not record.exists():
            return cls(path, wanted)
        with refusing(record, ShardError, "record of a column", ADVICE):
            values = DOCUMENT.fields(files.document(record, MAX_BYTES), KEYS)
            if not all(isinstance(text, str) for pair in values["images"].items() for text in pair):
                raise ValueError("its images are not names with their digests")
        if differ := differences(values["identity"], wanted):
            raise ShardError(
                f"{path} holds images of another comparison ({', '.join(differ)} differ): compare into another "
                "folder, or delete that one."
            )
        folder = cls(path, wanted, values["stats"], values["cost"], values["lanes"], {}, values["frames"])
        intact = {name: digest for name, digest in values["images"].items() if folder._digest(name) == digest}
        folder.images.update(intact)
        return folder

    def name(self, seed: int, index: int) -> str:
        """The path of an image or a video in the folder, without the ending of a video."""
        return f"seed-{seed}/{index:05d}" + ("" if self.frames else ".png")

    def has(self, seed: int, indices: Sequence[int]) -> bool:
        """Whether all these images of a seed are finished."""
        return all(self.name(seed, index) in self.images for index in indices)

    def add(self, seed: int, indices: Sequence[int], run: Run, cost: Mapping[str, Any], num_steps: int) -> None:
        """Write the images of a generation, and the record."""
        self.frames = run.images.shape[1] if run.images.ndim == 5 else 0
        for index, image in zip(indices, run.images, strict=True):
            name = self.name(seed, index)
            if self.frames:
                shutil.rmtree(self.path / name, ignore_errors=True)
                videos.save(image, (self.path / name).parent, f"{index:05d}")
            else:
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                runs.save_png(image, self.path / name)
            self.images[name] = self._digest(name)
        if run.stats is not None:
            self.stats = run.stats.counts()
            self.lanes = max(1, run.stats.calls // (num_steps * max(1, run.stats.generations)))
        self.cost = dict(cost) or self.cost
        self.write()

    def write(self) -> None:
        """Write the record."""
        DOCUMENT.write(self.path / "run.json", {name: getattr(self, name) for name in KEYS})

    def image(self, seed: int, index: int) -> Tensor:
        """An image (1, 3, H, W) in [0, 1], or the frames of a video (F, 3, H, W)."""
        path = self.path / self.name(seed, index)
        names = [path / videos.frame_name(number) for number in range(self.frames)] or [path]
        pixels = torch.stack([torch.from_numpy(read_image(name).copy()) for name in names])
        return pixels.permute(0, 3, 1, 2).float() / 255

    def _digest(self, name: str) -> str:
        """The digest of an image, or of all frames of a video; empty where a file is missing."""
        path = self.path / name
        frames = [path / videos.frame_name(number) for number in range(self.frames)] if self.frames else [path]
        sha256 = hashlib.sha256()
        try:
            for frame in frames:
                sha256.update(frame.read_bytes())
        except OSError:
            return ""
        return sha256.hexdigest()


def differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The names of what differs between two identities."""
    differ = [name for name in {**wanted, **there} if name != "weights" and there.get(name) != wanted.get(name)]
    a, b = there.get("weights", {}), wanted.get("weights", {})
    if not isinstance(a, Mapping) or a.keys() != b.keys() or not all(is_same(str(a[name]), b[name]) for name in b):
        differ.append("weights")
    return [name.replace("_", " ") for name in differ]
