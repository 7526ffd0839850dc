"""Extractors: networks that say what is in an image, in layers by name.

inception   pool (2048), spatial (2023), logits (1008): the network of FID, sFID, IS, precision and recall
clip        pool: CLIP's image features; the Fréchet distance on them is often called CLIP-FID

`register_extractor` adds others; `forecache.zoo` registers the judges of the bundled models.

B images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from forecache.errors import InputError
from forecache.evaluate.clip import USUAL, load_clip
from forecache.evaluate.inception import Inception


@dataclass(frozen=True)
class Extractor:
    """A network that maps images to features.

    name: network and weights; only features of one name are compared
    layers: the names of the layers that `of` gives
    of: images uint8 (B, 3, H, W) -> {layer: features (B, F)}
    """

    name: str
    layers: tuple[str, ...]
    of: Callable[[Tensor], dict[str, Tensor]]


ExtractorOpener = Callable[[str | Path | None, str], Extractor]
"""Loads an extractor from its weights (None for the usual ones) onto a device."""


def _inception(weights: str | Path | None, device: str) -> Extractor:
    network = Inception(weights, device)
    return Extractor(network.name, ("pool", "spatial", "logits"), network)


def _clip(weights: str | Path | None, device: str) -> Extractor:
    clip = load_clip(str(weights or USUAL), device)
    return Extractor(f"clip {clip.name}", ("pool",), lambda images: {"pool": clip.features(images)})


_OPENERS: dict[str, ExtractorOpener] = {"inception": _inception, "clip": _clip}


def register_extractor(name: str, opener: ExtractorOpener) -> None:
    """Make an extractor available by name to `load_extractor` and the command line; a second one replaces the first."""
    _OPENERS[name] = opener


def extractor_names() -> tuple[str, ...]:
    """The names that `load_extractor` takes."""
    return tuple(_OPENERS)


def load_extractor(name: str, weights: str | Path | None = None, device: str = "cpu") -> Extractor:
    """The extractor of this name, on a device.

    weights: for inception, a file instead of the one that is downloaded; for clip, a repository on the hub or a folder.
    Raises InputError for an unknown name, or weights that cannot be used.
    """
    if name not in _OPENERS:
        raise InputError(f"There is no extractor {name!r}; there are {', '.join(_OPENERS)}.")
    return _OPENERS[name](weights, device)
