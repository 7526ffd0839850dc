"""Calls of the classes that make images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from forecache.models.examples.example import Example, Latents, Scale
from forecache.models.examples.inputs import empty, fixed, guidance, image_latents, rotary, square, text, times, whole


def _dit(model: Any, at: Latents) -> Mapping[str, Any]:
    times = torch.zeros(at.batch, dtype=torch.long, device="meta")
    return {**image_latents(model, at), "timestep": times, "class_labels": whole(at.batch)}


def _pixart(model: Any, at: Latents) -> Mapping[str, Any]:
    sizes = {"resolution": empty(model, at.batch, 2), "aspect_ratio": empty(model, at.batch, 1)}
    tokens = 300 if model.config.sample_size > 64 and not model.use_additional_conditions else 120
    return {
        **image_latents(model, at),
        **text(model, at.batch, tokens, model.config.caption_channels or model.config.cross_attention_dim),
        "timestep": torch.zeros(at.batch, dtype=torch.long, device="meta"),
        "added_cond_kwargs": sizes if model.use_additional_conditions else dict.fromkeys(sizes),
        "encoder_attention_mask": empty(model, at.batch, tokens),
    }


def _sd3(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    return {
        **image_latents(model, at),
        **text(model, at.batch, 77 + 256, config.joint_attention_dim),
        **times(model, at.batch),
        "pooled_projections": empty(model, at.batch, config.pooled_projection_dim),
    }


def _flux(model: Any, at: Latents) -> Mapping[str, Any]:
    config, tokens_N = model.config, at.height * at.width
    return {
        "hidden_states": empty(model, at.batch, tokens_N, config.in_channels),
        **text(model, at.batch, 512, config.joint_attention_dim),
        **times(model, at.batch),
        **guidance(model, at.batch),
        "pooled_projections": empty(model, at.batch, config.pooled_projection_dim),
        "img_ids": torch.empty(tokens_N, 3, device="meta"),
        "txt_ids": torch.empty(512, 3, device="meta"),
    }


def _flux2(model: Any, at: Latents) -> Mapping[str, Any]:
    config, tokens_N = model.config, at.height * at.width
    return {
        "hidden_states": empty(model, at.batch, tokens_N, config.in_channels),
        **text(model, at.batch, 512, config.joint_attention_dim),
        **times(model, at.batch),
        **guidance(model, at.batch),
        "img_ids": torch.empty(at.batch, tokens_N, 4, device="meta"),
        "txt_ids": torch.empty(at.batch, 512, 4, device="meta"),
    }


def _qwen(model: Any, at: Latents) -> Mapping[str, Any]:
    return {
        "hidden_states": empty(model, at.batch, at.height * at.width, model.config.in_channels),
        **text(model, at.batch, 512, model.config.joint_attention_dim),
        **times(model, at.batch),
        "img_shapes": [[(1, at.height, at.width)]] * at.batch,
    }


def _z_image(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    images = [empty(model, config.in_channels, 1, at.height, at.width) for _ in range(at.batch)]
    tokens_M = min(512, config.axes_lens[0] // 2)  # the rotary embedding has positions for so many
    texts = [empty(model, tokens_M, config.cap_feat_dim) for _ in range(at.batch)]
    return {"x": images, "t": torch.empty(at.batch, device="meta"), "cap_feats": texts}


def _sana(model: Any, at: Latents) -> Mapping[str, Any]:
    return {
        **image_latents(model, at),
        **text(model, at.batch, 300, model.config.caption_channels),
        **times(model, at.batch),
        **guidance(model, at.batch),
        "encoder_attention_mask": whole(at.batch, 300),
    }


def _lumina2(model: Any, at: Latents) -> Mapping[str, Any]:
    tokens_M = min(256, model.config.axes_lens[0] - 1)  # the rotary embedding has positions for so many
    return {
        **image_latents(model, at),
        **text(model, at.batch, tokens_M, model.config.cap_feat_dim),
        **times(model, at.batch),
        "encoder_attention_mask": whole(at.batch, tokens_M),
    }


def _aura_flow(model: Any, at: Latents) -> Mapping[str, Any]:
    caption = text(model, at.batch, 256, model.config.joint_attention_dim)
    return {**image_latents(model, at), **caption, **times(model, at.batch)}


def _hunyuan_dit(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    width = config.attention_head_dim
    more: dict[str, Tensor] = {}
    if config.use_style_cond_and_image_meta_size:
        more = {"image_meta_size": empty(model, at.batch, 6), "style": torch.zeros_like(whole(at.batch))}
    return {
        **image_latents(model, at),
        **text(model, at.batch, config.text_len, config.cross_attention_dim),
        **times(model, at.batch),
        "text_embedding_mask": whole(at.batch, config.text_len),
        "encoder_hidden_states_t5": empty(model, at.batch, config.text_len_t5, config.cross_attention_dim_t5),
        "text_embedding_mask_t5": whole(at.batch, config.text_len_t5),
        "image_rotary_emb": rotary(at.height // config.patch_size * (at.width // config.patch_size), width),
        **more,
    }


def _chroma(model: Any, at: Latents) -> Mapping[str, Any]:
    tokens_N = at.height * at.width
    return {
        "hidden_states": empty(model, at.batch, tokens_N, model.config.in_channels),
        **text(model, at.batch, 512, model.config.joint_attention_dim),
        **times(model, at.batch),
        "img_ids": torch.empty(tokens_N, 3, device="meta"),
        "txt_ids": torch.empty(512, 3, device="meta"),
        "attention_mask": empty(model, at.batch, 512 + tokens_N),
    }


HIDREAM_AREA = 128 * 128
"""Latents of a HiDream image."""


def _hidream(model: Any, at: Latents) -> Mapping[str, Any]:
    """A copy without data computes as many experts as a token takes, and images of the size of the latents."""
    if model.device.type == "meta":
        model.patchify = partial(_hidream_patches, model)
        for module in model.modules():
            if hasattr(module, "moe_infer"):
                module.moe_infer = partial(_hidream_experts, module)
    config = model.config
    t5_channels, llama_channels = config.caption_channels
    layers = max(config.llama_layers) + 1
    share = math.sqrt(HIDREAM_AREA / (at.height * at.width))  # its pipeline samples every size at this area
    scaled = at._replace(height=int(at.height * share // 2 * 2), width=int(at.width * share // 2 * 2))
    return {
        **image_latents(model, scaled),
        "timesteps": torch.empty(at.batch, device="meta"),
        "encoder_hidden_states_t5": empty(model, at.batch, 128, t5_channels),
        "encoder_hidden_states_llama3": empty(model, layers, at.batch, 128, llama_channels),
        "pooled_embeds": empty(model, at.batch, config.text_emb_dim),
    }


def _hidream_patches(model: Any, latents: Tensor) -> tuple[Any, ...]:
    tokens, masks, _, ids = type(model).patchify(model, latents)
    rows, columns = (side // model.config.patch_size for side in latents.shape[2:])
    return tokens, masks, [(rows, columns)] * len(latents), ids


def _hidream_experts(mixture: Any, x_ND: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    return torch.stack([expert(x_ND) for expert in mixture.experts[: mixture.num_activated_experts]]).sum(0)


IMAGES: Mapping[str, Example] = {
    "DiTTransformer2DModel": Example(_dit, square),
    "PixArtTransformer2DModel": Example(_pixart, square),
    "SD3Transformer2DModel": Example(_sd3, square),
    # two latents a side are packed into one token
    "FluxTransformer2DModel": Example(_flux, fixed(1, 64, 64), lambda _: Scale(16), guided=False),
    "Flux2Transformer2DModel": Example(_flux2, fixed(1, 64, 64), lambda _: Scale(16), guided=False),
    "QwenImageTransformer2DModel": Example(_qwen, fixed(1, 64, 64), lambda _: Scale(16)),
    "ZImageTransformer2DModel": Example(_z_image, fixed(1, 128, 128)),
    "SanaTransformer2DModel": Example(_sana, square, lambda _: Scale(32)),
    "Lumina2Transformer2DModel": Example(_lumina2, square),
    "AuraFlowTransformer2DModel": Example(_aura_flow, square),
    "HunyuanDiT2DModel": Example(_hunyuan_dit, square),
    "ChromaTransformer2DModel": Example(_chroma, fixed(1, 64, 64), lambda _: Scale(16)),
    "HiDreamImageTransformer2DModel": Example(_hidream, fixed(1, 128, 128)),
}
"""By class. Frames, height and width are of the latents."""
