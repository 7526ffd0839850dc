"""Calls of the classes that make videos, and of one that makes sound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from forecache.models.examples.example import Example, Latents, Scale
from forecache.models.examples.inputs import empty, fixed, guidance, rotary, square, text, times, video_latents, whole


def _wan(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    picture = {}
    if config.image_dim is not None:
        picture = {"encoder_hidden_states_image": empty(model, at.batch, 257, config.image_dim)}
    return {
        **video_latents(model, at),
        **text(model, at.batch, 512, config.text_dim),
        **times(model, at.batch),
        **picture,
    }


def _cogvideox(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    tokens_N = at.frames * (at.height // config.patch_size) * (at.width // config.patch_size)
    more: dict[str, Any] = {}
    if config.use_rotary_positional_embeddings:
        more["image_rotary_emb"] = rotary(tokens_N // (config.patch_size_t or 1), config.attention_head_dim)
    if config.ofs_embed_dim is not None:
        more["ofs"] = torch.empty(1, device="meta")
    shape = at.batch, at.frames, config.in_channels, at.height, at.width
    caption = text(model, at.batch, config.max_text_seq_length, config.text_embed_dim)
    return {"hidden_states": empty(model, *shape), **caption, **times(model, at.batch), **more}


def _hunyuan_video(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    return {
        **video_latents(model, at),
        **text(model, at.batch, 256, config.text_embed_dim),
        **times(model, at.batch),
        **guidance(model, at.batch),
        "encoder_attention_mask": whole(at.batch, 256),
        "pooled_projections": empty(model, at.batch, config.pooled_projection_dim),
    }


def _hunyuan_video_15(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    return {
        **video_latents(model, at),
        **text(model, at.batch, 1000, config.text_embed_dim),
        "timestep": empty(model, at.batch),
        "encoder_attention_mask": whole(at.batch, 1000),
        "encoder_hidden_states_2": empty(model, at.batch, 256, config.text_embed_2_dim),
        "encoder_attention_mask_2": whole(at.batch, 256),
        "image_embeds": empty(model, at.batch, 729, config.image_embed_dim),
    }


def _ltx(model: Any, at: Latents) -> Mapping[str, Any]:
    config, tokens_N = model.config, at.frames * at.height * at.width
    return {
        "hidden_states": empty(model, at.batch, tokens_N, config.in_channels),
        **text(model, at.batch, 128, config.caption_channels),
        **times(model, at.batch),
        "encoder_attention_mask": whole(at.batch, 128),
        "num_frames": at.frames,
        "height": at.height,
        "width": at.width,
    }


def _ltx2(model: Any, at: Latents) -> Mapping[str, Any]:
    """The audio has 25 latents a second, of a video of 24 frames a second."""
    config, tokens_N = model.config, at.frames * at.height * at.width
    audio_N = round(((at.frames - 1) * 8 + 1) * 25 / 24)
    if config.use_prompt_embeddings:
        widths = config.caption_channels, config.caption_channels
    else:
        widths = config.cross_attention_dim, config.audio_cross_attention_dim
    return {
        "hidden_states": empty(model, at.batch, tokens_N, config.in_channels),
        "audio_hidden_states": empty(model, at.batch, audio_N, config.audio_in_channels),
        **text(model, at.batch, 1024, widths[0]),
        "audio_encoder_hidden_states": empty(model, at.batch, 1024, widths[1]),
        **times(model, at.batch),
        "sigma": times(model, at.batch)["timestep"],
        "encoder_attention_mask": whole(at.batch, 1024),
        "audio_encoder_attention_mask": whole(at.batch, 1024),
        "num_frames": at.frames,
        "height": at.height,
        "width": at.width,
        "audio_num_frames": audio_N,
    }


def _cosmos(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    projects = config.use_crossattn_projection
    texts = text(model, at.batch, 512, config.crossattn_proj_in_channels if projects else config.text_embed_dim)
    if config.img_context_dim_in:
        image = empty(model, at.batch, config.img_context_num_tokens, config.img_context_dim_in)
        texts = {"encoder_hidden_states": (texts["encoder_hidden_states"], image)}
    padding = {"padding_mask": empty(model, 1, 1, at.height, at.width)} if config.concat_padding_mask else {}
    return {**video_latents(model, at), **texts, **times(model, at.batch), **padding}


def _sana_video(model: Any, at: Latents) -> Mapping[str, Any]:
    return {
        **video_latents(model, at),
        **text(model, at.batch, 300, model.config.caption_channels),
        **times(model, at.batch),
        **guidance(model, at.batch),
        "encoder_attention_mask": whole(at.batch, 300),
    }


def _mochi(model: Any, at: Latents) -> Mapping[str, Any]:
    """The rotary embedding of a copy without data is made without autocast, which knows no meta device."""
    if model.device.type == "meta":
        model.rope._create_rope = _mochi_rope
    tokens_M = model.config.max_sequence_length
    return {
        **video_latents(model, at),
        **text(model, at.batch, tokens_M, model.config.text_embed_dim),
        **times(model, at.batch),
        "encoder_attention_mask": whole(at.batch, tokens_M).bool(),
    }


def _mochi_rope(frequencies: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    angles = torch.einsum("nd,dhf->nhf", positions.float(), frequencies.float())
    return angles.cos(), angles.sin()


def _latte(model: Any, at: Latents) -> Mapping[str, Any]:
    return {
        **video_latents(model, at),
        **text(model, at.batch, 120, model.config.caption_channels),
        **times(model, at.batch),
    }


def _stable_audio(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    return {
        "hidden_states": empty(model, at.batch, config.in_channels, at.width),
        **text(model, at.batch, 128 + 2, config.cross_attention_input_dim),
        **times(model, at.batch),
        "global_hidden_states": empty(model, at.batch, 1, config.global_states_input_dim),
        "rotary_embedding": rotary(at.width + 1, config.attention_head_dim // 2),
    }


def _wan_scale(model: Any) -> Scale:
    """Wan 2.2 5B, by its 48 channels, has another autoencoder than the others."""
    return Scale(16, 4) if model.config.in_channels == 48 else Scale(8, 4)


def _wan_size(model: Any) -> tuple[int, int, int]:
    """81 frames of 480 x 832, or the most that its rotary embedding has positions for."""
    side, most = _wan_scale(model).pixels, 2 * model.config.rope_max_seq_len
    return min(21, most // 2), min(480 // side, most), min(832 // side, most)


def _is_first_cosmos(model: Any) -> bool:
    return model.config.extra_pos_embed_type is not None


def _cogvideox_size(model: Any) -> tuple[int, int, int]:
    config = model.config
    frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
    frames += -frames % (config.patch_size_t or 1)
    return frames, config.sample_height, config.sample_width


VIDEOS: Mapping[str, Example] = {
    "WanTransformer3DModel": Example(_wan, _wan_size, _wan_scale),
    "CogVideoXTransformer3DModel": Example(
        _cogvideox, _cogvideox_size, lambda model: Scale(8, model.config.temporal_compression_ratio)
    ),
    "HunyuanVideoTransformer3DModel": Example(_hunyuan_video, fixed(33, 90, 160), lambda _: Scale(8, 4), guided=False),
    "HunyuanVideo15Transformer3DModel": Example(_hunyuan_video_15, fixed(31, 30, 53), lambda _: Scale(16, 4)),
    "LTXVideoTransformer3DModel": Example(_ltx, fixed(21, 16, 22), lambda _: Scale(32, 8)),
    "LTX2VideoTransformer3DModel": Example(_ltx2, fixed(16, 16, 24), lambda _: Scale(32, 8)),
    "CosmosTransformer3DModel": Example(
        _cosmos,
        lambda model: (16 if _is_first_cosmos(model) else 24, 88, 160),
        lambda model: Scale(8, 8 if _is_first_cosmos(model) else 4),
    ),
    "SanaVideoTransformer3DModel": Example(_sana_video, fixed(21, 60, 104), lambda _: Scale(8, 4)),
    "MochiTransformer3DModel": Example(_mochi, fixed(4, 60, 106), lambda _: Scale(8, 6)),
    "LatteTransformer3DModel": Example(
        _latte, lambda model: (model.config.video_length, model.config.sample_size, model.config.sample_size)
    ),
    "StableAudioDiTModel": Example(_stable_audio, square),
}
"""By class. Frames, height and width are of the latents."""
