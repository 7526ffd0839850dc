"""Features of a set of images, their moments, and their file.

B images, F dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from forecache.errors import InputError
from forecache.evaluate.extractors import Extractor
from forecache.evaluate.frechet import Moments, Stream
from forecache.evaluate.imagesets import ImageSet
from forecache.io import tensor_files
from forecache.io.document import Document, refusing
from forecache.io.text import short

DOCUMENT = Document("forecache-features", 2)
TYPES = {"extractor": str, "count": int}
MAX_BYTES = 64 * 2**30

OnImages = Callable[[int], None]
"""Called with the number of images done so far."""


@dataclass(frozen=True)
class Features:
    """Features of one set of images.

    extractor: name of the extractor
    count: number of images, B
    layers: features by layer, (B, F) float32
    streamed: moments of further layers, whose features were not kept
    """

    extractor: str
    count: int
    layers: Mapping[str, Tensor]
    streamed: Mapping[str, Moments] = field(default_factory=dict)
    _moments: dict[str, Moments] = field(default_factory=dict, repr=False, compare=False)

    def layer(self, name: str) -> Tensor:
        """The features (B, F) of a layer; InputError if there are none."""
        if name not in self.layers:
            raise InputError(f"Features {name!r} of {self.extractor} are needed; there are {self._names()}.")
        return self.layers[name]

    def moments(self, name: str) -> Moments:
        """The moments of a layer, which are computed once."""
        if name in self.streamed:
            return self.streamed[name]
        if name not in self._moments:
            self._moments[name] = Moments.of(self.layer(name))
        return self._moments[name]

    def has(self, name: str, *, kept: bool) -> bool:
        """Whether a layer is known: its features if ``kept``, else at least its moments."""
        return name in self.layers or (not kept and name in self.streamed)

    def save(self, path: str | Path) -> None:
        """Write the layers atomically as safetensors, for `load`."""
        layers = {name: layer_BF.contiguous().cpu() for name, layer_BF in self.layers.items()}
        tensor_files.write(Path(path), DOCUMENT, {"extractor": self.extractor, "count": self.count}, layers)

    @classmethod
    def load(cls, path: str | Path) -> Features:
        """Read saved features; InputError for a file that is damaged or something else."""
        with refusing(Path(path), InputError, "file of features", "Make it with forecache evaluate --save-features"):
            values, layers = tensor_files.read(Path(path), DOCUMENT, TYPES, MAX_BYTES)
            for name, layer_BF in layers.items():
                rows = layer_BF.dtype is torch.float32 and layer_BF.ndim == 2 and len(layer_BF) == values["count"]
                if not rows or not bool(layer_BF.isfinite().all()):
                    raise ValueError(f"{short(name)} is not {values['count']} rows of finite numbers in float32")
            return cls(values["extractor"], values["count"], layers)

    def _names(self) -> str:
        kept = [*self.layers, *(f"moments of {name}" for name in self.streamed)]
        return ", ".join(kept) or "none"


def extract(
    images: ImageSet,
    extractor: Extractor,
    keep: Sequence[str],
    *,
    stream: Sequence[str] = (),
    batch: int = 64,
    on_images: OnImages | None = None,
) -> Features:
    """Features of every image, in one pass.

    keep: layers whose features are returned, in float32
    stream: layers whose moments are enough
    batch: images in a call of the extractor
    on_images: called with the number of images done

    Raises InputError for a layer that the extractor does not have, or an image with NaN or infinite features.
    """
    if lacking := [name for name in (*keep, *stream) if name not in extractor.layers]:
        raise InputError(
            f"The extractor {extractor.name} has the features {', '.join(extractor.layers)}, but no {lacking[0]!r}."
        )
    if batch < 1:
        raise InputError(f"A batch has at least 1 image; {batch} was asked for.")
    held: dict[str, Tensor] = {}
    streams = {name: Stream() for name in stream if name not in keep}
    done = 0
    for part in images.batches(batch):
        output = extractor.of(part)
        for name in (*keep, *streams):
            features = output[name].float().cpu()
            _check(features, images, done)
            if name in streams:
                streams[name].add(features)
                continue
            if name not in held:
                held[name] = torch.empty(len(images), features.shape[1])
            held[name][done : done + len(part)] = features
        done += len(part)
        if on_images is not None:
            on_images(done)
    return Features(extractor.name, done, held, {name: moments.moments() for name, moments in streams.items()})


def _check(features: Tensor, images: ImageSet, first: int) -> None:
    bad = ~features.isfinite().all(1)
    if bool(bad.any()):
        which = images.which(first + int(bad.nonzero()[0, 0]))
        raise InputError(f"The features of {which} have NaN or infinite entries: the image or the weights are broken.")
