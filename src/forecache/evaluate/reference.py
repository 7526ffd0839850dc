"""Reference distributions: moments in ADM's ``.npz``, images, features in a file, or those registered by name.

F dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forecache.errors import InputError
from forecache.evaluate.extractors import Extractor
from forecache.evaluate.features import Features, OnImages, extract
from forecache.evaluate.frechet import Moments
from forecache.evaluate.imagesets import ImageSet, npz_names, open_images
from forecache.io import npz

ADM_KEYS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclass(frozen=True)
class Reference:
    """A distribution of real images to compare with.

    name: of the file, or the registered name
    moments: by layer, as a file has them
    features: None if not extracted yet
    images: None if the reference consists of statistics

    `prepared` adds the features that an evaluation needs, so that a table extracts them once.
    """

    name: str
    moments: Mapping[str, Moments] = field(default_factory=dict)
    features: Features | None = None
    images: ImageSet | None = None

    def of(self, layer: str) -> Moments:
        """The moments of a layer; InputError if the reference has none."""
        if layer in self.moments:
            return self.moments[layer]
        if self.features is not None and self.features.has(layer, kept=False):
            return self.features.moments(layer)
        raise InputError(f"The reference {self.name} has no moments of the features {layer!r}.")

    def has(self, layer: str, *, kept: bool) -> bool:
        """Whether a layer is known: its features if ``kept``, else at least its moments."""
        return (not kept and layer in self.moments) or (
            self.features is not None and self.features.has(layer, kept=kept)
        )


def prepared(
    reference: Reference,
    extractor: Extractor,
    keep: Sequence[str],
    *,
    stream: Sequence[str] = (),
    batch: int = 64,
    on_images: OnImages | None = None,
) -> Reference:
    """The reference with features of the layers ``keep`` and moments of ``stream``; missing ones are extracted."""
    keep = [name for name in keep if not reference.has(name, kept=True)]
    stream = [name for name in stream if not (name in keep or reference.has(name, kept=False))]
    known = reference.features
    if known is not None and known.extractor != extractor.name:
        raise InputError(f"The features of {reference.name} are those of {known.extractor}, not of {extractor.name}.")
    if not keep and not stream:
        return reference
    if reference.images is None:
        what = f"features {keep[0]!r}" if keep else f"moments of the features {stream[0]!r}"
        raise InputError(f"The reference {reference.name} has no {what}, and no images to take them from.")
    features = extract(reference.images, extractor, keep, stream=stream, batch=batch, on_images=on_images)
    if known is not None:
        layers, streamed = {**known.layers, **features.layers}, {**known.streamed, **features.streamed}
        features = replace(features, layers=layers, streamed=streamed)
    return replace(reference, features=features)


_OPENERS: dict[str, Callable[[], Reference]] = {}


def register_reference(name: str, opener: Callable[[], Reference]) -> None:
    """Make a reference available by name to `open_reference`; a second one replaces the first."""
    _OPENERS[name] = opener


def reference_names() -> tuple[str, ...]:
    """The names that `open_reference` takes besides paths."""
    return tuple(_OPENERS)


def open_reference(path: str | Path) -> Reference:
    """The reference at a path, or a registered one by its name (`reference_names`).

    A path is a folder of images, an ``.npz`` of the ADM suite (statistics ``mu``, ``sigma``, ``mu_s``, ``sigma_s``,
    images ``arr_0``, or both), or saved features (``.safetensors``). Raises InputError if it cannot be read.
    """
    if str(path) in _OPENERS:
        return _OPENERS[str(path)]()
    path = Path(path)
    if path.suffix == ".safetensors":
        return Reference(str(path), features=Features.load(path))
    if path.suffix == ".npz" and path.exists():
        names = npz_names(path)
        if "mu" in names:
            return Reference(str(path), _adm(path, names), images=open_images(path) if "arr_0" in names else None)
    return Reference(str(path), images=open_images(path))


def _adm(path: Path, names: set[str]) -> dict[str, Moments]:
    try:
        with npz.opened(path) as file:
            arrays = {key: npz.array(file, key) for keys in ADM_KEYS.values() for key in keys if key in names}
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged: {error}.") from error
    return {
        layer: Moments(None, _checked(path, arrays, mean, 1), _checked(path, arrays, covariance, 2))
        for layer, (mean, covariance) in ADM_KEYS.items()
        if mean in arrays and _belong(path, arrays, mean, covariance)
    }


def _belong(path: Path, arrays: Mapping[str, Any], mean: str, covariance: str) -> bool:
    if covariance not in arrays or arrays[covariance].shape != (len(arrays[mean]),) * 2:
        shape = arrays[covariance].shape if covariance in arrays else "missing"
        raise InputError(f"{covariance} of {path} does not belong to {mean} {arrays[mean].shape}: it is {shape}.")
    return True


def _checked(path: Path, arrays: Mapping[str, Any], key: str, dimensions: int) -> torch.Tensor:
    values = arrays[key]
    if values.ndim != dimensions or values.dtype.kind != "f":
        raise InputError(f"{key} of {path} is {values.dtype} {values.shape}: it is not a statistic of features.")
    if not np.isfinite(values).all():
        raise InputError(f"{key} of {path} has NaN or infinite entries.")
    return torch.from_numpy(values.astype(np.float64))
