"""Small parts of pipelines beside the transformer, and what a pipeline is given: texts, pictures, videos.

Every part is of the class that the pipeline names, with random weights. Text encoders and tokenizers are left out:
pipelines are given what these would give, as `prompt_embeds` where they take it, else by an `encode_prompt` of ours.
"""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pipelines.transformers import POOLED, TEXT

TOKENS = 5


def normal(*shape: int, seed: int = 1) -> Tensor:
    """Random numbers that depend on the seed alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(batch: int = 1, seed: int = 1, width: int = TEXT, tokens: int = TOKENS) -> Tensor:
    """The tokens of a text."""
    return normal(1, tokens, width, seed=seed).repeat(batch, 1, 1)


def pooled(batch: int = 1, seed: int = 2, width: int = POOLED) -> Tensor:
    """A text as one vector."""
    return normal(1, width, seed=seed).repeat(batch, 1)


def mask(batch: int = 1, tokens: int = TOKENS) -> Tensor:
    """All tokens are valid."""
    return torch.ones(batch, tokens, dtype=torch.long)


def picture(height: int = 64, width: int = 64, seed: int = 3) -> Image.Image:
    """A random picture."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def stencil(height: int = 64, width: int = 64) -> Image.Image:
    """A mask whose left half is white."""
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[:, : width // 2] = 255
    return Image.fromarray(pixels)


def video(frames: int = 5, height: int = 64, width: int = 64) -> list[Image.Image]:
    """Random pictures."""
    return [picture(height, width, seed=10 + frame) for frame in range(frames)]


WAN_VAE = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
           "temperal_downsample": [False, True, True], "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}  # fmt: skip
FOUR = (4, 4, 4, 4)
KL = {"block_out_channels": FOUR, "down_block_types": ("DownEncoderBlock2D",) * 4, "norm_num_groups": 2,
      "up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": 4, "layers_per_block": 1}  # fmt: skip
HUNYUAN = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 1}
AUTOENCODERS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": KL | {"scaling_factor": 0.5, "shift_factor": 0.1, "sample_size": 64},
    "AutoencoderKLFlux2": KL | {"sample_size": 64},
    "AutoencoderKLWan": WAN_VAE,
    "AutoencoderKLQwenImage": WAN_VAE,
    "AutoencoderKLQwenImage21": WAN_VAE | {
        "decoder_base_dim": 4, "in_channels": 3, "out_channels": 3, "scale_factor_temporal": 4,
        "scale_factor_spatial": 8, "z_dim": 16, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16,
    },
    "AutoencoderKLCogVideoX": {
        "block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2,
        "sample_height": 64, "sample_width": 64,
    },
    "AutoencoderDC": {
        "latent_channels": 4, "attention_head_dim": 4, "encoder_block_out_channels": (4, 8),
        "decoder_block_out_channels": (4, 8), "encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ()),
        "encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock",
    },
    "AutoencoderKLLTXVideo": {
        "latent_channels": 4, "block_out_channels": FOUR, "decoder_block_out_channels": FOUR,
        "layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1, 1),
    },
    "AutoencoderKLLTX2Video": {
        "latent_channels": 4, "block_out_channels": (4, 8, 16, 32), "decoder_block_out_channels": (4, 8, 16),
        "layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1),
    },
    "AutoencoderKLLTX2Audio": {
        "base_channels": 4, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "latent_channels": 2, "mel_bins": 8,
        "resolution": 32,
    },
    "AutoencoderKLHunyuanVideo": {
        "latent_channels": 4, "block_out_channels": FOUR, "layers_per_block": 1, "norm_num_groups": 2,
    },
    "AutoencoderKLHunyuanVideo15": HUNYUAN | {"block_out_channels": (8, 8, 8, 8, 8)},
    "AutoencoderKLHunyuanImage": HUNYUAN | {
        "block_out_channels": (32, 32, 32, 32), "spatial_compression_ratio": 8, "sample_size": 64,
    },
    "AutoencoderKLHunyuanImageRefiner": HUNYUAN | {"block_out_channels": (8, 8, 8, 8, 8)},
    "AutoencoderKLMochi": {
        "latent_channels": 4, "encoder_block_out_channels": FOUR, "decoder_block_out_channels": FOUR,
        "layers_per_block": (1, 1, 1, 1, 1),
        "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4,
    },
    "AutoencoderKLAllegro": {
        "latent_channels": 4, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2,
    },
    "AutoencoderKLMagvit": {
        "latent_channels": 4, "block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 2,
    },
    "AutoencoderKLCosmos": {
        "latent_channels": 4, "encoder_block_out_channels": (8, 8, 8, 8), "decode_block_out_channels": (8, 8, 8, 8),
        "num_layers": 1, "attention_resolutions": (8,), "resolution": 64, "spatial_compression_ratio": 8,
        "temporal_compression_ratio": 4, "latents_mean": None, "latents_std": None,
    },
    "AutoencoderOobleck": {
        "encoder_hidden_size": 4, "decoder_channels": 4, "decoder_input_channels": 4, "audio_channels": 2,
        "downsampling_ratios": [2, 4], "channel_multiples": [1, 2], "sampling_rate": 16,
    },
    "LongCatAudioDiTVae": {
        "channels": 4, "c_mults": [1, 2], "strides": [2, 2], "latent_dim": 4, "encoder_latent_dim": 8,
        "downsampling_ratio": 4, "sample_rate": 24,
    },
    "AutoencoderSAME": {
        "audio_channels": 2, "patch_size": 4, "encoder_channels": 16, "encoder_c_mults": (1,), "encoder_strides": (2,),
        "encoder_transformer_depths": (1,), "latent_dim": 4, "dim_heads": 8, "sampling_rate": 16,
    },
}  # fmt: skip


def autoencoder(kind: str, **changes: Any) -> nn.Module:
    """A small autoencoder of the class."""
    torch.manual_seed(7)
    made = getattr(diffusers, kind)(**{**AUTOENCODERS[kind], **changes})
    return made.float().eval()


SCHEDULERS: dict[str, Any] = {
    "KarrasDiffusionSchedulers": diffusers.DDIMScheduler,
    "CogVideoXDDIMScheduler": diffusers.CogVideoXDDIMScheduler,
    "SchedulerMixin": diffusers.FlowMatchEulerDiscreteScheduler,
}
"""Schedulers where the pipeline's annotation names no class of its own."""
