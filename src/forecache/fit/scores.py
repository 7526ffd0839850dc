"""Scores of patterns, from few samples each; a search ranks patterns by one of them.

psnr_to_uncached()                           closeness to the samples without a cache
frechet(features, reference)                 distance to a reference set, of any features
clip_score(prompts)                          agreement of images with their texts
Score("mine", lambda images, context: ..., better="lower")      anything else

B images, F dimensions of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from forecache.errors import InputError
from forecache.evaluate import Moments, clip, frechet_distance, psnr
from forecache.evaluate.images import EQUAL_DB
from forecache.sampling.sources import Condition, Source

NAMES = ("psnr", "frechet", "clip")
"""The scores of `by_name`."""


@dataclass(frozen=True)
class Context:
    """The data that a score may compare images with.

    conditions: class label or text of each image.
    uncached: the same samples without a cache, (B, C, H, W) in [0, 1]; None if the score does not need them.
    """

    conditions: tuple[int | str, ...]
    uncached: Tensor | None = None


@dataclass(frozen=True)
class Score:
    """A proxy for quality.

    name: in tables and files; it has to name all settings, because it identifies a search.
    of: the score of images (B, C, H, W) in [0, 1] and their context.
    better: which direction is better, "higher" or "lower".
    needs_uncached: whether the context needs the same samples without a cache.
    """

    name: str
    of: Callable[[Tensor, Context], float]
    better: Literal["higher", "lower"] = "higher"
    needs_uncached: bool = False

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise InputError(f"The better score is 'higher' or 'lower', not {self.better!r}.")


def psnr_to_uncached() -> Score:
    """Mean PSNR to the same samples without a cache, in dB, at most 100 dB for an image."""

    def of(images: Tensor, context: Context) -> float:
        assert context.uncached is not None
        return psnr(images, context.uncached).clamp_max(EQUAL_DB).mean().item()

    return Score("PSNR to uncached, dB", of, needs_uncached=True)


def frechet(features: Callable[[Tensor], Tensor], reference: Moments, name: str = "Fréchet distance") -> Score:
    """Fréchet distance of the images' features to a reference.

    features: maps images (B, C, H, W) in [0, 1] to (B, F). reference: `forecache.evaluate.Moments` of the same features
    of real images. name: has to name features and reference. Few samples bias the distance upwards, for all patterns
    alike.
    """
    return Score(name, lambda images, _: frechet_distance(Moments.of(features(images)), reference), better="lower")


def clip_score(prompts: Sequence[str], model: str = clip.USUAL, batch: int = 32) -> Score:
    """CLIP score (arXiv 2104.08718): 100 times the cosine of an image and its prompt, at least 0, mean over images.

    prompts: one for each condition of the search, in order. model: a repository on the hub or a folder, loaded for the
    first score. batch: images in one call of CLIP. Needs the extra ``diffusers``.
    """
    loaded: list[clip.Clip] = []

    def of(images: Tensor, context: Context) -> float:
        if len(prompts) != len(context.conditions):
            raise InputError(f"There are {len(prompts)} prompts for {len(context.conditions)} samples: give one each.")
        if not loaded:
            loaded.append(clip.load_clip(model))
        pixels = (images * 255).round().to(torch.uint8)
        parts = [slice(first, first + batch) for first in range(0, len(images), batch)]
        return torch.cat([loaded[0].score(pixels[part], prompts[part]) for part in parts]).mean().item()

    return Score(f"CLIP score ({model}, {prompts[0]!r}...)", of)


def by_name(name: str, source: Source, conditions: Sequence[Condition]) -> Score:
    """The score ``psnr``, ``frechet`` or ``clip`` for samples of these conditions.

    Raises InputError for a model without what the score needs: ``frechet`` takes a bundled model, which has features
    and a reference; ``clip`` takes a model of prompts, or one whose classes have names.
    """
    match name:
        case "psnr":
            return psnr_to_uncached()
        case "frechet":
            features, reference = getattr(source, "features", None), getattr(source, "reference", None)
            if features is None or reference is None:
                raise InputError(
                    "--proxy frechet needs features and a reference, which only the bundled models have: use --proxy "
                    "psnr, or in Python forecache.search with scores.frechet(features, reference)."
                )
            return frechet(features, reference, f"Fréchet distance to {getattr(source, 'test_set', 'the test set')}")
        case "clip":
            return clip_score(_texts(source, conditions))
    raise InputError(f"There is no score {name!r}; there are {', '.join(NAMES)}.")


def _texts(source: Source, conditions: Sequence[Condition]) -> list[str]:
    """A text for every condition: the prompt itself, or a sentence with the name of the class."""
    if not source.classes:
        return [str(prompt) for prompt in conditions]
    names = {label: name for name, label in getattr(getattr(source, "pipe", None), "labels", {}).items()}
    if unnamed := [label for label in conditions if label not in names]:
        raise InputError(
            f"--proxy clip needs a text for every class, and the model has no name for class {unnamed[0]}: use --proxy "
            "psnr, or in Python forecache.search with scores.clip_score(prompts)."
        )
    return [f"a photo of a {names[label]}" for label in conditions]
