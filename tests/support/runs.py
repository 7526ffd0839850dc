"""Small pipelines whose model calls are not simply the timesteps that their scheduler announced."""

from types import SimpleNamespace

import diffusers
import torch

from support.pipelines import MASK, NONE, PAIR, TEXT, VIDEO, pipeline
from support.tiny import TINY, normal

MODULES = ["blocks.*.attn1", "blocks.*.ffn"]
WAN = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_dim": 12,
    "freq_dim": 16, "ffn_dim": 48, "num_layers": 2, "rope_max_seq_len": 32,
}  # fmt: skip


def random(kind, seed=0, **config):
    torch.manual_seed(seed)
    return getattr(diffusers, kind)(**config).eval()


def run(pipe, sites, steps, **how):
    """A pipeline, its sites, and its sample of ``steps`` steps."""

    def sample(steps=steps, seed=0, **more):
        generator = torch.Generator().manual_seed(seed)
        return pipe(**{**how, **more}, num_inference_steps=steps, generator=generator, output_type="latent")[0]

    return SimpleNamespace(pipe=pipe, sites=sites, sample=sample)


def sana_sprint():
    """SCM announces one timestep more than it makes calls."""
    config = TINY["Sana"].config | {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
    pipe = pipeline("SanaSprintPipeline", random("SanaTransformer2DModel", **config), diffusers.SCMScheduler())
    how = {"prompt_embeds": TEXT, "prompt_attention_mask": MASK, "height": 256, "width": 256}
    return run(pipe, None, 5, **how, use_resolution_binning=False, intermediate_timesteps=None)


def cog_video():
    """A scheduler whose steps take other arguments."""
    pipe = pipeline("CogVideoXPipeline", TINY["CogVideoX"].model(), diffusers.CogVideoXDPMScheduler())
    return run(pipe, None, 5, **PAIR, **VIDEO)


def any_flow():
    """Three chunks of a video, each announced; a call after each but the last fills the model's own KV cache."""
    model = random("AnyFlowFARTransformer3DModel", **WAN, chunk_partition=(1, 1, 1))
    pipe = pipeline("AnyFlowFARPipeline", model, diffusers.FlowMapEulerDiscreteScheduler())
    return run(pipe, MODULES, 5, prompt_embeds=TEXT, height=64, width=64, num_frames=9)


def sky_reels(**how):
    """Diffusion forcing: a schedule of its own, which is longer than the announced one where frames lag behind."""
    model = random("SkyReelsV2Transformer3DModel", **WAN, qk_norm="rms_norm_across_heads")
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe = pipeline("SkyReelsV2DiffusionForcingPipeline", model, scheduler)
    how = {"num_frames": 9, "height": 32, "width": 32} | how
    return run(pipe, MODULES, 5, prompt=None, prompt_embeds=TEXT, negative_prompt_embeds=NONE, **how)


def sky_reels_lagging():
    return sky_reels(num_frames=17, ar_step=1, causal_block_size=1)


def sky_reels_long():
    """Three windows, none of them announced."""
    return sky_reels(num_frames=33, base_num_frames=17, overlap_history=5)


def ltx_long():
    """Two windows, each announced, each without the last timestep."""
    pipe = pipeline(
        "LTXI2VLongMultiPromptPipeline", TINY["LTX-Video"].model(), diffusers.LTXEulerAncestralRFScheduler()
    )
    pipe.encode_prompt = lambda **_: (TEXT, MASK, NONE, MASK)
    how = {"height": 64, "width": 64, "num_frames": 33, "temporal_tile_size": 24, "temporal_overlap": 8}
    return run(pipe, None, 6, prompt="a", skip_steps_sigma_threshold=None, **how)


def ideogram():
    """Two transformers, both called at every step."""
    config = {
        "in_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "intermediate_size": 48, "adaln_dim": 16, "llm_features_dim": 12, "mrope_section": (4, 2, 2),
    }  # fmt: skip
    models = [random("Ideogram4Transformer2DModel", seed, **config) for seed in (0, 1)]
    pipe = pipeline("Ideogram4Pipeline", models[0], unconditional_transformer=models[1])
    roles = torch.tensor([[3] * 4 + [2] * 16])
    square = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0), torch.zeros(1))
    places = torch.cat([torch.arange(4.0)[:, None].expand(4, 3), square])
    pipe.encode_prompt = lambda **_: (normal(1, 20, 12), places[None], torch.ones(1, 20).long(), roles)
    how = {"height": 64, "width": 64, "max_sequence_length": 4, "guidance_scale": 3.0, "guidance_schedule": None}
    return run(pipe, ["layers.*.attention", "layers.*.feed_forward"], 5, prompt="a", **how)


class Processor:
    """Answers what the pipeline asks when it is made."""

    @property
    def tokenizer(self):
        return self

    def encode(self, text):
        return [0]

    def apply_chat_template(self, *args, **kwargs):
        return [[0]]


def qwen_image_21():
    """A KV cache of the model's own: from the second step on its blocks get the image alone."""
    config = {
        "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "context_in_dim": 12, "axes_dims_rope": (4, 4, 8),
    }  # fmt: skip
    model = random("QwenImage21Transformer2DModel", **config)
    pipe = pipeline("QwenImage21Pipeline", model, processor=Processor())
    pipe.encode_prompt = lambda prompt_embeds=None, **_: (prompt_embeds, None, torch.zeros(1, 5).bool())
    how = {"prompt_embeds": TEXT, "height": 64, "width": 64}
    return run(pipe, ["transformer_blocks.*.attn", "transformer_blocks.*.img_mlp"], 6, **how)
