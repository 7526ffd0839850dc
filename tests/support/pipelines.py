"""Real diffusers pipelines without encoders and VAE, and what they are called with."""

import inspect

import diffusers
import torch
from transformers import UMT5Config, UMT5EncoderModel

from support.small import small_t5
from support.tiny import TINY, normal


def pipeline(kind, transformer, scheduler=None, **more):
    """A pipeline without encoders and VAE: it is given what these would give, and gives out latents."""
    made = getattr(diffusers, kind)
    needed = [each for each in inspect.signature(made.__init__).parameters.values() if each.default is each.empty]
    parts = dict.fromkeys(each.name for each in needed[1:])
    scheduler = scheduler or diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = made(**{**parts, "transformer": transformer, "scheduler": scheduler, **more})
    pipe.set_progress_bar_config(disable=True)
    return pipe


TEXT, NONE, MASK, POOLED = normal(1, 5, 12), normal(1, 5, 12, seed=2), torch.ones(1, 5).long(), normal(1, 10)
SQUARE, VIDEO = {"height": 64, "width": 64}, {"height": 64, "width": 64, "num_frames": 5}
PAIR = {"prompt_embeds": TEXT, "negative_prompt_embeds": NONE}
MASKED = PAIR | {"prompt_attention_mask": MASK, "negative_prompt_attention_mask": MASK}
ONCE = {"guidance_scale": 1.0}
"""These pipelines call the model twice a step under guidance: tests/runtime/test_lanes.py."""
PIPELINES = {
    "SD3": (
        "StableDiffusion3Pipeline",
        PAIR | SQUARE | {"pooled_prompt_embeds": POOLED, "negative_pooled_prompt_embeds": POOLED},
    ),
    "FLUX.1": ("FluxPipeline", SQUARE | {"prompt_embeds": TEXT, "pooled_prompt_embeds": POOLED}),
    "Wan 2.1": ("WanPipeline", {"prompt_embeds": TEXT, "height": 16, "width": 16, "num_frames": 5} | ONCE),
    "FLUX.2": ("Flux2Pipeline", SQUARE | {"prompt_embeds": TEXT}),
    "Qwen-Image": ("QwenImagePipeline", SQUARE | {"prompt_embeds": TEXT, "prompt_embeds_mask": MASK}),
    "Chroma": (
        "ChromaPipeline",
        SQUARE
        | ONCE
        | {"prompt_embeds": TEXT, "prompt_attention_mask": MASK.bool(), "negative_prompt_embeds": NONE}
        | {"negative_prompt_attention_mask": MASK.bool()},
    ),
    "HiDream": (
        "HiDreamImagePipeline",
        SQUARE
        | {"prompt_embeds_t5": TEXT, "negative_prompt_embeds_t5": NONE}
        | {f"{kind}prompt_embeds_llama3": normal(3, 1, 5, 10, seed=3) for kind in ("", "negative_")}
        | {f"{kind}pooled_prompt_embeds": normal(1, 8, seed=4) for kind in ("", "negative_")},
    ),
    "Z-Image": ("ZImagePipeline", SQUARE | {"prompt_embeds": [TEXT[0]], "negative_prompt_embeds": [NONE[0]]}),
    "Sana": ("SanaPipeline", MASKED | {"height": 256, "width": 256, "use_resolution_binning": False,
                                       "negative_prompt": None}),
    "Lumina 2": ("Lumina2Pipeline", MASKED | SQUARE | ONCE),
    "AuraFlow": ("AuraFlowPipeline", MASKED | SQUARE),
    "CogVideoX": ("CogVideoXPipeline", PAIR | VIDEO),
    "HunyuanVideo": (
        "HunyuanVideoPipeline",
        VIDEO | {"prompt_embeds": TEXT, "pooled_prompt_embeds": POOLED, "prompt_attention_mask": MASK},
    ),
    "LTX-Video": ("LTXPipeline", MASKED | VIDEO | {"num_frames": 9}),
    "Mochi 1": (
        "MochiPipeline",
        VIDEO
        | {"prompt_embeds": normal(1, 5, 16), "negative_prompt_embeds": normal(1, 5, 16, seed=2), "num_frames": 7}
        | {"prompt_attention_mask": MASK.bool(), "negative_prompt_attention_mask": MASK.bool()},
    ),
    "Latte": ("LattePipeline", PAIR | SQUARE | {"video_length": 2, "negative_prompt": None}),
}  # fmt: skip
SCHEDULERS = {"CogVideoX": diffusers.CogVideoXDDIMScheduler, "Latte": diffusers.DDIMScheduler}


def _small_vae(channels):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        latent_channels=channels, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, shift_factor=0.0, **blocks
    ).eval()


IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
EDITS = {
    "SD3": ("StableDiffusion3Img2ImgPipeline", {"image": IMAGE}, lambda: {"vae": _small_vae(4)}),
    "FLUX.1": ("FluxImg2ImgPipeline", {"image": IMAGE}, lambda: {"vae": _small_vae(1)}),
    "Qwen-Image": ("QwenImageImg2ImgPipeline", {"image": normal(1, 4, 8, 8, seed=3)}, dict),
    "Wan 2.1": ("WanVideoToVideoPipeline", {"latents": normal(1, 4, 2, 2, 2, seed=3)}, dict),
}
"""Pipelines that start from an image or a video: class, what they are given besides, and parts."""


def edit_pipeline(name, transformer, scheduler=None):
    """The pipeline of `EDITS` that edits with a transformer, and what it is called with, at any ``strength``."""
    kind, given, parts = EDITS[name]
    pipe = pipeline(kind, transformer, scheduler, **parts())
    if name == "Qwen-Image":  # it is given latents, for want of an encoder
        pipe.latent_channels = 4
        pipe.image_processor.config.vae_latent_channels = 4
    how = {key: value for key, value in PIPELINES[name][1].items() if name != "Wan 2.1" or key != "num_frames"}
    return pipe, how | given


def small_wan(transformer_2=None):
    """A whole random WanPipeline: videos of 16 x 16 from texts. transformer_2: that of Wan 2.2, for low noise."""
    _, tokenizer = small_t5()
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=11, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    vae = diffusers.AutoencoderKLWan(base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                                     latents_mean=[0.0] * 4, latents_std=[1.0] * 4)  # fmt: skip
    two = {"transformer_2": transformer_2, "boundary_ratio": 0.5} if transformer_2 is not None else {}
    return diffusers.WanPipeline(
        tokenizer, UMT5EncoderModel(config).eval(), vae.eval(), diffusers.FlowMatchEulerDiscreteScheduler(),
        TINY["Wan 2.1"].model(), **two,
    )  # fmt: skip
