"""Sources: models that make images from class labels or from texts, one protocol for all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from forecache.errors import InputError
from forecache.models.find import transformers
from forecache.sampling.call_options import CallOptions, frames_name, guidance_name, parameters
from forecache.sampling.loop import check_labels, generators

EDITS = {"strength", "mask_image", "control_image", "control_video"}
EDITORS = ("Edit", "ImageToVideo", "I2V", "I2I", "Refiner", "Layered")
"""Parameters of calls, and parts of names, of pipelines that need an image or a video to begin with."""
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
    """A model that makes images or videos from class labels or from texts.

    Optional attributes: ``conditional``, the half of a guidance pair that is conditional, "first" (the default) or
    "second"; ``guidance``, the default guidance scale; ``prompts``, default texts; ``call_inputs(rows)``, the arguments
    of a model call; ``options``, the `CallOptions` of every call; ``makes_videos``, False by default.
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
        """Images (B, C, H, W), or videos (B, F, C, H, W), in [0, 1], float32 on the CPU, of labels or of texts.

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
        with _reporting(self.pipe, on_step):
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
    """A diffusers pipeline that makes images or videos of texts, such as PixArt's or Wan's.

    pipe: the pipeline
    options: of every call; by default the pipeline's own
    """

    pipe: Any
    options: CallOptions = CallOptions()  # noqa: RUF009 - it is frozen

    classes = 0
    conditional = "second"

    @property
    def target(self) -> Any:
        return self.pipe

    @property
    def makes_videos(self) -> bool:
        """Whether it makes videos (B, F, C, H, W) and not images (B, C, H, W)."""
        return frames_name(self.pipe) is not None

    def label(self, name: str) -> int:
        raise InputError(f"A {type(self.pipe).__name__} makes images of texts, not of classes: use --prompt {name!r}.")

    def generate(
        self, labels: Sequence[str], how: Sampling, first_index: int = 0, on_step: OnStep | None = None
    ) -> Tensor:
        known, arguments = parameters(self.pipe), self.options.arguments(self.pipe)
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(labels)
        if "use_resolution_binning" in known:
            arguments["use_resolution_binning"] = False  # sample at the model's own size, or at the one asked for
        if "clean_caption" in known and not all(map(find_spec, ("bs4", "ftfy"))):
            arguments["clean_caption"] = False  # the pipeline falls back to this by itself, with warnings
        with _reporting(self.pipe, on_step):
            output = self.pipe(
                prompt=list(labels),
                num_inference_steps=how.num_steps,
                generator=generators(how.seed, how.indices(first_index, len(labels))),
                output_type="pt",
                **arguments,
                **self._guided(how.guidance, arguments, len(labels)),
            )
        names = [name for name in ("frames", "images", "image", "videos") if getattr(output, name, None) is not None]
        images = getattr(output, names[0]) if names else output[0]
        images = torch.stack(list(images)) if isinstance(images, list) else images
        if images.ndim != 4 + self.makes_videos:
            raise InputError(
                f"A {type(self.pipe).__name__} gave out {tuple(images.shape)}: forecache samples images of one size, "
                "(count, channels, height, width), and videos, (count, frames, channels, height, width)."
            )
        return images.float().cpu()

    def _guided(self, scale: float, arguments: dict[str, Any], count: int) -> dict[str, Any]:
        """The guidance scale as an argument of the call; true guidance gets an empty negative prompt if it has none.

        Raises InputError for a scale if the call has none.
        """
        name = guidance_name(self.pipe)
        if name is None:
            if scale != own_guidance(self):
                raise InputError(f"The call of a {type(self.pipe).__name__} has no guidance scale: leave it out.")
            return {}
        if name == "true_cfg_scale" and scale > 1 and "negative_prompt" not in arguments:
            return {name: scale, "negative_prompt": [" "] * count}  # without one the pipeline ignores the scale
        return {name: scale}


def takes_texts(pipe: Any) -> bool:
    """Whether an object is a diffusers pipeline with a transformer that makes images or videos of texts alone."""
    if not hasattr(pipe, "transformer") or not callable(pipe):
        return False
    known = parameters(pipe)
    required = {
        name
        for name, parameter in known.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    needed = {"prompt", "num_inference_steps", "generator", "output_type"} <= known.keys()
    edits = EDITS & known.keys() or any(word in type(pipe).__name__ for word in EDITORS)
    pictures = {"num_images_per_prompt", "num_videos_per_prompt"} & known.keys()
    return needed and bool(pictures) and not edits and required <= {"self", "prompt"}


def own_guidance(source: Source) -> float:
    """The default guidance scale: the source's own, else the pipeline's for texts, else 1.5, as in the papers.

    1 for a pipeline without a guidance scale.
    """
    default = 1.5
    if isinstance(source, TextSource):
        name = guidance_name(source.pipe)
        default = parameters(source.pipe)[name].default if name is not None else 1.0
    return getattr(source, "guidance", default)


def with_options(source: Source, options: CallOptions) -> Source:
    """The source with options of every call. Raises InputError for options that it does not take."""
    if not (given := options.document()):
        return source
    if isinstance(source, TextSource):
        options.arguments(source.pipe)
        return replace(source, options=options)
    words = ", ".join(name.replace("_", " ") for name in given)
    raise InputError(
        f"A {type(source.target).__name__} has no {words}: leave it out. These are for pipelines that make images or "
        "videos of texts; a model of classes samples at its own size."
    )


def options_of(source: Source) -> dict[str, Any]:
    """The options of every call of a source that were given, by name; empty for none."""
    return getattr(source, "options", CallOptions()).document()


def makes_videos(source: Source) -> bool:
    """Whether a source makes videos (B, F, C, H, W)."""
    return bool(getattr(source, "makes_videos", False))


@contextmanager
def _reporting(pipe: Any, on_step: OnStep | None) -> Iterator[None]:
    """Call ``on_step`` after every call of a transformer in this block: not every pipeline has a callback."""
    if on_step is None:
        yield
        return
    calls, tell = itertools.count(), on_step
    hooks = [model.register_forward_hook(lambda *_: tell(next(calls))) for model in transformers(pipe)]
    try:
        yield
    finally:
        for hook in hooks:
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
    """The images or videos of all conditions, ``batch`` a generation; their noise does not depend on ``batch``."""
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
        f"forecache does not know how to sample from a {type(target).__name__}: pass a DiTPipeline, a pipeline that "
        "makes images or videos of texts, a bundled model, or an object with `target`, `classes` and `generate`, as "
        "forecache.sampling.sources.Source describes it."
    )
