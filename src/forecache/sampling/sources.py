"""Models by name, ready to sample from: the bundled ``digits``, a local pipeline folder, a repository on the hub."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from forecache.errors import InputError
from forecache.sampling.loop import check_labels, generators

OnStep = Callable[[int], None]
Condition = int | str
"""What a sample is of: a class by its label, or a text."""


@dataclass(frozen=True)
class Sampling:
    """How to sample: scheduler steps, classifier-free guidance scale, seed of the noise.

    shared_noise: every sample starts from the noise of sample 0. Raises InputError for a scale that is none.
    """

    num_steps: int
    guidance: float
    seed: int
    shared_noise: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < math.inf:
            raise InputError(f"The guidance scale is a number from 0 on; {self.guidance:g} was asked for.")

    def indices(self, first: int, count: int) -> Sequence[int]:
        """The numbers of the noises that ``count`` samples from ``first`` on start from."""
        return [0] * count if self.shared_noise else range(first, first + count)


class Source(Protocol):
    """A model that makes images from class labels or from texts.

    It may say which half of a guidance pair is the conditional one: ``conditional``, "first" where it does not.
    """

    @property
    def target(self) -> Any:
        """What a plan is applied to: a pipeline or a transformer."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes, labels 0 to classes - 1; 0 where it takes texts."""
        ...

    def label(self, name: str) -> int:
        """The label of a class by its name; InputError if there is none."""
        ...

    def generate(self, labels: Any, how: Sampling, first_index: int = 0, on_step: OnStep | None = None) -> Tensor:
        """Images (B, C, H, W) in [0, 1], float32 on the CPU, of a sequence of labels, or of texts.

        Image i depends on its condition, the seed and first_index + i alone.
        """
        ...


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
        with _told(self.pipe.transformer, on_step):
            images = self.pipe(
                list(labels),
                guidance_scale=how.guidance,
                num_inference_steps=how.num_steps,
                generator=generators(how.seed, how.indices(first_index, len(labels))),
                output_type="pt",
            ).images
        return images.float().cpu()


@dataclass(frozen=True)
class TextSource:
    """A diffusers pipeline that makes an image of a text, such as PixArt's."""

    pipe: Any

    classes = 0
    conditional = "second"

    @property
    def target(self) -> Any:
        return self.pipe

    def label(self, name: str) -> int:
        raise InputError(f"A {type(self.pipe).__name__} makes images of texts, not of classes: use --prompt {name!r}.")

    def generate(
        self, labels: Sequence[str], how: Sampling, first_index: int = 0, on_step: OnStep | None = None
    ) -> Tensor:
        more: dict[str, Any] = {}
        if "use_resolution_binning" in _parameters(self.pipe):
            more["use_resolution_binning"] = False  # the model's own size is asked for
        if "clean_caption" in _parameters(self.pipe) and not all(map(find_spec, ("bs4", "ftfy"))):
            more["clean_caption"] = False  # as the pipeline does by itself, with warnings
        with _told(self.pipe.transformer, on_step):
            images = self.pipe(
                prompt=list(labels),
                guidance_scale=how.guidance,
                num_inference_steps=how.num_steps,
                generator=generators(how.seed, how.indices(first_index, len(labels))),
                output_type="pt",
                **more,
            ).images
        return images.float().cpu()


def _parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipe).__call__).parameters


def takes_texts(pipe: Any) -> bool:
    """Whether it is a diffusers pipeline that makes images of texts with a transformer."""
    needed = {"prompt", "guidance_scale", "num_inference_steps", "generator", "output_type", "num_images_per_prompt"}
    return hasattr(pipe, "transformer") and callable(pipe) and needed <= set(_parameters(pipe))


def own_guidance(source: Source) -> float:
    """The guidance scale that a model for texts has by default; 1.5, the papers', for classes."""
    default = _parameters(source.target)["guidance_scale"].default if isinstance(source, TextSource) else 1.5
    return getattr(source, "guidance", default)


@contextmanager
def _told(transformer: Any, on_step: OnStep | None) -> Iterator[None]:
    """Calls ``on_step`` after every call of the transformer: not every pipeline has a callback."""
    if on_step is None:
        yield
        return
    calls = itertools.count()
    hook = transformer.register_forward_hook(lambda *_: on_step(next(calls)))
    try:
        yield
    finally:
        hook.remove()


def all_conditions(source: Source) -> Sequence[Condition]:
    """What the model can be asked for: its classes, or the texts that it names as its ``prompts``; empty without."""
    return range(source.classes) if source.classes else getattr(source, "prompts", ())


def check_conditions(source: Source, conditions: Iterable[Any]) -> tuple[Condition, ...]:
    """Labels as whole numbers for a model with classes, texts for one without; InputError for the other kind."""
    given = tuple(conditions)
    if source.classes:
        if texts := [each for each in given if isinstance(each, str)]:
            raise InputError(f"The model takes class labels, 0 to {source.classes - 1}; {texts[0]!r} is a text.")
        return tuple(int(each) for each in given)
    if labels := [each for each in given if not isinstance(each, str)]:
        raise InputError(f"The model takes texts; {labels[0]!r} is none.")
    return given


def call_inputs(source: Source, rows: int) -> dict[str, Any] | None:
    """The arguments of a model call on so many rows, where the source knows better than its model's configuration."""
    own: Callable[[int], dict[str, Any]] | None = getattr(source, "call_inputs", None)
    return None if own is None else own(rows)


def in_batches(
    source: Source, labels: Sequence[Condition], how: Sampling, batch: int, on_step: OnStep | None = None
) -> Tensor:
    """The images of all labels or texts, ``batch`` a generation; how they are cut up does not change their noise."""
    starts = range(0, len(labels), batch)
    return torch.cat([source.generate(labels[first : first + batch], how, first, on_step) for first in starts])


def as_source(target: Any) -> Source:
    """The source of what is in hand: a DiTPipeline, one for texts, or a `Source` as it is."""
    if type(target).__name__ == "DiTPipeline":
        return DiTSource(target)
    if takes_texts(target):
        return TextSource(target)
    if all(hasattr(target, name) for name in ("target", "classes", "generate")):
        return target
    raise InputError(
        f"forecache does not know how to sample from a {type(target).__name__}: pass a DiTPipeline, a pipeline that "
        "makes images of texts, the digits model, or an object with `target`, `classes` and "
        "`generate`, as forecache.sampling.sources.Source describes it."
    )
