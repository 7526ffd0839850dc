"""Options of a pipeline's call: size, frames, negative prompt, and under which name a pipeline takes its guidance."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from forecache.errors import InputError

FRAMES = ("num_frames", "video_length", "frames")
"""Names of the number of frames in the calls of diffusers' video pipelines; a pipeline has at most one of them."""
GUIDANCE = ("guidance_scale", "true_cfg_scale")
"""Names of the guidance scale. Qwen-Image's is the second: its first, for distilled weights, has no default."""


@dataclass(frozen=True)
class CallOptions:
    """Options of every call of a pipeline; None, the default of all, leaves the pipeline's own.

    height: of the images, in pixels
    width: of the images, in pixels
    frames: number of frames of a video
    negative_prompt: the text that guidance leads away from
    """

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    negative_prompt: str | None = None

    def document(self) -> dict[str, Any]:
        """The options that were given, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def arguments(self, pipe: Any) -> dict[str, Any]:
        """The options as arguments of the pipeline's call. Raises InputError for one that the call does not have."""
        known = parameters(pipe)
        arguments = {frames_name(pipe) or name if name == "frames" else name: value
                     for name, value in self.document().items()}  # fmt: skip
        if unknown := [name for name in arguments if name not in known]:
            words = " and ".join(name.replace("_", " ") for name in unknown)
            raise InputError(
                f"The call of a {type(pipe).__name__} has no {words}: leave it out. It has "
                f"{', '.join(name for name in known if name != 'self')}."
            )
        return arguments


def parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a pipeline's call."""
    return inspect.signature(type(pipe).__call__).parameters


def frames_name(pipe: Any) -> str | None:
    """The name under which a pipeline's call takes the number of frames; None for a pipeline that makes images."""
    return next((name for name in FRAMES if name in parameters(pipe)), None)


def guidance_name(pipe: Any) -> str | None:
    """The name under which a pipeline's call takes its guidance scale; None for a pipeline without one."""
    known = parameters(pipe)
    return next((name for name in GUIDANCE if name in known and known[name].default is not None), None)
