"""digits: a class-conditional pixel-space DiT for MNIST, trained, with a classifier that judges its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from forecache.errors import InputError, MissingExtraError
from forecache.evaluate.extractors import Extractor
from forecache.evaluate.features import Features
from forecache.evaluate.frechet import Moments
from forecache.evaluate.reference import Reference
from forecache.sampling.device import as_dtype
from forecache.sampling.loop import sample, to_images
from forecache.sampling.sources import OnStep, Sampling
from forecache.zoo.classifier import DigitClassifier, digits_extractor
from forecache.zoo.records import ASSETS, Record

FOLDER = ASSETS / "digits"


@dataclass(frozen=True)
class Digits:
    """The model, a `forecache.sampling.sources.Source` for classes, and its judge.

    transformer: a diffusers DiTTransformer2DModel
    scheduler: a DDIMScheduler
    """

    transformer: Any
    scheduler: Any

    classes = 10
    test_set = "MNIST test"

    @property
    def target(self) -> Any:
        """The model itself: it has a transformer and a scheduler, like a pipeline."""
        return self

    def label(self, name: str) -> int:
        """The class of an English numeral; InputError for another word."""
        names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        if name.lower() not in names:
            raise InputError(f"digits has no class {name!r}: use 0 to 9, or {', '.join(names)}.")
        return names.index(name.lower())

    def generate(
        self, labels: Sequence[int], how: Sampling, first_index: int = 0, on_step: OnStep | None = None
    ) -> Tensor:
        """Images (B, 1, 24, 24) in [0, 1] of classes; image i depends on its class, seed and first_index + i alone."""
        pixels = sample(
            self.transformer,
            self.scheduler,
            labels,
            num_steps=how.num_steps,
            guidance=how.guidance,
            seed=how.seed,
            indices=how.indices(first_index, len(labels)),
            on_step=on_step,
        )
        return to_images(pixels)

    @cached_property
    def classifier(self) -> DigitClassifier:
        """The MNIST classifier, float32 on the CPU."""
        return load_classifier()

    @cached_property
    def reference(self) -> Moments:
        """Moments of the classifier's features on the 10,000 MNIST test images."""
        return load_reference()[0]["pool"]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The classifier's features (B, 128) of images (B, 1, 24, 24) in [0, 1]."""
        return torch.cat([self.classifier.features(part * 2 - 1) for part in images.split(500)])

    @torch.no_grad()
    def recognised(self, images: Tensor) -> Tensor:
        """The class (B,) that the classifier recognises in images (B, 1, 24, 24) in [0, 1]."""
        return torch.cat([self.classifier(part * 2 - 1).argmax(1) for part in images.split(500)])


def load_classifier() -> DigitClassifier:
    """The MNIST classifier, float32 on the CPU."""
    model = DigitClassifier()
    model.load_state_dict(load_file(FOLDER / "classifier.safetensors"))
    return model.eval()


def load_reference() -> tuple[dict[str, Moments], Tensor]:
    """The judge's features of the 10,000 MNIST test images.

    Moments of the layers "pool" and "spatial", and the "pool" features (5000, 128) of every second image, in float16
    precision.
    """
    moments = load_file(FOLDER / "reference.safetensors")
    more = load_file(FOLDER / "reference-features.safetensors")
    count = int(moments["count"])
    pool = Moments(count, moments["mean"].double(), moments["covariance"].double())
    spatial = Moments(count, more["spatial_mean"].double(), more["spatial_covariance"].double())
    return {"pool": pool, "spatial": spatial}, more["pool"].float()


def open_extractor(weights: str | Path | None = None, device: str = "cpu") -> Extractor:
    """The classifier as an extractor of `forecache.evaluate`; InputError if weights are given."""
    if weights is not None:
        raise InputError("The digits extractor comes with its weights: leave them out.")
    return digits_extractor(load_classifier().to(device), device)


def open_reference() -> Reference:
    """The MNIST test set in the classifier's features."""
    moments, pool = load_reference()
    return Reference("digits", moments, features=Features("digits", len(pool), {"pool": pool}))


def load_digits(dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Digits:
    """The bundled class-conditional model. Needs the extra ``diffusers``; no network."""
    try:
        from diffusers import DDIMScheduler, DiTTransformer2DModel
    except ImportError as error:
        raise MissingExtraError("diffusers", "diffusers", "The digits model") from error
    transformer: Any = DiTTransformer2DModel.from_pretrained(FOLDER / "transformer", **as_dtype(dtype))
    return Digits(transformer.eval().to(device), DDIMScheduler.from_pretrained(FOLDER / "scheduler"))


RECORD = Record(
    name="digits",
    open=load_digits,
    extractor=open_extractor,
    reference=open_reference,
    metrics=("fid", "sfid", "is", "precision", "recall", "accuracy", "psnr", "ssim", "lpips"),
    classes=Digits.classes,
    guidance=1.5,
    steps=20,
    ask="Digits",
    example="3,1,4,1,5,9",
)
