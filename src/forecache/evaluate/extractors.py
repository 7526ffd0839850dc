"""Extractors: networks that say what is in an image, in layers by name.

inception   pool (2048), spatial (2023), logits (1008): the network of FID, sFID, IS, precision and recall
clip        pool: CLIP's image features, of which a Fréchet distance is often called CLIP-FID
digits      pool (128), spatial (252), logits (10): the MNIST classifier that comes with the digits model

B images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forecache.errors import InputError
from forecache.evaluate.clip import USUAL, load_clip
from forecache.evaluate.inception import SPATIAL_CHANNELS, Inception

if TYPE_CHECKING:
    from forecache.zoo.classifier import DigitClassifier

NAMES = ("inception", "digits", "clip")


@dataclass(frozen=True)
class Extractor:
    """of: images uint8 (B, 3, H, W) -> {layer: (B, F)}. name: says network and weights; only features of one name are
    compared. layers: what `of` gives.
    """

    name: str
    layers: tuple[str, ...]
    of: Callable[[Tensor], dict[str, Tensor]]


def load_extractor(name: str, weights: str | Path | None = None, device: str = "cpu") -> Extractor:
    """The extractor of this name. weights: for inception, the file that is downloaded without it; for clip, a
    repository on the hub or a folder.
    """
    if name == "inception":
        inception = Inception(weights, device)
        return Extractor(inception.name, ("pool", "spatial", "logits"), inception)
    if name == "clip":
        clip = load_clip(str(weights or USUAL), device)
        return Extractor(f"clip {clip.name}", ("pool",), lambda images: {"pool": clip.features(images)})
    if name == "digits":
        if weights is not None:
            raise InputError("The digits extractor comes with its weights: leave them out.")
        from forecache.zoo.digits import load_classifier

        return digits_extractor(load_classifier().to(device), device)
    raise InputError(f"There are the extractors {', '.join(NAMES)}; {name!r} was asked for.")


def digits_extractor(model: DigitClassifier, device: str = "cpu") -> Extractor:
    """What the classifier that judges digits sees: the spatial layer is 7 of the 64 channels of its 6 x 6 stage."""
    from forecache.zoo.mnist import SIZE

    @torch.no_grad()
    def of(images: Tensor) -> dict[str, Tensor]:
        if tuple(images.shape[-2:]) != (SIZE, SIZE) or bool((images != images[:, :1]).any()):
            raise InputError(
                f"The digits extractor judges grey images of {SIZE} x {SIZE} pixels; these are {images.shape[-2]} x "
                f"{images.shape[-1]}, or have colours."
            )
        x = images[:, :1].to(device).float() / 127.5 - 1
        spatial = model.stages[:2](x)[:, :SPATIAL_CHANNELS].flatten(1)
        pool = model.features(x)
        return {"pool": pool, "spatial": spatial, "logits": model.head(pool)}

    return Extractor("digits", ("pool", "spatial", "logits"), of)
