"""The identity as a VAE, for transformers that generate pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

if TYPE_CHECKING:
    from torch import Tensor


class Pixels(ModelMixin, ConfigMixin):
    """The identity with the interface of a diffusers VAE: latents are the pixels of the image."""

    @register_to_config
    def __init__(self, block_out_channels: tuple[int, ...] = (1,), scaling_factor: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("place", torch.empty(0), persistent=False)  # gives the module a device and a dtype

    def decode(self, z: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """The pixels (B, C, H, W) in [-1, 1], unchanged."""
        assert not return_dict
        return (z,)
