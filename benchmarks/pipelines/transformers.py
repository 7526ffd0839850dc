"""diffusers' transformer classes, small: their configurations, and the sites of the hand-written FORA.

Text is 12 wide, a pooled text 10, latents have 4 channels (16 where they are packed 2 x 2), the model is 32 wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import diffusers
import torch
from torch import nn

from pipelines.reference import Mix, Sites, Stack
from pipelines.walk import transformer_classes as classes

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
TEXT, POOLED = 12, 10
JOINT = ("hidden_states", "encoder_hidden_states")
TURNED = ("encoder_hidden_states", "hidden_states")


@dataclass(frozen=True)
class Small:
    """A small transformer.

    config: of the class
    sites: of the hand-written FORA: what the library takes for sites of this class, or the patterns that a user names
    patterns: module sites that a user names; None where the library knows the class
    level: of sites that a user asks for; None for the finest, and for modules where nothing is known
    """

    config: Mapping[str, Any]
    sites: Sites
    patterns: tuple[str, ...] | None = None
    level: Literal["blocks", "modules"] | None = None


def known(sites: Sites, **config: Any) -> Small:
    """A class that the library knows, at these sites."""
    return Small(config, sites)


def by_blocks(sites: Sites, **config: Any) -> Small:
    """A class whose branches the hand-written FORA does not know, so that whole blocks are asked for."""
    return Small(config, sites, None, "blocks")


def by_modules(*patterns: str, **config: Any) -> Small:
    """A class whose branches the hand-written FORA does not know, where a user names modules."""
    return Small(config, patterns, patterns, "modules")


def named(*patterns: str, **config: Any) -> Small:
    """A class that it does not know, where a user names modules."""
    return Small(config, patterns, patterns)


DIT = ("transformer_blocks.*.attn1", "transformer_blocks.*.ff")
CROSS = (*DIT, "transformer_blocks.*.attn2")
WAN = ("blocks.*.attn1", "blocks.*.attn2", "blocks.*.ffn")
MMDIT = ("transformer_blocks.*.attn", "transformer_blocks.*.ff", "transformer_blocks.*.ff_context")
SD3 = (*MMDIT, "transformer_blocks.*.attn2")
FLUX = (*MMDIT, "single_transformer_blocks.*.proj_out")
FLUX_LIKE = ("transformer_blocks.*.ff", "transformer_blocks.*.ff_context", "single_transformer_blocks.*.proj_out")
WAN_LIKE = {
    **HEADS, "num_layers": 2, "in_channels": 4, "out_channels": 4, "text_dim": TEXT, "freq_dim": 16, "ffn_dim": 48,
    "rope_max_seq_len": 32,
}  # fmt: skip
FLUX_CONFIG = {
    **HEADS, "num_layers": 2, "num_single_layers": 2, "in_channels": 16, "joint_attention_dim": TEXT,
    "axes_dims_rope": (4, 4, 8),
}  # fmt: skip
COGVIEW = {
    **HEADS, "num_layers": 2, "in_channels": 4, "out_channels": 4, "text_embed_dim": TEXT, "time_embed_dim": 8,
    "condition_dim": 4,
}  # fmt: skip
COGVIDEO = {
    **HEADS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": TEXT, "num_layers": 2,
    "sample_width": 8, "sample_height": 8, "sample_frames": 5, "max_text_seq_length": 5,
}  # fmt: skip
HUNYUAN_VIDEO = {
    **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1,
    "text_embed_dim": TEXT, "pooled_projection_dim": POOLED, "rope_axes_dim": (4, 4, 8),
}  # fmt: skip
LTX2 = {
    **HEADS, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 32, "audio_in_channels": 4,
    "audio_out_channels": 4, "audio_num_attention_heads": 2, "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16, "num_layers": 2, "caption_channels": TEXT, "vae_scale_factors": (8, 32, 32),
}  # fmt: skip
SANA = {
    **HEADS, "num_layers": 2, "in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": TEXT, "sample_size": 8,
}  # fmt: skip
JOY = {
    "patch_size": [1, 2, 2], "in_channels": 4, "hidden_size": 32, "num_attention_heads": 2, "text_dim": TEXT,
    "num_layers": 2, "rope_dim_list": [4, 4, 8],
}  # fmt: skip
KANDINSKY = {
    "in_visual_dim": 4, "in_text_dim": TEXT, "in_text_dim2": POOLED, "time_dim": 16, "out_visual_dim": 4,
    "patch_size": (1, 2, 2), "model_dim": 32, "ff_dim": 48, "num_text_blocks": 1, "num_visual_blocks": 2,
    "axes_dims": (4, 4, 8),
}  # fmt: skip

SMALL: dict[str, Small] = {
    "DiTTransformer2DModel": known(
        DIT, **HEADS, num_layers=2, sample_size=8, num_embeds_ada_norm=1000, in_channels=4, out_channels=8
    ),
    "PixArtTransformer2DModel": known(
        CROSS, **HEADS, num_layers=2, sample_size=8, cross_attention_dim=32, caption_channels=TEXT, out_channels=8
    ),
    "SD3Transformer2DModel": known(
        SD3, **HEADS, num_layers=2, sample_size=8, in_channels=4, out_channels=4, pos_embed_max_size=8,
        joint_attention_dim=TEXT, caption_projection_dim=32, pooled_projection_dim=POOLED, qk_norm="rms_norm",
        dual_attention_layers=(0,),
    ),
    "FluxTransformer2DModel": known(FLUX, **FLUX_CONFIG, pooled_projection_dim=POOLED, guidance_embeds=True),
    "WanTransformer3DModel": known(WAN, **WAN_LIKE),
    "Flux2Transformer2DModel": known(
        (*MMDIT, "single_transformer_blocks.*.attn"),
        **HEADS, num_layers=2, num_single_layers=2, in_channels=16, joint_attention_dim=TEXT,
        timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
    ),
    "QwenImageTransformer2DModel": known(
        ("transformer_blocks.*.attn", "transformer_blocks.*.img_mlp", "transformer_blocks.*.txt_mlp"),
        **HEADS, num_layers=2, in_channels=16, out_channels=4, joint_attention_dim=TEXT, axes_dims_rope=(4, 4, 8),
    ),
    "ZImageTransformer2DModel": known(
        ("layers.*.attention_norm2", "layers.*.ffn_norm2"),
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=TEXT,
        axes_dims=[4, 4, 8], axes_lens=[256, 32, 32],
    ),
    "SanaTransformer2DModel": known(CROSS, **SANA),
    "Lumina2Transformer2DModel": known(
        ("layers.*.norm2", "layers.*.ffn_norm2"), sample_size=8, in_channels=4, hidden_size=24, num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 4, 4), axes_lens=(32, 32, 32),
        cap_feat_dim=TEXT,
    ),
    "AuraFlowTransformer2DModel": by_blocks(
        (Stack("joint_transformer_blocks", TURNED), Stack("single_transformer_blocks")), **HEADS, sample_size=8,
        in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, joint_attention_dim=TEXT,
        caption_projection_dim=32, pos_embed_max_size=16,
    ),
    "HunyuanDiT2DModel": known(
        (Mix("blocks.*.skip_linear", "skip_norm"), "blocks.*.attn1", "blocks.*.attn2", "blocks.*.ff"), **HEADS,
        in_channels=4, patch_size=2, sample_size=8, hidden_size=32, num_layers=4,
        cross_attention_dim=TEXT, cross_attention_dim_t5=16, pooled_projection_dim=16, text_len=5, text_len_t5=5,
        use_style_cond_and_image_meta_size=False,
    ),
    "CogVideoXTransformer3DModel": known(DIT, **COGVIDEO),
    "HunyuanVideoTransformer3DModel": known(
        FLUX, **HUNYUAN_VIDEO
    ),
    "LTXVideoTransformer3DModel": known(
        CROSS, **HEADS, in_channels=4, out_channels=4, cross_attention_dim=32, num_layers=2,
        caption_channels=TEXT,
    ),
    "MochiTransformer3DModel": by_blocks(
        (Stack("transformer_blocks", JOINT),), **HEADS, in_channels=4, num_layers=2, pooled_projection_dim=16,
        text_embed_dim=16, time_embed_dim=8, max_sequence_length=5,
    ),
    "LatteTransformer3DModel": known(
        (Stack("transformer_blocks"), Stack("temporal_transformer_blocks")), **HEADS, in_channels=4, out_channels=8,
        num_layers=2, cross_attention_dim=32, sample_size=8, patch_size=2, norm_type="ada_norm_single",
        num_embeds_ada_norm=1000, caption_channels=TEXT, video_length=2, norm_elementwise_affine=False,
    ),
    "StableAudioDiTModel": known(
        (Stack("transformer_blocks"),), **HEADS, sample_size=16, in_channels=4, out_channels=4, num_layers=2,
        num_key_value_attention_heads=2, cross_attention_dim=TEXT, time_proj_dim=8, global_states_input_dim=2 * TEXT,
        cross_attention_input_dim=TEXT,
    ),
    # from here on a user names modules
    "AceStepTransformer1DModel": named(
        "layers.*.mlp", "layers.*.self_attn", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, in_channels=12, audio_acoustic_hidden_dim=4,
        sliding_window=8,
    ),
    "LuminaNextDiT2DModel": named(
        "layers.*.feed_forward", "layers.*.attn1", sample_size=8, in_channels=4, hidden_size=24, num_layers=2,
        num_attention_heads=2, num_kv_heads=1, multiple_of=8, cross_attention_dim=TEXT,
    ),
    "ConsisIDTransformer3DModel": named("transformer_blocks.*.ff", **COGVIDEO),
    "AllegroTransformer3DModel": named(
        *CROSS, num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=48, sample_height=8,
        sample_width=8, sample_frames=2, caption_channels=TEXT,
    ),
    "AnyFlowTransformer3DModel": named(*WAN, **WAN_LIKE),
    "AnyFlowFARTransformer3DModel": named(
        "blocks.*.ffn", **WAN_LIKE, full_chunk_limit=2, chunk_partition=(1, 1)
    ),
    "BriaTransformer2DModel": named(*FLUX_LIKE, **FLUX_CONFIG),
    "BriaFiboTransformer2DModel": named(*FLUX_LIKE, **FLUX_CONFIG, text_encoder_dim=TEXT),
    "BriaFibo2Transformer2DModel": named(
        "layers.*.feed_forward", in_channels=4, dim=32, n_layers=3, n_refiner_layers=1, n_heads=2, cap_feat_dim=TEXT,
        injection_layer_ids=(1,), perceiver_num_layers=1, min_num_gist_tokens=4, max_num_gist_tokens=8, gist_step=4,
        gist_min_text_len=4, gist_max_text_len=16, axes_dims=(4, 4, 8), axes_lens=(64, 32, 32),
    ),
    "ChromaTransformer2DModel": known(
        FLUX, **FLUX_CONFIG, approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1
    ),
    "ChronoEditTransformer3DModel": named(*WAN, **WAN_LIKE, rope_temporal_skip_len=4),
    "CogView3PlusTransformer2DModel": named(
        "transformer_blocks.*.ff.net.2", **COGVIEW, sample_size=8, pos_embed_max_size=8
    ),
    "CogView4Transformer2DModel": named(
        "transformer_blocks.*.attn1.to_out.0", **COGVIEW, sample_size=8, rope_axes_dim=(8, 8)
    ),
    "GlmImageTransformer2DModel": named(
        "transformer_blocks.*.attn1.to_out.0", **COGVIEW, prior_vq_quantizer_codebook_size=16
    ),
    "CosmosTransformer3DModel": by_modules(
        *CROSS, **HEADS, in_channels=5, out_channels=4, num_layers=2, text_embed_dim=TEXT, adaln_lora_dim=4,
        max_size=(4, 32, 32), rope_scale=(2.0, 1.0, 1.0), extra_pos_embed_type=None,
    ),
    "EasyAnimateTransformer3DModel": named(
        "transformer_blocks.*.ff", "transformer_blocks.*.txt_ff", **HEADS, in_channels=4, out_channels=4, patch_size=2,
        num_layers=2, mmdit_layers=2, time_embed_dim=8, text_embed_dim=TEXT,
    ),
    "ErnieImageTransformer2DModel": named(
        "layers.*.mlp", "layers.*.self_attention", hidden_size=32, num_attention_heads=2, num_layers=2,
        ffn_hidden_size=48, in_channels=16, out_channels=16, text_in_dim=TEXT, rope_axes_dim=(4, 4, 8),
    ),
    "Flux3Transformer2DModel": named(
        "single_transformer_blocks.*.ff", **HEADS, in_channels=16, cond_in_channels=16, num_layers=2,
        num_single_layers=2, joint_attention_dim=TEXT, timestep_channels=16, axes_dims_rope=(4, 4, 4, 4),
    ),
    "HeliosTransformer3DModel": named(
        *WAN, **{k: v for k, v in WAN_LIKE.items() if k != "rope_max_seq_len"}, rope_dim=(4, 4, 8)
    ),
    "HiDreamImageTransformer2DModel": known(
        (
            "double_stream_blocks.*.block.attn1", "double_stream_blocks.*.block.ff_i",
            "double_stream_blocks.*.block.ff_t", "single_stream_blocks.*.block.attn1",
            "single_stream_blocks.*.block.ff_i",
        ),
        **HEADS, patch_size=2, in_channels=4, out_channels=4, num_layers=2, num_single_layers=2,
        caption_channels=[TEXT, TEXT], text_emb_dim=POOLED, axes_dims_rope=(4, 4, 8),
        max_resolution=(16, 16), llama_layers=[0, 1, 0, 1],
    ),
    "HunyuanVideo15Transformer3DModel": known(
        MMDIT, **HEADS, in_channels=9, out_channels=4,
        num_layers=2, num_refiner_layers=1, text_embed_dim=TEXT, text_embed_2_dim=TEXT, image_embed_dim=POOLED,
        rope_axes_dim=(4, 4, 8), task_type="t2v",
    ),
    "HunyuanVideoFramepackTransformer3DModel": named(
        *FLUX_LIKE, **HUNYUAN_VIDEO, has_image_proj=True, image_proj_dim=POOLED, has_clean_x_embedder=True
    ),
    "HunyuanImageTransformer2DModel": named(
        *FLUX_LIKE, **HEADS, in_channels=4, out_channels=4, num_layers=2, num_single_layers=2, num_refiner_layers=1,
        text_embed_dim=TEXT, rope_axes_dim=(8, 8),
    ),
    "Ideogram4Transformer2DModel": named(
        "layers.*.feed_forward", "layers.*.attention", **HEADS, in_channels=16, num_layers=2, intermediate_size=48,
        adaln_dim=8, llm_features_dim=TEXT, mrope_section=(4, 2, 2),
    ),
    "JoyImageEditTransformer3DModel": named("double_blocks.*.img_mlp", "double_blocks.*.txt_mlp", **JOY),
    "JoyImageEditPlusTransformer3DModel": named("double_blocks.*.img_mlp", "double_blocks.*.txt_mlp", **JOY),
    "Kandinsky5Transformer3DModel": named(
        "visual_transformer_blocks.*.feed_forward", "visual_transformer_blocks.*.self_attention", **KANDINSKY
    ),
    "Kandinsky6Transformer3DModel": named("visual_transformer_blocks.*.video_dec_block.feed_forward", **KANDINSKY),
    "Kandinsky6SRTransformer3DModel": named(
        "visual_transformer_blocks.*.feed_forward", in_visual_dim=4, out_visual_dim=40, time_dim=16, model_dim=32,
        ff_dim=48, num_visual_blocks=2, axes_dims=(4, 4, 8),
    ),
    "Krea2Transformer2DModel": named(
        "transformer_blocks.*.ff", "transformer_blocks.*.attn", **HEADS, in_channels=16, num_layers=2,
        num_key_value_heads=1, intermediate_size=48, timestep_embed_dim=16, text_hidden_dim=TEXT, num_text_layers=2,
        text_num_attention_heads=2, text_num_key_value_heads=1, text_intermediate_size=24,
        num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 4, 8),
    ),
    "LongCatAudioDiTTransformer": named(
        "blocks.*.ffn", "blocks.*.self_attn", dit_dim=32, dit_depth=2, dit_heads=2, dit_text_dim=TEXT, latent_dim=4
    ),
    "LongCatImageTransformer2DModel": named(
        *FLUX_LIKE, **FLUX_CONFIG | {"in_channels": 64}, pooled_projection_dim=TEXT
    ),
    "LTX2VideoTransformer3DModel": by_modules(
        "transformer_blocks.*.ff", "transformer_blocks.*.audio_ff", "transformer_blocks.*.attn1", **LTX2
    ),
    "SanaWMLTX2RefinerTransformer3DModel": named("transformer_blocks.*.ff", **LTX2),
    "MiniMaxH3Transformer3DModel": named(
        "transformer_blocks.*.ff", "transformer_blocks.*.attn", **HEADS, hidden_size=32, num_layers=2,
        num_refiner_layers=1, ffn_dim=48, in_channels=4,
        audio_in_channels=4, text_dim=TEXT, freq_dim=16, time_embed_hidden_dim=16, time_embed_dim=16, rope_freq_dim=2,
    ),
    "MiniMaxMusic3Transformer1DModel": named(
        "transformer_blocks.*.attn", "transformer_blocks.*.ff_out", **HEADS, in_channels=4, condition_dim=TEXT,
        num_layers=2, ff_inner_dim=48, rotary_dim=8,
        fourier_embedding_dim=16,
    ),
    "MotifVideoTransformer3DModel": named(
        *FLUX_LIKE, **HEADS, in_channels=9, out_channels=4, num_layers=2, num_single_layers=2, text_embed_dim=TEXT,
        rope_axes_dim=(4, 4, 8),
    ),
    "NucleusMoEImageTransformer2DModel": named(
        "transformer_blocks.*.attn.to_out.0", **HEADS, patch_size=2, in_channels=16, out_channels=4, num_layers=2,
        num_key_value_heads=1, joint_attention_dim=TEXT, axes_dims_rope=(4, 4, 8), num_experts=2,
        moe_intermediate_dim=16, capacity_factors=[2.0, 2.0],
    ),
    "OmniGenTransformer2DModel": named(
        "layers.*.mlp", "layers.*.self_attn", in_channels=4, hidden_size=32, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=48, num_layers=2, pad_token_id=0, vocab_size=32,
        max_position_embeddings=64, original_max_position_embeddings=64, pos_embed_max_size=16, time_step_dim=16,
        rope_scaling={"long_factor": [1.0] * 8, "short_factor": [1.0] * 8, "type": "su"},
    ),
    "OvisImageTransformer2DModel": named(*FLUX_LIKE, **FLUX_CONFIG, out_channels=16),
    "PRXTransformer2DModel": named(
        "blocks.*.attention", in_channels=4, context_in_dim=TEXT, hidden_size=32, num_heads=2, depth=2,
        axes_dim=[8, 8], mlp_ratio=2.0,
    ),
    "QwenImage21Transformer2DModel": named(
        "transformer_blocks.*.img_mlp", **HEADS, in_channels=16, out_channels=16, num_layers=2, context_in_dim=TEXT,
        axes_dims_rope=(4, 4, 8),
    ),
    "SanaVideoTransformer3DModel": by_modules(
        "transformer_blocks.*.attn2", "transformer_blocks.*.attn1", **SANA
    ),
    "SanaWMTransformer3DModel": named(
        "blocks.*.mlp", in_channels=4, num_layers=2, hidden_size=32, num_attention_heads=2, linear_head_dim=16,
        chunk_plucker_post_attn_blocks=2, image_size=32, caption_channels=TEXT, softmax_every_n=2,
    ),
    "SkyReelsV2Transformer3DModel": named(*WAN, **WAN_LIKE),
    "StableAudio3DiTModel": named(
        "transformer_blocks.*.ff", "transformer_blocks.*.self_attn", io_channels=4, embed_dim=32, depth=2,
        num_heads=2, cond_token_dim=TEXT, global_cond_dim=TEXT,
        local_add_cond_dim=5, timestep_features_dim=16, num_memory_tokens=2,
    ),
    "WanAnimateTransformer3DModel": named(
        *WAN, **WAN_LIKE | {"in_channels": 12}, latent_channels=4, image_dim=TEXT, added_kv_proj_dim=32,
        motion_encoder_size=16, motion_style_dim=8, motion_dim=4, motion_encoder_dim=16, face_encoder_hidden_dim=16,
        face_encoder_num_heads=2, inject_face_latents_blocks=2,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
    ),
    "WanAnimate2Transformer3DModel": named(
        "blocks.*.ffn", text_len=5, in_dim=12, dim=32, ffn_dim=48, freq_dim=16, text_dim=TEXT, out_dim=4, num_heads=2,
        num_layers=2, use_img_emb=False,
    ),
    "WanVACETransformer3DModel": named(*WAN, **WAN_LIKE, vace_layers=[0], vace_in_channels=72),
    "PriorTransformer": named(
        *DIT, **HEADS, num_layers=2, embedding_dim=8, num_embeddings=5, additional_embeddings=4
    ),
    "T5FilmDecoder": named(
        "decoders.*.layer.2.film", input_dims=4, targets_length=8, d_model=32, num_layers=2, num_heads=2, d_kv=16,
        d_ff=48,
    ),
    "Transformer2DModel": named(
        *DIT, **HEADS, num_layers=2, in_channels=8, norm_num_groups=2
    ),
    "TransformerTemporalModel": named(*DIT, **HEADS, num_layers=2, in_channels=8, norm_num_groups=2),
    "DreamLiteTransformer2DModel": named(
        *CROSS, **HEADS, num_layers=2, in_channels=32, norm_num_groups=2, cross_attention_dim=TEXT
    ),
    "MiniMaxMusic3RVQDepthDecoder": named(
        "layers.*.down_proj", hidden_size=32, num_layers=2, num_attention_heads=2, intermediate_size=48,
        audio_vocab_size=16, num_codebooks=2, max_position_embeddings=8,
    ),
}  # fmt: skip


def make(kind: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A small model of the class, of random weights; those that start at zero, such as gates, are random, too."""
    torch.manual_seed(seed)
    return _alive(classes()[kind](**{**SMALL[kind].config, **changes}))


CONTROLNETS: dict[str, dict[str, Any]] = {
    "SD3ControlNetModel": {
        **HEADS, "num_layers": 1, "sample_size": 8, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 8,
        "joint_attention_dim": TEXT, "caption_projection_dim": 32, "pooled_projection_dim": POOLED,
    },
    "FluxControlNetModel": FLUX_CONFIG | {
        "num_layers": 1, "num_single_layers": 1, "pooled_projection_dim": POOLED, "guidance_embeds": True,
    },
    "HunyuanDiT2DControlNetModel": {
        **HEADS, "in_channels": 4, "patch_size": 2, "sample_size": 8, "hidden_size": 32, "transformer_num_layers": 4,
        "cross_attention_dim": TEXT, "cross_attention_dim_t5": 16, "pooled_projection_dim": 16, "text_len": 5,
        "text_len_t5": 5, "use_style_cond_and_image_meta_size": False,
    },
    "SanaControlNetModel": SANA | {"num_layers": 1},
    "QwenImageControlNetModel": {
        **HEADS, "num_layers": 1, "in_channels": 16, "out_channels": 4, "joint_attention_dim": TEXT,
        "axes_dims_rope": (4, 4, 8),
    },
    "ZImageControlNetModel": {
        "control_layers_places": [0], "control_refiner_layers_places": [0], "control_in_dim": 4, "dim": 32,
        "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
    },
    "CosmosControlNetModel": {
        **HEADS, "n_controlnet_blocks": 1, "in_channels": 11, "latent_channels": 6, "model_channels": 32,
        "text_embed_dim": TEXT, "adaln_lora_dim": 4, "max_size": (4, 32, 32), "encoder_hidden_states_channels": TEXT,
    },
}  # fmt: skip


def controlnet(kind: str, **changes: Any) -> nn.Module:
    """A small ControlNet of the class; its outputs, which start at zero, are random."""
    torch.manual_seed(1)
    return _alive(getattr(diffusers, kind)(**{**CONTROLNETS[kind], **changes}))


def _alive(made: Any) -> Any:
    """The model with random values in the place of weights that start at zero or one, such as those of gates."""
    made = made.float().eval()
    with torch.no_grad():
        for weight in made.parameters():
            if weight.numel() > 1 and weight.std() < 1e-3:
                weight.add_(torch.randn_like(weight) * 0.1)
    return made
