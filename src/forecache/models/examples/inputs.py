"""Arguments that many classes share, on the meta device.

B batch, C channels, F frames, H and W height and width, N tokens of the image, M tokens of the text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from forecache.models.examples.example import Latents


def empty(model: Any, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=model.dtype, device="meta")


def whole(*shape: int) -> Tensor:
    """Whole numbers: classes, or the mask of a text."""
    return torch.ones(shape, dtype=torch.long, device="meta")


def times(model: Any, batch: int) -> dict[str, Tensor]:
    return {"timestep": torch.empty(batch, dtype=torch.float32, device="meta")}


def text(model: Any, batch: int, tokens: int, width: int) -> dict[str, Tensor]:
    return {"encoder_hidden_states": empty(model, batch, tokens, width)}


def guidance(model: Any, batch: int) -> dict[str, Tensor]:
    """The scale of a model that was distilled from guided samples."""
    return {"guidance": torch.empty(batch, device="meta")} if model.config.guidance_embeds else {}


def image_latents(model: Any, at: Latents) -> dict[str, Tensor]:
    """The latents of images, (B, C, H, W)."""
    return {"hidden_states": empty(model, at.batch, model.config.in_channels, at.height, at.width)}


def video_latents(model: Any, at: Latents) -> dict[str, Tensor]:
    """The latents of videos, (B, C, F, H, W)."""
    return {"hidden_states": empty(model, at.batch, model.config.in_channels, at.frames, at.height, at.width)}


def rotary(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.empty(tokens, width, device="meta"), torch.empty(tokens, width, device="meta")


def square(model: Any) -> tuple[int, int, int]:
    """The size that the config names."""
    return 1, model.config.sample_size, model.config.sample_size


def fixed(frames: int, height: int, width: int) -> Callable[[Any], tuple[int, int, int]]:
    return lambda _: (frames, height, width)
