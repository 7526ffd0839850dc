"""Sources: models that make images from class labels or from texts, one protocol for all of them."""

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
"""The condition of a sample: the label of its class, or its text."""


@dataclass(frozen=True)
class Sampling:
    """The settings of a sampling run.

    num_steps: scheduler steps
    guidance: classifier-free guidance scale; one call a sample up to 1, two above
    seed: seed of the noise
    shared_noise: every sample starts from the noise of sample 0

    Raises InputError for a negative or infinite scale.
    """

    num_steps: int
    guidance: float
    seed: int
    shared_noise: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < math.inf:
            raise InputError(f"The guidance scale is a finite number, at least 0; {self.guidance:g} was asked for.")

    def indices(self, first: int, count: int) -> Sequence[int]:
        """The noise indices of ``count`` samples, the first of which has the number ``first``."""
        return [0] * count if self.shared_noise else range(first, first + count)


class Source(Protocol):
    """A model that makes images from class labels or from texts.

    Optional attributes: ``conditional``, the half of a guidance pair that is conditional, "first" (the default) or
    "second"; ``guidance``, the default guidance scale; ``prompts``, default texts; ``call_inputs(rows)``, the arguments
    of a model call.
    """

    @property
    def target(self) -> Any:
        """The pipeline or transformer that a plan is applied to."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes, labels 0 to classes - 1; 0 for a text-to-image model."""
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
            close = [label for label in self.pipe.labels if name.lower() in label.lower()][:5]
            hint = f"; there are {', '.join(close)}" if close else f": use a number from 0 to {self.classes - 1}"
            raise InputError(f"The model has no class {name!r}{hint}.")
        return self.pipe.get_label_ids([name])[0]

    def generate(
        self, labels: Sequence[int], how: Sampling, first_index: int = 0, on_step: OnStep | None = None
    ) -> Tensor:
        check_labels(labels, self.classes)
        with _reporting(self.pipe.transformer, on_step):
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
    """A diffusers text-to-image pipeline, such as PixArt's."""

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
            more["use_resolution_binning"] = False  # sample at the model's own size
        if "clean_caption" in _parameters(self.pipe) and not all(map(find_spec, ("bs4", "ftfy"))):
            more["clean_caption"] = False  # the pipeline falls back to this by itself, with warnings
        with _reporting(self.pipe.transformer, on_step):
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
    """Whether an object is a diffusers text-to-image pipeline with a transformer."""
    needed = {"prompt", "guidance_scale", "num_inference_steps", "generator", "output_type", "num_images_per_prompt"}
    return hasattr(pipe, "transformer") and callable(pipe) and needed <= set(_parameters(pipe))


def own_guidance(source: Source) -> float:
    """The default guidance scale: the source's own, else the pipeline's for texts, else 1.5, as in the papers."""
    default = _parameters(source.target)["guidance_scale"].default if isinstance(source, TextSource) else 1.5
    return getattr(source, "guidance", default)


@contextmanager
def _reporting(transformer: Any, on_step: OnStep | None) -> Iterator[None]:
    """Call ``on_step`` after every call of the transformer in this block: not every pipeline has a callback."""
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
    """The classes of a model, or its default ``prompts``; empty if it has neither."""
    return range(source.classes) if source.classes else getattr(source, "prompts", ())


def check_conditions(source: Source, conditions: Iterable[Any]) -> tuple[Condition, ...]:
    """The conditions, labels as int; InputError for texts if the model has classes, for labels if it has none."""
    given = tuple(conditions)
    if source.classes:
        if texts := [condition for condition in given if isinstance(condition, str)]:
            raise InputError(f"The model takes class labels, 0 to {source.classes - 1}; {texts[0]!r} is a text.")
        return tuple(int(condition) for condition in given)
    if labels := [condition for condition in given if not isinstance(condition, str)]:
        raise InputError(f"The model takes texts; {labels[0]!r} is not a text.")
    return given


def call_inputs(source: Source, rows: int) -> dict[str, Any] | None:
    """The arguments of a model call on ``rows`` samples, if the source defines them; else None."""
    own: Callable[[int], dict[str, Any]] | None = getattr(source, "call_inputs", None)
    return None if own is None else own(rows)


def in_batches(
    source: Source, labels: Sequence[Condition], how: Sampling, batch: int, on_step: OnStep | None = None
) -> Tensor:
    """The images (B, C, H, W) of all conditions, ``batch`` a generation; their noise does not depend on ``batch``."""
    starts = range(0, len(labels), batch)
    return torch.cat([source.generate(labels[first : first + batch], how, first, on_step) for first in starts])


def as_source(target: Any) -> Source:
    """The source of a DiTPipeline or a text-to-image pipeline; a `Source` is returned as it is.

    Raises InputError for anything else.
    """
    if type(target).__name__ == "DiTPipeline":
        return DiTSource(target)
    if takes_texts(target):
        return TextSource(target)
    if all(hasattr(target, name) for name in ("target", "classes", "generate")):
        return target
    raise InputError(
        f"forecache does not know how to sample from a {type(target).__name__}: pass a DiTPipeline, a text-to-image "
        "pipeline, a bundled model, or an object with `target`, `classes` and `generate`, as "
        "forecache.sampling.sources.Source describes it."
    )
