"""One sampling run, from conditions to files: images or videos, and a run.json: settings, cost, times, hardware."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forecache.environment import environment
from forecache.errors import InputError
from forecache.evaluate.images import WINDOW, psnr, ssim
from forecache.io import files as files_module
from forecache.io.text import dtype_name
from forecache.models.arguments import Arguments
from forecache.models.counting import first_call
from forecache.plan.cost import Cost
from forecache.plan.plan import Plan
from forecache.runtime.apply import apply
from forecache.runtime.stats import Stats
from forecache.sampling import samples_file, videos
from forecache.sampling.costs import cost, cost_document, first_model
from forecache.sampling.loop import check_labels, random_labels
from forecache.sampling.sources import (
    Condition,
    OnStep,
    Sampling,
    Source,
    all_conditions,
    check_conditions,
    in_batches,
    options_of,
)
from forecache.sampling.timing import Turns, alternate, timed

UNCACHED = "uncached.npz"
WITH_PLAN, UNCACHED_NAME = "with the plan", "no cache"
"""Names of the two runs of a comparison in its times."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run, which samples one image for each condition.

    conditions: class labels, or texts
    num_steps: scheduler steps, at least 1
    guidance: classifier-free guidance scale
    seed: seed of the noise
    batch: images in a generation, at least 1; the noise of an image does not depend on it
    """

    conditions: tuple[Condition, ...]
    num_steps: int
    guidance: float
    seed: int
    batch: int

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.batch < 1:
            raise InputError(f"steps and batch are at least 1; {self.num_steps} and {self.batch} were asked for.")


@dataclass(frozen=True)
class Run:
    """The result of one run.

    images: (B, C, H, W), or videos (B, F, C, H, W), in [0, 1], float32
    seconds: duration of the whole run; of a model's first run it is longer than of the next
    stats: counts of the session; None without a plan
    call: arguments of the first model call, on the meta device
    """

    images: Tensor
    seconds: float
    stats: Stats | None
    call: Arguments | None = None

    def ran(self, plan: Plan) -> Plan:
        """The plan of what was run under a plan: where it decides while it runs, what it decided in the last batch."""
        if not plan.is_undecided or self.stats is None or self.stats.last is None:
            return plan
        return self.stats.last.stretches[0].plan


def generate(source: Source, plan: Plan | None, settings: Settings, on_step: OnStep | None = None) -> Run:
    """Sample with a plan, or with everything computed if it is None."""

    def images() -> Tensor:
        how = Sampling(settings.num_steps, settings.guidance, settings.seed)
        return in_batches(source, settings.conditions, how, settings.batch, on_step)

    with first_call(first_model(source)) as calls:
        if plan is None:
            return Run(*timed(images), None, *calls)
        with apply(source.target, plan) as session:
            pixels, seconds = timed(images)
    return Run(pixels, seconds, session.stats, *calls)


def time_in_turn(
    source: Source,
    plans: Mapping[str, Plan | None],
    settings: Settings,
    rounds: int,
    on_step: OnStep | None = None,
    on_run: Callable[[str], None] | None = None,
) -> Turns:
    """The latencies of the first batch of a run under each of several plans, in turn. There is no warm-up here.

    plans: by name; None computes everything
    rounds: rounds that all plans run in
    on_run: called with the name of the plan that starts
    """
    first = replace(settings, conditions=settings.conditions[: settings.batch])

    def run(plan: Plan | None) -> Callable[[], float]:
        return lambda: generate(source, plan, first, on_step).seconds

    seconds = alternate({name: run(plan) for name, plan in plans.items()}, rounds, warmup=0, on_call=on_run)
    return Turns(len(first.conditions), {name: tuple(values) for name, values in seconds.items()})


def described(source: Source) -> dict[str, Any]:
    """How a source's model is set up: class of the pipeline or model, dtype, device, and the options of its calls."""
    weights = next(first_model(source).parameters())
    return {
        "class": type(source.target).__name__,
        "dtype": dtype_name(weights.dtype),
        "device": str(weights.device),
        "options": options_of(source),
    }


def write(
    out: Path,
    run: Run,
    settings: Settings,
    *,
    model: str,
    plan: Plan | None = None,
    cost: Cost | None = None,
    uncached: Run | None = None,
    timing: Turns | None = None,
    pipeline: Mapping[str, Any] | None = None,
    command: str = "",
    errors: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the images or videos, the plan as plan.json, and run.json; gives the contents of run.json.

    What an earlier run wrote into the folder goes. Of a plan that decides while it runs, ``decided`` in run.json is
    what was decided in the last batch.
    uncached: the same run without a plan, for PSNR and SSIM; its images are kept in uncached.npz, as ADM's suite reads
    it. timing: latencies of `WITH_PLAN` and `UNCACHED_NAME` in turn, if they were measured. pipeline: as `described`.
    command: what was typed. errors: errors of the plan's estimates by step and site, as `fit.step_errors` has them.
    """
    out.mkdir(parents=True, exist_ok=True)
    _clear(out)
    entries = _save(out, run.images)
    if plan is not None:
        plan.save(out / "plan.json")
    record: dict[str, Any] = {
        "command": command,
        "model": model,
        "settings": asdict(settings),
        "pipeline": dict(pipeline or {}),
        "plan": "plan.json" if plan else None,
        "provenance": dict(plan.provenance) if plan else {},
        "picture": plan.picture() if plan else None,
        "cost_per_batch": cost_document(cost) if cost else None,
        "seconds": run.seconds,
        "stats": run.stats.counts() if run.stats else None,
        "environment": environment(),
        "images": [
            entry | {"prompt" if isinstance(condition, str) else "label": condition}
            for entry, condition in zip(entries, settings.conditions, strict=True)
        ],
    }
    if plan is not None and run.ran(plan) is not plan:
        record["decided"] = run.ran(plan).picture()
    if errors is not None:
        record["errors"] = dict(errors)
    if uncached is not None:
        pixels = _in_bytes(uncached.images)
        frames = len(pixels) // len(entries)
        labels = [condition for condition in settings.conditions for _ in range(frames)]
        samples_file.write(out / UNCACHED, len(pixels), [pixels], samples_file.labels_of(labels))
        record["uncached"] = UNCACHED
        _add_quality(record["images"], run.images, uncached.images)
    if timing is not None:
        record["timing"] = timing.document()
        record["time_ratio"] = asdict(timing.ratio(WITH_PLAN, UNCACHED_NAME))
    files_module.write_json(out / "run.json", record)
    return record


def _save(out: Path, images: Tensor) -> list[dict[str, Any]]:
    """Write the images as PNGs, or the videos with their frames as PNGs; gives an entry of run.json for each."""
    if images.ndim == 5:
        return [videos.save(video, out, f"{index:05d}") for index, video in enumerate(images)]
    files = [f"{index:05d}.png" for index in range(len(images))]
    for file, image in zip(files, images, strict=True):
        save_png(image, out / file)
    return [{"file": file} for file in files]


def _in_bytes(images: Tensor) -> np.ndarray[Any, Any]:
    """Images as (N, H, W, C) uint8, videos frame after frame."""
    frames = images.flatten(0, 1) if images.ndim == 5 else images
    return (frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _add_quality(entries: Sequence[dict[str, Any]], images: Tensor, uncached: Tensor) -> None:
    """Adds the PSNR of every image to its uncached one, None for equal images, and its SSIM if it is large enough."""
    for entry, value in zip(entries, psnr(images, uncached).tolist(), strict=True):
        entry["psnr"] = None if value == float("inf") else value
    if min(images.shape[-2:]) >= WINDOW:
        for entry, value in zip(entries, ssim(images, uncached).tolist(), strict=True):
            entry["ssim"] = value


@dataclass(frozen=True)
class SavedRun:
    """A run that was written to a folder.

    record: the contents of run.json.
    cost: the plan's cost for the first batch; None without a plan, or where nobody knows it.
    """

    record: Mapping[str, Any]
    cost: Cost | None


def sample_to(
    out: Path,
    source: Source,
    plan: Plan | None,
    settings: Settings,
    *,
    model: str,
    compare: bool = False,
    rounds: int = 0,
    command: str = "",
    on_phase: Callable[[str], None] | None = None,
    on_step: OnStep | None = None,
    errors: Mapping[str, Any] | None = None,
) -> SavedRun:
    """Sample a run and write it to a folder, as `write` does.

    compare: sample without the plan too, for the PSNR of every image.
    rounds: with ``compare``, rounds in which the first batch is sampled again with the plan and without one, in turn,
        for the times; both have run before, so that no first call is timed. 0, the default, measures no times.
    on_phase: called with "sampling", "sampling without a cache" and "timing" when they begin. on_step: after every
    step. errors: as in `write`.
    """
    phase = on_phase or (lambda _: None)
    phase("sampling")
    run = generate(source, plan, settings, on_step)
    uncached, timing = None, None
    if compare:
        phase("sampling without a cache")
        uncached = generate(source, None, settings, on_step)
        if rounds:
            phase("timing")
            pair = {UNCACHED_NAME: None, WITH_PLAN: plan}
            timing = time_in_turn(source, pair, settings, rounds, on_step)
    generation = cost(source, plan, run.call) if plan is not None else None
    record = write(
        out,
        run,
        settings,
        model=model,
        plan=plan,
        cost=generation,
        uncached=uncached,
        timing=timing,
        pipeline=described(source),
        command=command,
        errors=errors,
    )
    return SavedRun(record, generation)


def check_folder(out: Path) -> None:
    """Raises InputError for a folder of samples in shards, which `write` would mix with other files."""
    if (out / "shards.json").exists():
        raise InputError(f"{out} holds samples in shards, of --num-samples: sample into another folder, or delete it.")


def _clear(out: Path) -> None:
    """Remove the files of an earlier run, as its run.json lists them, and nothing else."""
    try:
        images = files_module.document(out / "run.json", 2**26)["images"]
        entries = [(f"{index:05d}", image) for index, image in enumerate(images)]
        names = [f"{stem}.png" for stem, image in entries if image["file"] == f"{stem}.png"]
        films = [(stem, image) for stem, image in entries if image["file"] in videos.names(stem)]
        for stem, image in films:
            videos.remove(out, stem, image)
    except (OSError, ValueError, KeyError, TypeError):
        return  # there was none, or it is somebody else's
    for name in (*names, "plan.json", "plan.constants.safetensors", UNCACHED, "run.json"):
        (out / name).unlink(missing_ok=True)


def save_png(image: Tensor, path: Path) -> None:
    """Write an image (C, H, W) in [0, 1], C 1 or 3, as an 8-bit PNG."""
    from PIL import Image

    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    with files_module.replacing(path, durable=False) as file:
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, format="png")


def parse_conditions(source: Source, labels: str | None, prompts: Sequence[str]) -> tuple[Condition, ...]:
    """The conditions of two options: labels for a model with classes, prompts for one without; else InputError."""
    if labels is not None and not prompts and source.classes:
        return parse_labels(labels, source)
    if prompts and labels is None and not source.classes:
        return tuple(prompts)
    wanted = "labels, such as --labels 207,360" if source.classes else "texts, such as --prompt 'a red apple'"
    alone = "these alone" if prompts or labels is not None else "these"
    raise InputError(f"The model makes images of {wanted}: give {alone}.")


def read_prompts(path: Path) -> list[str]:
    """The texts of a file, one a line, without empty lines; InputError if there are none."""
    try:
        lines = [line.strip() for line in files_module.contents(path, 16 * 2**20).decode("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"The prompts in {path} cannot be read: {error}") from error
    if not (texts := [line for line in lines if line]):
        raise InputError(f"{path} has no prompts: write one a line.")
    return texts


def conditions(source: Source, count: int, labels: str | None, prompts: Path | None) -> tuple[Condition, ...]:
    """The conditions of ``count`` samples: classes or texts, cycled; or the labels, one sample each."""
    if labels is not None:
        return parse_conditions(source, labels, [] if prompts is None else read_prompts(prompts))
    cycle = all_conditions(source) if prompts is None else read_prompts(prompts)
    if not cycle:
        raise InputError("The model makes images of texts: give a file of them, one a line, with --prompts.")
    return check_conditions(source, [cycle[index % len(cycle)] for index in range(count)])


def many_conditions(
    source: Source, count: int, given: Sequence[Condition], prompts: Path | None, random_seed: int | None = None
) -> Sequence[Condition]:
    """The conditions of ``count`` samples: random classes, else ``given``, a file's prompts or all classes, cycled."""
    if random_seed is not None and source.classes:
        return random_labels(count, source.classes, random_seed)
    if given:
        return [given[index % len(given)] for index in range(count)]
    return conditions(source, count, None, prompts)


def parse_labels(text: str, source: Source) -> tuple[int, ...]:
    """The labels of a text such as ``207,360``, numbers or class names with commas between."""
    words: Sequence[str] = [word.strip() for word in text.split(",") if word.strip()]
    labels = [int(word) if word.removeprefix("-").isdecimal() else source.label(word) for word in words]
    check_labels(labels, source.classes)
    return tuple(labels)
