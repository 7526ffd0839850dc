"""One call of a diffusers class: its arguments, and the size of what is sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from forecache.errors import InputError


class Size(NamedTuple):
    """The size of what is sampled; None for the default of its class.

    height, width: in pixels; None for both
    frames: of a video
    """

    height: int | None = None
    width: int | None = None
    frames: int | None = None


class Latents(NamedTuple):
    """The size of the latents of a batch."""

    batch: int
    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Scale:
    """The number of pixels, and of frames, for one latent; ``frames`` of a video are 1 + a multiple of it."""

    pixels: int = 8
    frames: int = 1


@dataclass(frozen=True)
class Example:
    """One call of a diffusers class.

    arguments: (model, size of the latents) -> keyword arguments
    size: model -> frames, height and width of the latents by default
    scale: pixels and frames for a latent
    guided: whether the pipelines of the class sample a guidance pair; not so where the scale is an input of the model
    """

    arguments: Callable[[Any, Latents], Mapping[str, Any]]
    size: Callable[[Any], tuple[int, int, int]]
    scale: Callable[[Any], Scale] = lambda _: Scale()
    guided: bool = True

    def __call__(self, model: Any, batch: int, size: Size = Size()) -> Mapping[str, Any]:  # noqa: B008 - a tuple
        """The arguments for a batch; raises InputError for a size that the class has no latents of."""
        return self.arguments(model, Latents(batch, *self._latents(model, size)))

    def _latents(self, model: Any, size: Size) -> tuple[int, int, int]:
        frames, height, width = self.size(model)
        scale = self.scale(model)
        if size.height is not None and size.width is not None:
            if size.height % scale.pixels or size.width % scale.pixels or min(size.height, size.width) < 1:
                raise InputError(
                    f"{type(model).__name__} has no images of {size.height} x {size.width}: height and width are "
                    f"multiples of {scale.pixels}."
                )
            height, width = size.height // scale.pixels, size.width // scale.pixels
        if size.frames is not None:
            if scale.frames == 1 and frames == 1:
                raise InputError(f"{type(model).__name__} makes images: it takes no number of frames.")
            if size.frames < 1:
                raise InputError(f"A video has at least one frame; frames={size.frames} was given.")
            frames = (size.frames - 1) // scale.frames + 1 if scale.frames > 1 else size.frames
        return frames, height, width
