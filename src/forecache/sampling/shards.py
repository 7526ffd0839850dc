"""Sampling at scale: any number of samples, in shards that are finished once, by any number of processes.

A sample depends on the seed and its number alone: its noise comes from its own generator, and the model is always
called with the same number of samples, in which a sample always has the same position.

Processes do not communicate. Each sees in the folder which shards are finished, samples its own, and then those that
are still missing; a process that is killed, on any machine, loses the shard in progress and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import nn

from forecache import distributed
from forecache.errors import InputError, ShardError
from forecache.io.text import dtype_name
from forecache.models.find import find
from forecache.models.fingerprint import describe_scheduler, fingerprint
from forecache.parts.identity import is_same, scheduler_differences
from forecache.plan.plan import Plan
from forecache.runtime.apply import apply
from forecache.sampling import samples_file, shard_file
from forecache.sampling.loop import check_labels
from forecache.sampling.shard_file import Settings
from forecache.sampling.shard_worker import Folder, OnProgress, ShardRun
from forecache.sampling.sources import Sampling, Source, as_source, check_conditions, makes_videos, options_of

CALL_SIZE = 16
"""Samples in every model call by default."""


@dataclass(frozen=True)
class Sampled:
    """The result of a run, as one process sees it.

    folder: of the run
    shards: number of shards of the run
    made: numbers of the shards that this process sampled
    damaged: numbers of the shards whose files this process found damaged
    images: the ``.npz`` of all samples; None on all processes but the first
    record: contents of run.json; None on all processes but the first. It has the settings, shape (N, H, W, C) and
        sha256 of the ``.npz``, seconds of sampling summed over shards, and made_on, the number of shards by hardware;
        bytes can only be compared between runs on the same hardware; of a plan that decides while it runs also decided,
        the pictures of what was decided with the number of generations of each, the most frequent first
    """

    folder: Path
    shards: int
    made: tuple[int, ...]
    damaged: tuple[int, ...]
    images: Path | None
    record: Mapping[str, Any] | None


def sample_shards(
    target: Any,
    conditions: Sequence[Any],
    out: Path | str,
    *,
    num_steps: int,
    plan: Plan | None = None,
    guidance: float = 1.5,
    seed: int = 0,
    shard_size: int = 256,
    batch: int = 64,
    call_size: int | None = CALL_SIZE,
    png: bool = False,
    on_progress: OnProgress | None = None,
) -> Sampled:
    """One sample per condition, written to ``out``: shards, then ``samples.npz`` for ADM's evaluation suite.

    target: a DiTPipeline, a text-to-image pipeline, or any `sources.Source`
    conditions: class numbers or texts, one a sample
    out: folder of the run
    num_steps: scheduler steps
    plan: None computes everything
    guidance: classifier-free guidance scale
    seed: seed of the noise
    shard_size: samples in a shard: held in memory, and lost at most when a process is killed
    batch: most samples in a model call
    call_size: samples in every model call (twice as many rows with guidance); the last call is padded. The bytes then
        depend neither on ``batch`` nor on ``shard_size`` nor on the process that sampled a shard. None calls the model
        with ``batch`` samples: matrix products of other shapes may sum in another order, so that other batches give
        the same images up to float rounding
    png: write ``png/000000.png``, ... as well
    on_progress: called with the stage, and the samples done and in all, over all processes

    The same call continues after any interruption: it skips finished shards, and samples damaged ones again. Under
    torchrun or ``accelerate launch`` the processes share the shards through files; machines need a common file system
    and nothing else.

    Raises ShardError if ``out`` holds another run (and says what differs), RunError for a scheduler whose noise does
    not depend on the sample alone, InputError for images that are not finite.
    """
    source, wanted = as_source(target), [int(value) if isinstance(value, Integral) else value for value in conditions]
    labels = samples_file.labels_of(wanted)
    if wanted and labels.dtype.kind == "i" and source.classes:
        check_labels(sorted(set(wanted)), source.classes)
    check_conditions(source, wanted)
    call = _check_sizes(batch, shard_size, call_size)
    how = Sampling(num_steps, float(guidance), seed)
    folder, world = Path(out), distributed.launched()
    asked = settings_of(source, wanted, how, plan, shard_size, call_size)
    settings = _join(folder, asked, plan if world.leads else None)
    with apply(source.target, plan) if plan is not None else nullcontext() as session:
        where = Folder(folder, settings)
        run = ShardRun(where, world, source, wanted, how, plan, session, call, on_progress or _silent)
        run.finish()
        written = run.collect(labels) if world.leads else None
    record = json.loads((folder / "run.json").read_bytes()) if written else None
    if png and written:
        samples_file.write_pngs(written, folder / "png", lambda done: run.tell("writing PNGs", done))
    return Sampled(folder, settings.shards, tuple(run.made), tuple(run.damaged), written, record)


def _silent(*_: Any) -> None:
    pass


def _check_sizes(batch: int, shard_size: int, call_size: int | None) -> int:
    """The number of samples in a model call; InputError if the sizes do not fit together."""
    if min(batch, shard_size, 1 if call_size is None else call_size) < 1:
        raise InputError(f"batch, shard and call sizes are at least 1; {batch}, {shard_size}, {call_size} were given.")
    if call_size is None:
        return min(batch, shard_size)
    if batch < call_size:
        raise InputError(
            f"The model is called with {call_size} samples, always, which a batch of {batch} does not hold: use a call "
            f"size of at most {batch} from the first shard on, or calls of any size (not exact)."
        )
    if shard_size % call_size:
        raise InputError(
            f"A shard of {shard_size} samples cannot be cut into calls of {call_size}: use a shard size of "
            f"{call_size * -(-shard_size // call_size)}, or another call size."
        )
    return call_size


def settings_of(
    source: Source, conditions: Sequence[Any], how: Sampling, plan: Plan | None, shard_size: int, call_size: int | None
) -> Settings:
    """The settings that determine the samples of a run, as its manifest stores them."""
    if not conditions or how.num_steps < 1:
        raise InputError(
            "Sampling needs at least one condition and at least one step; there are "
            f"{len(conditions)} conditions and {how.num_steps} steps."
        )
    if makes_videos(source):
        raise InputError(
            f"A {type(source.target).__name__} makes videos, and shards hold images: sample a few at a time, without "
            "a number of samples, or in several folders with different seeds."
        )
    model = find(source.target)
    parts = getattr(source.target, "components", {"transformer": model})
    return Settings(
        type(model).__name__,
        {name: fingerprint(part) for name, part in sorted(parts.items()) if isinstance(part, nn.Module)},
        describe_scheduler(getattr(source.target, "scheduler", None)),
        dtype_name(next(model.parameters()).dtype),
        {"method": plan.provenance.get("method", "plan"), "sha256": plan_digest(plan)} if plan is not None else {},
        how.num_steps,
        how.guidance,
        how.seed,
        hashlib.sha256(json.dumps(list(conditions)).encode()).hexdigest(),
        len(conditions),
        shard_size,
        call_size,
        options_of(source),
    )


def plan_digest(plan: Plan) -> str:
    """The digest of a plan's cells and constants, without its provenance and the model that it was made for."""
    bare = replace(plan, grid=replace(plan.grid, model="", fingerprint="", scheduler=""), provenance={})
    with tempfile.TemporaryDirectory() as folder:
        bare.save(Path(folder) / "plan.json")
        digest = hashlib.sha256()
        for path in sorted(Path(folder).iterdir()):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _join(folder: Path, asked: Settings, plan: Plan | None) -> Settings:
    """The settings in the folder's manifest, which the first process writes.

    plan: written to the folder as well; None leaves that to another process
    """
    path = folder / "shards.json"
    if not path.exists():
        if (folder / "run.json").exists():
            raise ShardError(f"{folder} holds another run, not in shards: sample into another folder, or delete it.")
        shard_file.write_manifest(path, asked)
    there = shard_file.read_manifest(path)
    if differ := differences(there, asked):
        raise ShardError(f"{folder} holds another run ({'; '.join(differ)}): sample into another folder, or delete it.")
    if plan is not None:
        plan.save(folder / "plan.json")
    return there


def differences(there: Settings, asked: Settings) -> list[str]:
    """The differences of the folder's run from the requested one, as words; empty if there are none."""
    words = []
    for name in (field.name for field in fields(Settings)):
        a, b = getattr(there, name), getattr(asked, name)
        if name == "weights":
            words += [f"other weights of the {part}" for part in sorted({*a, *b}) if not _same_part(a, b, part)]
        elif name == "scheduler":
            words += [f"scheduler {difference}" for difference in scheduler_differences(a, b)]
        elif name == "plan" and a.get("sha256") != b.get("sha256"):
            methods = [plan.get("method", "none") for plan in (a, b)]
            words.append("another plan" if methods[0] == methods[1] else f"plan {methods[0]}, not {methods[1]}")
        elif name == "options" and a != b:
            words += [f"{key.replace('_', ' ')} {a.get(key, 'of the pipeline')}, not {b.get(key, 'of the pipeline')}"
                      for key in sorted({*a, *b}) if a.get(key) != b.get(key)]  # fmt: skip
        elif name == "conditions" and a != b:
            words += ["other conditions"] if there.count == asked.count else []
        elif name != "plan" and a != b:
            words.append(f"{name} {a}, not {b}")
    return words


def _same_part(a: Any, b: Any, part: str) -> bool:
    return part in a and part in b and is_same(a[part], b[part])
