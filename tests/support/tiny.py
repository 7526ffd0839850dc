"""Every diffusers family as a tiny random model of its real class, and what one call of it takes.

B batch (2), M tokens of a text.
"""

from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch

TIMES = (990, 850, 700, 550, 400, 250, 120, 20)


@dataclass(frozen=True)
class Tiny:
    """config: of the class. shape: of what is sampled, (B, ...). inputs: x and a time 0 to 999 to the arguments."""

    kind: str
    config: dict
    shape: tuple
    inputs: Callable

    def model(self):
        torch.manual_seed(0)
        model = getattr(diffusers, self.kind)(**self.config).eval()
        with torch.no_grad():  # what is zero at first, such as gates, must matter
            for parameter in model.parameters():
                if not parameter.any() or parameter.std() < 1e-3:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        return model

    def generate(self, model, times=TIMES, seed=0):
        """What is sampled after a plain descent through ``times``."""
        x = normal(*self.shape, seed=seed)
        with torch.no_grad():
            for time in times:
                x = x - 0.1 * self.predict(model, x, time)
        return x

    def predict(self, model, x, time):
        output = model(**self.inputs(x, time), return_dict=False)[0]
        output = torch.stack(output) if isinstance(output, list) else output
        return output[:, : x.shape[1]] if output.shape[1] == 2 * x.shape[1] else output


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def t(time):
    return torch.full((2,), time)


def fraction(time):
    return torch.full((2,), time / 1000)


HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
IDS = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))


def mask():
    """The second text is shorter."""
    return torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


LTX2 = {
    **HEADS, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 32, "audio_in_channels": 4,
    "audio_out_channels": 4, "audio_num_attention_heads": 2, "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16, "num_layers": 3, "caption_channels": 12,
}  # fmt: skip


def ltx2(x, times):
    """The audio is a part of the video and another noise, so that it changes with the video."""
    return {
        "hidden_states": x,
        "audio_hidden_states": x[:, :6] + normal(2, 6, 4, seed=3),
        "encoder_hidden_states": normal(2, 5, 12),
        "audio_encoder_hidden_states": normal(2, 5, 12, seed=2),
        "timestep": times,
        "encoder_attention_mask": mask(),
        "audio_encoder_attention_mask": mask(),
        "num_frames": 2,
        "height": 2,
        "width": 4,
        "audio_num_frames": 6,
    }


COSMOS = {
    **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 3, "text_embed_dim": 12, "adaln_lora_dim": 4,
    "max_size": (4, 32, 32), "rope_scale": (2.0, 1.0, 1.0), "extra_pos_embed_type": None,
    "concat_padding_mask": False,
}  # fmt: skip


def cosmos(x, times):
    return {
        "hidden_states": x,
        "timestep": times,
        "encoder_hidden_states": normal(2, 5, 12),
    }


TINY = {
    "DiT": Tiny(
        "DiTTransformer2DModel",
        {**HEADS, "num_layers": 3, "sample_size": 8, "num_embeds_ada_norm": 10, "in_channels": 4, "out_channels": 8},
        (2, 4, 8, 8),
        lambda x, time: {"hidden_states": x, "timestep": t(time), "class_labels": torch.tensor([3, 7])},
    ),
    "PixArt": Tiny(
        "PixArtTransformer2DModel",
        {**HEADS, "num_layers": 3, "sample_size": 8, "cross_attention_dim": 32, "caption_channels": 12},
        (2, 4, 8, 8),
        lambda x, time: {
            "hidden_states": x,
            "encoder_hidden_states": normal(2, 5, 12),
            "timestep": t(time),
            "encoder_attention_mask": mask(),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    "SD3": Tiny(
        "SD3Transformer2DModel",
        {
            **HEADS, "num_layers": 3, "sample_size": 8, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 8,
            "joint_attention_dim": 12, "caption_projection_dim": 32, "pooled_projection_dim": 10,
        },
        (2, 4, 8, 8),
        lambda x, time: {
            "hidden_states": x,
            "encoder_hidden_states": normal(2, 5, 12),
            "pooled_projections": normal(2, 10, seed=2),
            "timestep": t(time),
        },
    ),
    "SD3.5": Tiny(
        "SD3Transformer2DModel",
        {
            **HEADS, "num_layers": 3, "sample_size": 8, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 8,
            "joint_attention_dim": 12, "caption_projection_dim": 32, "pooled_projection_dim": 10,
            "dual_attention_layers": (0, 1), "qk_norm": "rms_norm",
        },
        (2, 4, 8, 8),
        lambda x, time: {
            "hidden_states": x,
            "encoder_hidden_states": normal(2, 5, 12),
            "pooled_projections": normal(2, 10, seed=2),
            "timestep": t(time),
        },
    ),
    "FLUX.1": Tiny(
        "FluxTransformer2DModel",
        {
            **HEADS, "num_layers": 2, "num_single_layers": 3, "in_channels": 4, "joint_attention_dim": 12,
            "pooled_projection_dim": 10, "axes_dims_rope": (4, 4, 8), "guidance_embeds": True,
        },
        (2, 16, 4),
        lambda x, time: {
            "hidden_states": x,
            "encoder_hidden_states": normal(2, 5, 12),
            "pooled_projections": normal(2, 10, seed=2),
            "timestep": fraction(time),
            "img_ids": IDS,
            "txt_ids": torch.zeros(5, 3),
            "guidance": torch.full((2,), 3.5),
        },
    ),
    "Wan 2.1": Tiny(
        "WanTransformer3DModel",
        {
            **HEADS, "num_layers": 3, "in_channels": 4, "out_channels": 4, "text_dim": 12, "freq_dim": 16,
            "ffn_dim": 48, "rope_max_seq_len": 32,
        },
        (2, 4, 2, 8, 8),
        lambda x, time: {"hidden_states": x, "timestep": t(time), "encoder_hidden_states": normal(2, 5, 12)},
    ),
    "Wan 2.2 5B": Tiny(
        "WanTransformer3DModel",
        {
            **HEADS, "num_layers": 3, "in_channels": 4, "out_channels": 4, "text_dim": 12, "freq_dim": 16,
            "ffn_dim": 48, "rope_max_seq_len": 32,
        },
        (2, 4, 2, 8, 8),
        lambda x, time: {
            "hidden_states": x,
            "timestep": t(time)[:, None] * (torch.arange(32) > 3),
            "encoder_hidden_states": normal(2, 5, 12),
        },
    ),
    "FLUX.2": Tiny(
        "Flux2Transformer2DModel",
        {
            **HEADS, "num_layers": 2, "num_single_layers": 3, "in_channels": 4, "joint_attention_dim": 12,
            "timestep_guidance_channels": 16, "axes_dims_rope": (4, 4, 4, 4),
        },
        (2, 16, 4),
        lambda x, time: {
            "hidden_states": x,
            "encoder_hidden_states": normal(2, 5, 12),
            "timestep": fraction(time),
            "img_ids": torch.cat([IDS, torch.zeros(16, 1)], 1),
            "txt_ids": torch.zeros(5, 4),
            "guidance": torch.full((2,), 3.5),
        },
    ),
    "Chroma": Tiny(
        "ChromaTransformer2DModel",
        {**HEADS, "num_layers": 2, "num_single_layers": 3, "in_channels": 4, "joint_attention_dim": 12,
         "axes_dims_rope": (4, 4, 8), "approximator_num_channels": 8, "approximator_hidden_dim": 16,
         "approximator_layers": 2},
        (2, 16, 4),
        lambda x, time: {
            "hidden_states": x,
            "encoder_hidden_states": normal(2, 5, 12),
            "timestep": fraction(time),
            "img_ids": IDS,
            "txt_ids": torch.zeros(5, 3),
            "attention_mask": torch.cat([mask(), torch.ones(2, 16)], 1).bool(),
        },
    ),
    "Qwen-Image": Tiny(
        "QwenImageTransformer2DModel",
        {**HEADS, "num_layers": 3, "in_channels": 16, "out_channels": 4, "joint_attention_dim": 12,
         "axes_dims_rope": (4, 4, 8)},
        (2, 16, 16),
        lambda x, time: {
            "hidden_states": x,
            "encoder_hidden_states": normal(2, 5, 12),
            "encoder_hidden_states_mask": mask(),
            "timestep": fraction(time),
            "img_shapes": [[(1, 4, 4)], [(1, 4, 4)]],
        },
    ),
    "Qwen-Image-Edit": Tiny(
        "QwenImageTransformer2DModel",
        {**HEADS, "num_layers": 3, "in_channels": 16, "out_channels": 4, "joint_attention_dim": 12,
         "axes_dims_rope": (4, 4, 8), "zero_cond_t": True},
        (2, 16, 16),
        lambda x, time: {
            "hidden_states": torch.cat([x, normal(*x.shape, seed=2)], 1),  # a reference image behind the noise
            "encoder_hidden_states": normal(2, 5, 12),
            "encoder_hidden_states_mask": mask(),
            "timestep": fraction(time),
            "img_shapes": [[(1, 4, 4), (1, 4, 4)]] * 2,
        },
    ),
    "Z-Image": Tiny(
        "ZImageTransformer2DModel",
        {"in_channels": 4, "dim": 32, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
         "cap_feat_dim": 12, "axes_dims": [4, 4, 8], "axes_lens": [256, 32, 32]},
        (2, 4, 1, 8, 8),
        lambda x, time: {"x": list(x), "t": fraction(1000 - time), "cap_feats": list(normal(2, 5, 12))},
    ),
    "Sana": Tiny(
        "SanaTransformer2DModel",
        {**HEADS, "num_layers": 3, "in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 2,
         "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 12, "sample_size": 8},
        (2, 4, 8, 8),
        lambda x, time: {
            "hidden_states": x,
            "encoder_hidden_states": normal(2, 5, 12),
            "timestep": t(time),
            "encoder_attention_mask": mask(),
        },
    ),
    "Lumina 2": Tiny(
        "Lumina2Transformer2DModel",
        {"sample_size": 8, "in_channels": 4, "hidden_size": 24, "num_layers": 3, "num_refiner_layers": 1,
         "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 8, "axes_dim_rope": (4, 4, 4),
         "axes_lens": (32, 32, 32), "cap_feat_dim": 12},
        (2, 4, 8, 8),
        lambda x, time: {
            "hidden_states": x,
            "timestep": fraction(1000 - time),
            "encoder_hidden_states": normal(2, 5, 12),
            "encoder_attention_mask": mask(),
        },
    ),
    "AuraFlow": Tiny(
        "AuraFlowTransformer2DModel",
        {**HEADS, "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 2,
         "num_single_dit_layers": 2, "joint_attention_dim": 12, "caption_projection_dim": 32,
         "pos_embed_max_size": 16},
        (2, 4, 8, 8),
        lambda x, time: {
            "hidden_states": x,
            "encoder_hidden_states": normal(2, 5, 12),
            "timestep": fraction(time),
        },
    ),
    "HunyuanDiT": Tiny(
        "HunyuanDiT2DModel",
        {**HEADS, "in_channels": 4, "patch_size": 2, "sample_size": 8, "hidden_size": 32, "num_layers": 4,
         "cross_attention_dim": 16, "cross_attention_dim_t5": 16, "pooled_projection_dim": 16, "text_len": 5,
         "text_len_t5": 5, "use_style_cond_and_image_meta_size": False},
        (2, 4, 8, 8),
        lambda x, time: {
            "hidden_states": x,
            "timestep": t(float(time)),
            "encoder_hidden_states": normal(2, 5, 16),
            "text_embedding_mask": mask(),
            "encoder_hidden_states_t5": normal(2, 5, 16, seed=3),
            "text_embedding_mask_t5": mask(),
            "image_rotary_emb": (normal(16, 16, seed=4), normal(16, 16, seed=5)),
        },
    ),
    "CogVideoX": Tiny(
        "CogVideoXTransformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": 12, "num_layers": 3,
         "sample_width": 8, "sample_height": 8, "sample_frames": 5, "max_text_seq_length": 5},
        (2, 2, 4, 8, 8),
        lambda x, time: {"hidden_states": x, "encoder_hidden_states": normal(2, 5, 12), "timestep": t(time)},
    ),
    "HiDream": Tiny(
        "HiDreamImageTransformer2DModel",
        {**HEADS, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2,
         "caption_channels": [12, 10], "text_emb_dim": 8, "axes_dims_rope": (4, 4, 8), "max_resolution": (8, 8),
         "llama_layers": [0, 1, 1, 2]},
        (2, 4, 8, 8),
        lambda x, time: {
            "hidden_states": x,
            "timesteps": t(time),
            "encoder_hidden_states_t5": normal(2, 5, 12),
            "encoder_hidden_states_llama3": normal(3, 2, 5, 10, seed=2),
            "pooled_embeds": normal(2, 8, seed=3),
        },
    ),
    "HunyuanVideo": Tiny(
        "HunyuanVideoTransformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2,
         "num_refiner_layers": 1, "text_embed_dim": 12, "pooled_projection_dim": 10, "rope_axes_dim": (4, 4, 8)},
        (2, 4, 2, 8, 8),
        lambda x, time: {
            "hidden_states": x,
            "timestep": t(time),
            "encoder_hidden_states": normal(2, 5, 12),
            "encoder_attention_mask": mask(),
            "pooled_projections": normal(2, 10, seed=2),
            "guidance": torch.full((2,), 3500.0),
        },
    ),
    "HunyuanVideo I2V": Tiny(
        "HunyuanVideoTransformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2,
         "num_refiner_layers": 1, "text_embed_dim": 12, "pooled_projection_dim": 10, "rope_axes_dim": (4, 4, 8),
         "guidance_embeds": True, "image_condition_type": "token_replace"},
        (2, 4, 2, 8, 8),
        lambda x, time: {
            "hidden_states": x,
            "timestep": t(time),
            "encoder_hidden_states": normal(2, 5, 12),
            "encoder_attention_mask": mask(),
            "pooled_projections": normal(2, 10, seed=2),
            "guidance": torch.full((2,), 3500.0),
        },
    ),
    "HunyuanVideo 1.5": Tiny(
        "HunyuanVideo15Transformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 3, "num_refiner_layers": 1,
         "text_embed_dim": 12, "text_embed_2_dim": 10, "image_embed_dim": 8, "rope_axes_dim": (4, 4, 8)},
        (2, 4, 2, 4, 4),
        lambda x, time: {
            "hidden_states": x,
            "timestep": t(float(time)),
            "encoder_hidden_states": normal(2, 5, 12),
            "encoder_attention_mask": mask(),
            "encoder_hidden_states_2": normal(2, 4, 10, seed=2),
            "encoder_attention_mask_2": torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]),
            "image_embeds": torch.zeros(2, 3, 8),
        },
    ),
    "LTX-Video": Tiny(
        "LTXVideoTransformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 32, "num_layers": 3,
         "caption_channels": 12},
        (2, 32, 4),
        lambda x, time: {
            "hidden_states": x,
            "encoder_hidden_states": normal(2, 5, 12),
            "timestep": t(time),
            "encoder_attention_mask": mask(),
            "num_frames": 2,
            "height": 4,
            "width": 4,
        },
    ),
    "LTX-Video I2V": Tiny(
        "LTXVideoTransformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 32, "num_layers": 3,
         "caption_channels": 12},
        (2, 32, 4),
        lambda x, time: {
            "hidden_states": x,
            "encoder_hidden_states": normal(2, 5, 12),
            "timestep": t(time)[:, None] * (torch.arange(32) > 15),
            "encoder_attention_mask": mask(),
            "num_frames": 2,
            "height": 4,
            "width": 4,
        },
    ),
    "LTX-2": Tiny("LTX2VideoTransformer3DModel", LTX2, (2, 16, 4), lambda x, time: ltx2(x, t(time))),
    "LTX-2.3 I2V": Tiny(
        "LTX2VideoTransformer3DModel",
        {**LTX2, "gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True, "audio_cross_attn_mod": True,
         "use_prompt_embeddings": False, "perturbed_attn": True},
        (2, 16, 4),
        lambda x, time: {
            **ltx2(x, t(time)[:, None] * (torch.arange(16) > 7)),
            "encoder_hidden_states": normal(2, 5, 32),
            "audio_encoder_hidden_states": normal(2, 5, 16, seed=2),
            "audio_timestep": t(time),
            "sigma": t(time),
            "use_cross_timestep": True,
            "spatio_temporal_guidance_blocks": [1],
        },
    ),
    "Cosmos": Tiny(
        "CosmosTransformer3DModel", COSMOS, (2, 4, 2, 8, 8), lambda x, time: cosmos(x, fraction(time))
    ),
    "Cosmos 2.5 I2V": Tiny(
        "CosmosTransformer3DModel",
        {**COSMOS, "in_channels": 5, "use_crossattn_projection": True, "crossattn_proj_in_channels": 10,
         "encoder_hidden_states_channels": 12, "img_context_dim_in": 12, "img_context_dim_out": 32},
        (2, 4, 2, 8, 8),
        lambda x, time: {
            **cosmos(x, fraction(time)[:, None, None, None, None] * torch.tensor([0.0, 1.0])[:, None, None]),
            "condition_mask": torch.tensor([1.0, 0.0])[:, None, None].expand(2, 1, 2, 8, 8),
            "encoder_hidden_states": (normal(2, 5, 10), normal(2, 3, 12, seed=2)),
        },
    ),
    "Sana Video": Tiny(
        "SanaVideoTransformer3DModel",
        {**HEADS, "num_layers": 3, "in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 2,
         "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 12, "sample_size": 8,
         "rope_max_seq_len": 32},
        (2, 4, 2, 8, 8),
        lambda x, time: {
            "hidden_states": x,
            "encoder_hidden_states": normal(2, 5, 12),
            "timestep": t(time),
            "encoder_attention_mask": mask(),
        },
    ),
    "Mochi 1": Tiny(
        "MochiTransformer3DModel",
        {**HEADS, "in_channels": 4, "num_layers": 3, "pooled_projection_dim": 16, "text_embed_dim": 16,
         "time_embed_dim": 8, "max_sequence_length": 5},
        (2, 4, 2, 8, 8),
        lambda x, time: {
            "hidden_states": x,
            "encoder_hidden_states": normal(2, 5, 16),
            "timestep": t(time),
            "encoder_attention_mask": mask().bool(),
        },
    ),
    "Latte": Tiny(
        "LatteTransformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 2, "cross_attention_dim": 32, "sample_size": 8,
         "patch_size": 2, "norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000, "caption_channels": 12,
         "video_length": 2, "norm_elementwise_affine": False},
        (2, 4, 2, 8, 8),
        lambda x, time: {
            "hidden_states": x,
            "timestep": t(time),
            "encoder_hidden_states": normal(2, 5, 12),
        },
    ),
    "Stable Audio": Tiny(
        "StableAudioDiTModel",
        {**HEADS, "sample_size": 16, "in_channels": 4, "out_channels": 4, "num_layers": 3,
         "num_key_value_attention_heads": 2, "cross_attention_dim": 12, "time_proj_dim": 8,
         "global_states_input_dim": 12, "cross_attention_input_dim": 12},
        (2, 4, 16),
        lambda x, time: {
            "hidden_states": x,
            "timestep": fraction(time),
            "encoder_hidden_states": normal(2, 5, 12),
            "global_hidden_states": normal(2, 1, 12, seed=2),
            "rotary_embedding": (normal(17, 8, seed=4), normal(17, 8, seed=5)),
        },
    ),
}  # fmt: skip

BLOCKS = ["Latte", "Stable Audio"]
"""Those that are known by whole blocks alone."""
BRANCHES = [name for name in TINY if name not in BLOCKS]
LONG = ("Chroma", "Cosmos", "Cosmos 2.5 I2V", "HiDream", "HunyuanVideo I2V", "HunyuanVideo 1.5", "LTX-2.3 I2V",
        "LTX-Video I2V", "Qwen-Image-Edit", "Sana Video")  # fmt: skip
"""Those of which `make test` runs only the tests of branches; the others have blocks of every form, too."""
SHORT = [name for name in TINY if name not in LONG]
