"""A small pipeline from the signature of its class, and the arguments of a call from a pool of them by name."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import nn

from pipelines import parts, transformers
from pipelines.check import Subject
from pipelines.walk import pipeline_classes

STEPS = 4
TRANSFORMERS = ("transformer", "transformer_2", "unconditional_transformer", "prior", "decoder")


@dataclass(frozen=True)
class Case:
    """How a pipeline is built small, and how it is called.

    pool: arguments of a call by name; a call takes those that its signature has
    call: further arguments of this pipeline, which it must have
    guided: arguments that switch guidance on
    config: changes of the transformer's configuration
    parts: parts of the pipeline by name, in place of those that the signature's types give; functions make them
    settings: further arguments of the pipeline's constructor
    steps: the number of steps that a user asks for
    two: arguments of the batch of two; by default two prompts, else the pipeline's own number of images a prompt
    prepare: what is done to the new pipeline
    sites: reference sites, where they differ from those of the transformer's class
    not_built: why it cannot be built here; "" where it can
    """

    pool: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    guided: Mapping[str, Any] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Callable[[], Any] | None] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int = STEPS
    two: Mapping[str, Any] | None = None
    prepare: Callable[[Any], None] | None = None
    sites: Any = None
    not_built: str = ""


VARIANTS = ("default", "guided", "batch of two")


def subject(name: str, case: Case, variant: str, attempt: int = 0) -> Subject:
    """The pipeline of this name and a call of it; attempt: which of the ways to ask for a batch of two."""
    kind = pipeline_classes()[name]
    pipe = pipeline(kind, case)
    if case.prepare is not None:
        case.prepare(pipe)
    given = arguments(kind, case, variant, attempt)
    parts: list[Any] = [getattr(pipe, name, None) for name in TRANSFORMERS]
    models = [part for part in parts if _is_transformer(part)]
    small = transformers.SMALL[type(models[0]).__name__]

    def sample() -> Any:
        generator = {"generator": torch.Generator().manual_seed(5)} if "generator" in _names(kind.__call__) else {}
        fresh = {key: value() if callable(value) else value for key, value in given.items()}
        return pipe(**fresh, **generator)

    sites = small.sites if case.sites is None else case.sites
    return Subject(
        pipe, models, sample, given.get("num_inference_steps", case.steps), sites, small.patterns, small.level
    )


def pipeline(kind: type, case: Case) -> Any:
    """A small pipeline of the class."""
    components = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name == "self" or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if name in case.settings:
            components[name] = case.settings[name]
        elif name in case.parts:
            make = case.parts[name]
            components[name] = None if make is None else make()
        elif parameter.default is inspect.Parameter.empty or name in TRANSFORMERS:
            components[name] = part(name, parameter.annotation, case)
    pipe = kind(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def part(name: str, annotation: Any, case: Case) -> Any:
    """A part of a pipeline by the types of its annotation; None for encoders and tokenizers."""
    for kind in kinds(annotation):
        if kind in transformers.SMALL and name != "transformer_2":
            return transformers.make(kind, **case.config)
        if kind in parts.AUTOENCODERS:
            return parts.autoencoder(kind)
        if kind in parts.SCHEDULERS:
            return parts.SCHEDULERS[kind]()
        if kind in transformers.CONTROLNETS:
            return transformers.controlnet(kind)
        if kind in GUIDERS:
            return diffusers.ClassifierFreeGuidance()
        if kind.endswith("Scheduler"):
            return getattr(diffusers, kind)()
    return None


def kinds(annotation: Any) -> list[str]:
    """Names of the classes in an annotation."""
    if isinstance(annotation, str):
        return [
            word.split(".")[-1] for word in annotation.replace("|", " ").replace("[", " ").replace("]", " ").split()
        ]
    if inspect.isclass(annotation):
        return [annotation.__name__]
    return [name for inner in typing.get_args(annotation) for name in kinds(inner)]


def arguments(kind: Any, case: Case, variant: str, attempt: int = 0) -> dict[str, Any]:
    """The arguments of a call."""
    names = _names(kind.__call__)
    given = {name: value for name, value in case.pool.items() if name in names}
    given |= case.call
    if variant == "guided":
        given |= guidance(names) if case.guided is None else case.guided
    if variant == "batch of two":
        given |= WAYS[attempt](names, given) if case.two is None else case.two
    if "num_inference_steps" in names:
        given.setdefault("num_inference_steps", case.steps)
    if "output_type" in names:
        given.setdefault("output_type", "latent")
    return {name: value for name, value in given.items() if value is not LEFT_OUT}


GUIDERS = ("ClassifierFreeGuidance", "BaseGuidance")
LEFT_OUT = object()
"""An argument of the pool that a pipeline does not get."""


def guidance(names: set[str]) -> dict[str, Any]:
    """The arguments that switch guidance on."""
    name = "true_cfg_scale" if "true_cfg_scale" in names else "guidance_scale"
    return {name: 2.5} if name in names else {}


def two_prompts(_: set[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for two prompts, given as what encoders make of them."""
    return {name: doubled(value) for name, value in given.items() if "prompt" in name or "mask" in name}


def two_images(names: set[str], _: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for two images or videos of one prompt."""
    return {name: 2 for name in ("num_images_per_prompt", "num_videos_per_prompt") if name in names}


def two_of_all(names: set[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for two prompts, each with a picture of its own."""
    pictures = {name: [value, value] for name, value in given.items() if isinstance(value, Image.Image)}
    return two_prompts(names, given) | pictures


WAYS = (two_prompts, two_images, two_of_all)
"""Ways to ask for a batch of two; the first that the pipeline takes without a plan counts."""


def doubled(value: Any) -> Any:
    """A text twice, the second one another; masks and all else as they are, twice."""
    if isinstance(value, torch.Tensor):
        return torch.cat([value, value.roll(1, -1) if value.is_floating_point() else value])
    if isinstance(value, str):
        return [value, value]
    return [*value, *value] if isinstance(value, list) else value


def _names(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def _is_transformer(value: Any) -> bool:
    return isinstance(value, nn.Module) and type(value).__name__ in transformers.SMALL
