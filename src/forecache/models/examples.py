"""The arguments of one call of every diffusers class that forecache knows, from its config, on the meta device.

Where the config does not say how large an image is, or how long a text, it is what the class's pipeline makes by
default. B batch, C channels, F frames, H and W height and width, N tokens of the image, M tokens of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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


def example_of(model: nn.Module) -> Example | None:
    """The example of a model's class, or of one that it inherits from; None if there is none."""
    kinds = [kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("diffusers.")]
    return next((EXAMPLES[kind] for kind in kinds if kind in EXAMPLES), None)


def _empty(model: Any, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=model.dtype, device="meta")


def _whole(*shape: int) -> Tensor:
    """Whole numbers: classes, or the mask of a text."""
    return torch.ones(shape, dtype=torch.long, device="meta")


def _times(model: Any, batch: int) -> dict[str, Tensor]:
    return {"timestep": torch.empty(batch, dtype=torch.float32, device="meta")}


def _text(model: Any, batch: int, tokens: int, width: int) -> dict[str, Tensor]:
    return {"encoder_hidden_states": _empty(model, batch, tokens, width)}


def _guidance(model: Any, batch: int) -> dict[str, Tensor]:
    """The scale of a model that was distilled from guided samples."""
    return {"guidance": torch.empty(batch, device="meta")} if model.config.guidance_embeds else {}


def _image(model: Any, at: Latents) -> dict[str, Tensor]:
    """The latents of images, (B, C, H, W)."""
    return {"hidden_states": _empty(model, at.batch, model.config.in_channels, at.height, at.width)}


def _video(model: Any, at: Latents) -> dict[str, Tensor]:
    """The latents of videos, (B, C, F, H, W)."""
    return {"hidden_states": _empty(model, at.batch, model.config.in_channels, at.frames, at.height, at.width)}


def _rotary(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.empty(tokens, width, device="meta"), torch.empty(tokens, width, device="meta")


def _dit(model: Any, at: Latents) -> Mapping[str, Any]:
    times = torch.zeros(at.batch, dtype=torch.long, device="meta")
    return {**_image(model, at), "timestep": times, "class_labels": _whole(at.batch)}


def _pixart(model: Any, at: Latents) -> Mapping[str, Any]:
    sizes = {"resolution": _empty(model, at.batch, 2), "aspect_ratio": _empty(model, at.batch, 1)}
    tokens = 300 if model.config.sample_size > 64 and not model.use_additional_conditions else 120
    return {
        **_image(model, at),
        **_text(model, at.batch, tokens, model.config.caption_channels or model.config.cross_attention_dim),
        "timestep": torch.zeros(at.batch, dtype=torch.long, device="meta"),
        "added_cond_kwargs": sizes if model.use_additional_conditions else dict.fromkeys(sizes),
        "encoder_attention_mask": _empty(model, at.batch, tokens),
    }


def _sd3(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    return {
        **_image(model, at),
        **_text(model, at.batch, 77 + 256, config.joint_attention_dim),
        **_times(model, at.batch),
        "pooled_projections": _empty(model, at.batch, config.pooled_projection_dim),
    }


def _flux(model: Any, at: Latents) -> Mapping[str, Any]:
    config, tokens_N = model.config, at.height * at.width
    return {
        "hidden_states": _empty(model, at.batch, tokens_N, config.in_channels),
        **_text(model, at.batch, 512, config.joint_attention_dim),
        **_times(model, at.batch),
        **_guidance(model, at.batch),
        "pooled_projections": _empty(model, at.batch, config.pooled_projection_dim),
        "img_ids": torch.empty(tokens_N, 3, device="meta"),
        "txt_ids": torch.empty(512, 3, device="meta"),
    }


def _flux2(model: Any, at: Latents) -> Mapping[str, Any]:
    config, tokens_N = model.config, at.height * at.width
    return {
        "hidden_states": _empty(model, at.batch, tokens_N, config.in_channels),
        **_text(model, at.batch, 512, config.joint_attention_dim),
        **_times(model, at.batch),
        **_guidance(model, at.batch),
        "img_ids": torch.empty(at.batch, tokens_N, 4, device="meta"),
        "txt_ids": torch.empty(at.batch, 512, 4, device="meta"),
    }


def _qwen(model: Any, at: Latents) -> Mapping[str, Any]:
    return {
        "hidden_states": _empty(model, at.batch, at.height * at.width, model.config.in_channels),
        **_text(model, at.batch, 512, model.config.joint_attention_dim),
        **_times(model, at.batch),
        "img_shapes": [[(1, at.height, at.width)]] * at.batch,
    }


def _wan(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    picture = {}
    if config.image_dim is not None:
        picture = {"encoder_hidden_states_image": _empty(model, at.batch, 257, config.image_dim)}
    return {**_video(model, at), **_text(model, at.batch, 512, config.text_dim), **_times(model, at.batch), **picture}


def _z_image(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    images = [_empty(model, config.in_channels, 1, at.height, at.width) for _ in range(at.batch)]
    tokens_M = min(512, config.axes_lens[0] // 2)  # the rotary embedding has positions for so many
    texts = [_empty(model, tokens_M, config.cap_feat_dim) for _ in range(at.batch)]
    return {"x": images, "t": torch.empty(at.batch, device="meta"), "cap_feats": texts}


def _sana(model: Any, at: Latents) -> Mapping[str, Any]:
    return {
        **_image(model, at),
        **_text(model, at.batch, 300, model.config.caption_channels),
        **_times(model, at.batch),
        **_guidance(model, at.batch),
        "encoder_attention_mask": _whole(at.batch, 300),
    }


def _lumina2(model: Any, at: Latents) -> Mapping[str, Any]:
    tokens_M = min(256, model.config.axes_lens[0] - 1)  # the rotary embedding has positions for so many
    return {
        **_image(model, at),
        **_text(model, at.batch, tokens_M, model.config.cap_feat_dim),
        **_times(model, at.batch),
        "encoder_attention_mask": _whole(at.batch, tokens_M),
    }


def _aura_flow(model: Any, at: Latents) -> Mapping[str, Any]:
    text = _text(model, at.batch, 256, model.config.joint_attention_dim)
    return {**_image(model, at), **text, **_times(model, at.batch)}


def _hunyuan_dit(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    width = config.attention_head_dim
    more: dict[str, Tensor] = {}
    if config.use_style_cond_and_image_meta_size:
        more = {"image_meta_size": _empty(model, at.batch, 6), "style": torch.zeros_like(_whole(at.batch))}
    return {
        **_image(model, at),
        **_text(model, at.batch, config.text_len, config.cross_attention_dim),
        **_times(model, at.batch),
        "text_embedding_mask": _whole(at.batch, config.text_len),
        "encoder_hidden_states_t5": _empty(model, at.batch, config.text_len_t5, config.cross_attention_dim_t5),
        "text_embedding_mask_t5": _whole(at.batch, config.text_len_t5),
        "image_rotary_emb": _rotary(at.height // config.patch_size * (at.width // config.patch_size), width),
        **more,
    }


def _cogvideox(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    tokens_N = at.frames * (at.height // config.patch_size) * (at.width // config.patch_size)
    more: dict[str, Any] = {}
    if config.use_rotary_positional_embeddings:
        more["image_rotary_emb"] = _rotary(tokens_N // (config.patch_size_t or 1), config.attention_head_dim)
    if config.ofs_embed_dim is not None:
        more["ofs"] = torch.empty(1, device="meta")
    shape = at.batch, at.frames, config.in_channels, at.height, at.width
    text = _text(model, at.batch, config.max_text_seq_length, config.text_embed_dim)
    return {"hidden_states": _empty(model, *shape), **text, **_times(model, at.batch), **more}


def _hunyuan_video(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    return {
        **_video(model, at),
        **_text(model, at.batch, 256, config.text_embed_dim),
        **_times(model, at.batch),
        **_guidance(model, at.batch),
        "encoder_attention_mask": _whole(at.batch, 256),
        "pooled_projections": _empty(model, at.batch, config.pooled_projection_dim),
    }


def _hunyuan_video_15(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    return {
        **_video(model, at),
        **_text(model, at.batch, 1000, config.text_embed_dim),
        "timestep": _empty(model, at.batch),
        "encoder_attention_mask": _whole(at.batch, 1000),
        "encoder_hidden_states_2": _empty(model, at.batch, 256, config.text_embed_2_dim),
        "encoder_attention_mask_2": _whole(at.batch, 256),
        "image_embeds": _empty(model, at.batch, 729, config.image_embed_dim),
    }


def _chroma(model: Any, at: Latents) -> Mapping[str, Any]:
    tokens_N = at.height * at.width
    return {
        "hidden_states": _empty(model, at.batch, tokens_N, model.config.in_channels),
        **_text(model, at.batch, 512, model.config.joint_attention_dim),
        **_times(model, at.batch),
        "img_ids": torch.empty(tokens_N, 3, device="meta"),
        "txt_ids": torch.empty(512, 3, device="meta"),
        "attention_mask": _empty(model, at.batch, 512 + tokens_N),
    }


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
    return {
        **_image(model, at),
        "timesteps": torch.empty(at.batch, device="meta"),
        "encoder_hidden_states_t5": _empty(model, at.batch, 128, t5_channels),
        "encoder_hidden_states_llama3": _empty(model, layers, at.batch, 128, llama_channels),
        "pooled_embeds": _empty(model, at.batch, config.text_emb_dim),
    }


def _hidream_patches(model: Any, latents: Tensor) -> tuple[Any, ...]:
    tokens, masks, _, ids = type(model).patchify(model, latents)
    rows, columns = (side // model.config.patch_size for side in latents.shape[2:])
    return tokens, masks, [(rows, columns)] * len(latents), ids


def _hidream_experts(mixture: Any, x_ND: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    return torch.stack([expert(x_ND) for expert in mixture.experts[: mixture.num_activated_experts]]).sum(0)


def _ltx(model: Any, at: Latents) -> Mapping[str, Any]:
    config, tokens_N = model.config, at.frames * at.height * at.width
    return {
        "hidden_states": _empty(model, at.batch, tokens_N, config.in_channels),
        **_text(model, at.batch, 128, config.caption_channels),
        **_times(model, at.batch),
        "encoder_attention_mask": _whole(at.batch, 128),
        "num_frames": at.frames,
        "height": at.height,
        "width": at.width,
    }


def _mochi(model: Any, at: Latents) -> Mapping[str, Any]:
    """The rotary embedding of a copy without data is made without autocast, which knows no meta device."""
    if model.device.type == "meta":
        model.rope._create_rope = _mochi_rope
    tokens_M = model.config.max_sequence_length
    return {
        **_video(model, at),
        **_text(model, at.batch, tokens_M, model.config.text_embed_dim),
        **_times(model, at.batch),
        "encoder_attention_mask": _whole(at.batch, tokens_M).bool(),
    }


def _mochi_rope(frequencies: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    angles = torch.einsum("nd,dhf->nhf", positions.float(), frequencies.float())
    return angles.cos(), angles.sin()


def _latte(model: Any, at: Latents) -> Mapping[str, Any]:
    return {
        **_video(model, at),
        **_text(model, at.batch, 120, model.config.caption_channels),
        **_times(model, at.batch),
    }


def _stable_audio(model: Any, at: Latents) -> Mapping[str, Any]:
    config = model.config
    return {
        "hidden_states": _empty(model, at.batch, config.in_channels, at.width),
        **_text(model, at.batch, 128 + 2, config.cross_attention_input_dim),
        **_times(model, at.batch),
        "global_hidden_states": _empty(model, at.batch, 1, config.global_states_input_dim),
        "rotary_embedding": _rotary(at.width + 1, config.attention_head_dim // 2),
    }


def _square(model: Any) -> tuple[int, int, int]:
    """The size that the config names."""
    return 1, model.config.sample_size, model.config.sample_size


def _fixed(frames: int, height: int, width: int) -> Callable[[Any], tuple[int, int, int]]:
    return lambda _: (frames, height, width)


def _wan_scale(model: Any) -> Scale:
    """Wan 2.2 5B, by its 48 channels, has another autoencoder than the others."""
    return Scale(16, 4) if model.config.in_channels == 48 else Scale(8, 4)


def _wan_size(model: Any) -> tuple[int, int, int]:
    """81 frames of 480 x 832, or the most that its rotary embedding has positions for."""
    side, most = _wan_scale(model).pixels, 2 * model.config.rope_max_seq_len
    return min(21, most // 2), min(480 // side, most), min(832 // side, most)


def _cogvideox_size(model: Any) -> tuple[int, int, int]:
    config = model.config
    frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
    frames += -frames % (config.patch_size_t or 1)
    return frames, config.sample_height, config.sample_width


EXAMPLES: Mapping[str, Example] = {
    "DiTTransformer2DModel": Example(_dit, _square),
    "PixArtTransformer2DModel": Example(_pixart, _square),
    "SD3Transformer2DModel": Example(_sd3, _square),
    # two latents a side are packed into one token
    "FluxTransformer2DModel": Example(_flux, _fixed(1, 64, 64), lambda _: Scale(16), guided=False),
    "Flux2Transformer2DModel": Example(_flux2, _fixed(1, 64, 64), lambda _: Scale(16), guided=False),
    "QwenImageTransformer2DModel": Example(_qwen, _fixed(1, 64, 64), lambda _: Scale(16)),
    "WanTransformer3DModel": Example(_wan, _wan_size, _wan_scale),
    "ZImageTransformer2DModel": Example(_z_image, _fixed(1, 128, 128)),
    "SanaTransformer2DModel": Example(_sana, _square, lambda _: Scale(32)),
    "Lumina2Transformer2DModel": Example(_lumina2, _square),
    "AuraFlowTransformer2DModel": Example(_aura_flow, _square),
    "HunyuanDiT2DModel": Example(_hunyuan_dit, _square),
    "CogVideoXTransformer3DModel": Example(
        _cogvideox, _cogvideox_size, lambda model: Scale(8, model.config.temporal_compression_ratio)
    ),
    "HunyuanVideoTransformer3DModel": Example(_hunyuan_video, _fixed(33, 90, 160), lambda _: Scale(8, 4), guided=False),
    "HunyuanVideo15Transformer3DModel": Example(_hunyuan_video_15, _fixed(31, 30, 53), lambda _: Scale(16, 4)),
    "ChromaTransformer2DModel": Example(_chroma, _fixed(1, 64, 64), lambda _: Scale(16)),
    "HiDreamImageTransformer2DModel": Example(_hidream, _fixed(1, 128, 128)),
    "LTXVideoTransformer3DModel": Example(_ltx, _fixed(21, 16, 22), lambda _: Scale(32, 8)),
    "MochiTransformer3DModel": Example(_mochi, _fixed(4, 60, 106), lambda _: Scale(8, 6)),
    "LatteTransformer3DModel": Example(
        _latte, lambda model: (model.config.video_length, model.config.sample_size, model.config.sample_size)
    ),
    "StableAudioDiTModel": Example(_stable_audio, _square),
}
"""By class. Frames, height and width are of the latents."""
