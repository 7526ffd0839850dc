"""What pipelines are given: arguments by name, and stand-ins for encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.parts import mask, picture, pooled, stencil, text, video

EMBEDS: dict[str, Any] = {
    "prompt_embeds": text(), "negative_prompt_embeds": text(seed=4), "prompt_attention_mask": mask(),
    "negative_prompt_attention_mask": mask(), "prompt_embeds_mask": mask(), "negative_prompt_embeds_mask": mask(),
    "pooled_prompt_embeds": pooled(), "negative_pooled_prompt_embeds": pooled(seed=5), "negative_prompt": None,
    "use_resolution_binning": False, "_auto_resize": False,
}  # fmt: skip
IMAGE = EMBEDS | {
    "height": 64, "width": 64, "image": picture(), "mask_image": stencil(), "control_image": picture(seed=8),
    "strength": 1.0,
}  # fmt: skip
VIDEO = EMBEDS | {"height": 64, "width": 64, "num_frames": 5, "image": picture(), "video": video()}


def answering(**answers: Callable[..., Any]) -> Callable[[Any], None]:
    """A function that puts these functions in the place of a pipeline's methods, such as `encode_prompt`."""

    def prepare(pipe: Any) -> None:
        vars(pipe).update(answers)

    return prepare


def count(options: Mapping[str, Any], prompt: Any = None) -> int:
    """The number of samples that a pipeline asks an encoder for."""
    per_prompt = next((options[name] for name in options if name.endswith("_per_prompt")), 1) or 1
    return per_prompt * (len(prompt) if isinstance(prompt, (list, tuple)) else 1)


class Answer:
    """A stand-in for an encoder: a function with a dtype."""

    def __init__(self, function: Callable[..., Any], **attributes: Any) -> None:
        self._function = function
        vars(self).update(attributes)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)
