"""Models by name, ready to sample from: the bundled ``digits``, a local pipeline folder, a repository on the hub."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from forecache._errors import InputError, MissingExtraError
from forecache.sample import check_labels, generators, sample, to_images
from forecache.zoo import Digits, load_digits

OnStep = Callable[[int], None]


@dataclass(frozen=True)
class Sampling:
    """How to sample: scheduler steps, classifier-free guidance scale, seed of the noise.

    shared_noise: every sample starts from the noise of sample 0.
    """

    num_steps: int
    guidance: float
    seed: int
    shared_noise: bool = False

    def indices(self, first: int, count: int) -> Sequence[int]:
        """The numbers of the noises that ``count`` samples from ``first`` on start from."""
        return [0] * count if self.shared_noise else range(first, first + count)


class Source(Protocol):
    """A model that makes images from class labels."""

    @property
    def target(self) -> Any:
        """What a plan is applied to: a pipeline or a transformer."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes, labels 0 to classes - 1."""
        ...

    def label(self, name: str) -> int:
        """The label of a class by its name; InputError if there is none."""
        ...

    def generate(
        self, labels: Sequence[int], how: Sampling, first_index: int = 0, on_step: OnStep | None = None
    ) -> Tensor:
        """Images (B, C, H, W) in [0, 1], float32 on the CPU. Image i depends on seed and first_index + i alone."""
        ...


@dataclass(frozen=True)
class DigitsSource:
    """The bundled digits model."""

    digits: Digits

    @property
    def target(self) -> Any:
        return self.digits

    @property
    def classes(self) -> int:
        return 10

    def label(self, name: str) -> int:
        names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        if name.lower() not in names:
            raise InputError(f"digits has no class {name!r}: use 0 to 9, or {', '.join(names)}.")
        return names.index(name.lower())

    def generate(
        self, labels: Sequence[int], how: Sampling, first_index: int = 0, on_step: OnStep | None = None
    ) -> Tensor:
        pixels = sample(
            self.digits.transformer,
            self.digits.scheduler,
            labels,
            num_steps=how.num_steps,
            guidance=how.guidance,
            seed=how.seed,
            indices=how.indices(first_index, len(labels)),
            on_step=on_step,
        )
        return to_images(pixels)


@dataclass(frozen=True)
class DiTSource:
    """A diffusers DiTPipeline: transformer, VAE, scheduler."""

    pipe: Any

    @property
    def target(self) -> Any:
        return self.pipe

    @property
    def classes(self) -> int:
        return self.pipe.transformer.config.num_embeds_ada_norm

    def label(self, name: str) -> int:
        if name not in self.pipe.labels:
            close = [each for each in self.pipe.labels if name.lower() in each.lower()][:5]
            hint = f"; there are {', '.join(close)}" if close else f": use a number from 0 to {self.classes - 1}"
            raise InputError(f"The model has no class {name!r}{hint}.")
        return self.pipe.get_label_ids([name])[0]

    def generate(
        self, labels: Sequence[int], how: Sampling, first_index: int = 0, on_step: OnStep | None = None
    ) -> Tensor:
        check_labels(labels, self.classes)
        hook = None
        if on_step is not None:  # DiTPipeline has no callback
            calls = itertools.count()
            hook = self.pipe.transformer.register_forward_hook(lambda *_: on_step(next(calls)))
        try:
            images = self.pipe(
                list(labels),
                guidance_scale=how.guidance,
                num_inference_steps=how.num_steps,
                generator=generators(how.seed, how.indices(first_index, len(labels))),
                output_type="pt",
            ).images
        finally:
            if hook is not None:
                hook.remove()
        return images.float().cpu()


def in_batches(
    source: Source, labels: Sequence[int], how: Sampling, batch: int, on_step: OnStep | None = None
) -> Tensor:
    """The images of all labels, ``batch`` a generation; how they are cut into batches does not change their noise."""
    starts = range(0, len(labels), batch)
    return torch.cat([source.generate(labels[first : first + batch], how, first, on_step) for first in starts])


def as_source(target: Any) -> Source:
    """The source of what is in hand: the bundled `Digits`, a diffusers DiTPipeline, or a `Source` as it is."""
    if isinstance(target, Digits):
        return DigitsSource(target)
    if type(target).__name__ == "DiTPipeline":
        return DiTSource(target)
    if all(hasattr(target, name) for name in ("target", "classes", "generate")):
        return target
    raise InputError(
        f"forecache does not know how to sample from a {type(target).__name__}: pass a DiTPipeline, the digits model, "
        "or an object with `target`, `classes` and `generate`, as forecache.sources.Source describes it."
    )


def open_source(name: str, device: str = "auto", dtype: str = "auto") -> Source:
    """The model of this name: ``digits``, a folder written by ``save_pretrained``, or a repository on the hub.

    device: ``auto`` takes a GPU where there is one. dtype: ``auto`` is bfloat16 on a GPU and float32 on the CPU.
    """
    where, kind = place(device, dtype)
    if name == "digits":
        return DigitsSource(load_digits(kind, where))
    return DiTSource(_pipeline(name, kind).to(where))


def place(device: str = "auto", dtype: str = "auto") -> tuple[str, torch.dtype]:
    """The device and dtype that these words stand for here; InputError if the device cannot be used."""
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    kind = _dtype(dtype, where)
    try:
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"The device {where!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return where, kind


def _dtype(name: str, device: str) -> torch.dtype:
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    if name not in names:
        raise InputError(f"dtype must be auto, {', '.join(names)}; not {name!r}.")
    return names[name]


def _pipeline(name: str, dtype: torch.dtype) -> Any:
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise MissingExtraError("diffusers", "diffusers", f"Loading {name}") from error
    is_folder = Path(name).is_dir()
    if not is_folder and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(
            f"There is no model {name!r}: give 'digits', a pipeline folder or a hub repository owner/name."
        )
    try:
        pipe = DiffusionPipeline.from_pretrained(name, torch_dtype=dtype)
    except Exception as error:  # the hub, files and configurations fail in many ways; the reason is kept
        place = "the folder" if is_folder else "the hub"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{name} cannot be loaded as a diffusers pipeline from {place}: {reason}") from error
    if type(pipe).__name__ != "DiTPipeline":
        raise InputError(
            f"{name} is a {type(pipe).__name__}; `sample` runs class-conditional DiTPipelines. "
            "In Python, forecache.apply works on its transformer."
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe
