"""Pipelines of pictures: how each is built and called."""

from __future__ import annotations

import sys
from typing import Any

import diffusers
import torch

from pipelines.build import Case
from pipelines.parts import autoencoder, mask, normal, picture, pooled, stencil, text
from pipelines.pools import IMAGE, Answer, answering, count
from pipelines.transformers import TEXT, controlnet

ENCODER = {"text_encoder": lambda: None}


def bria(prompt: Any = None, **options: Any) -> tuple[Any, ...]:
    """What BriaFibo's encode_prompt gives: embeddings, ids, masks and layers, of the prompt and of the negative one."""
    number = count(options, prompt)
    layers = [text(number, seed=20 + layer) for layer in range(4)]
    ids, ones = torch.zeros(number, 5, 3), mask(number).float()
    wide = text(number, width=TEXT), text(number, seed=4)
    return wide[0], wide[1], ids, ones, ones, layers, layers


def ideogram(pipe: Any) -> None:
    def encode(prompt: Any, grid_h: int, grid_w: int, max_sequence_length: int, device: Any) -> tuple[Any, ...]:
        number = len(prompt) if isinstance(prompt, list) else 1
        features = torch.cat([text(number, tokens=max_sequence_length), torch.zeros(number, grid_h * grid_w, TEXT)], 1)
        lengths = [max_sequence_length] * number
        return features, *pipe._prepare_ids(lengths, grid_h, grid_w, max_sequence_length, device)

    pipe.encode_prompt = encode


def longcat(pipe: Any) -> None:
    pipe._encode_prompt = lambda prompt, *image: text(len(prompt), seed=4 if prompt[0] else 1)


def small_buckets(pipe: Any) -> None:
    """Kandinsky's sizes, which are about 1024 x 1024, small."""
    pipe.resolutions = [(64, 64)]


def small_joy(pipe: Any) -> None:
    """JoyImage's sizes, which are about 1024 x 1024, small."""
    pipe.vae_image_processor.get_default_height_width = lambda *_: (64, 64)


def small_area(pipe: Any) -> None:
    """Sizes of Qwen-Image's edits, whose area is 1024 x 1024, small."""
    module = sys.modules[type(pipe).__module__]
    three = "Layered" not in type(pipe).__name__ and "Plus" not in type(pipe).__name__
    vars(module)["calculate_dimensions"] = lambda *_: (64, 64, None) if three else (64, 64)


def kl(**changes: Any) -> Any:
    return lambda: autoencoder("AutoencoderKL", **changes)


HUNYUAN_DIT = IMAGE | {
    "prompt_embeds_2": text(seed=6, width=16), "negative_prompt_embeds_2": text(seed=7, width=16),
    "prompt_attention_mask_2": mask(), "negative_prompt_attention_mask_2": mask(),
}  # fmt: skip
HUNYUAN_IMAGE = IMAGE | {
    "prompt_embeds_2": text(seed=6), "negative_prompt_embeds_2": text(seed=7), "prompt_embeds_mask_2": mask(),
    "negative_prompt_embeds_mask_2": mask(),
}  # fmt: skip
HIDREAM = IMAGE | {
    "prompt_embeds_t5": text(), "negative_prompt_embeds_t5": text(seed=4),
    "prompt_embeds_llama3": normal(2, 1, 5, TEXT), "negative_prompt_embeds_llama3": normal(2, 1, 5, TEXT, seed=6),
}  # fmt: skip
KANDINSKY = IMAGE | {
    "prompt_embeds_qwen": text(), "prompt_embeds_clip": pooled(), "negative_prompt_embeds_qwen": text(seed=4),
    "negative_prompt_embeds_clip": pooled(seed=5), "prompt_cu_seqlens": torch.tensor([0, 5], dtype=torch.int32),
    "negative_prompt_cu_seqlens": torch.tensor([0, 5], dtype=torch.int32),
}  # fmt: skip
SANA = IMAGE | {"height": 32, "width": 32, "timesteps": None, "intermediate_timesteps": None}

BEFORE_UNET = "a prior before UNets: no builder is written; the Kandinsky priors are of the same class"


def prior(pipe: Any) -> None:
    """Stand-ins for a prior's text encoder, and for its picture of nothing."""

    def encode(prompt: Any, device: Any, per_prompt: int, guided: bool, *_: Any) -> tuple[Any, ...]:
        number = per_prompt * (2 if guided else 1)
        return normal(number, 8), normal(number, 5, 8), mask(number).bool()

    pipe._encode_prompt = encode
    pipe.get_zero_embed = lambda *_, **__: torch.zeros(1, 8)
    pipe._encode_image = lambda image, device, number: normal(number, 8)


PRIOR: dict[str, Any] = {
    "pool": {"prompt": "a", "image": picture(), "output_type": "pt"},
    "prepare": prior,
}

CASES: dict[str, Case] = {
    "DiTPipeline": Case(
        IMAGE,
        {"class_labels": [3], "output_type": "np"},
        guided={"guidance_scale": 4.0},
        two={"class_labels": [3, 7]},
    ),
    "PixArtAlphaPipeline": Case(IMAGE),
    "PixArtSigmaPipeline": Case(IMAGE),
    "PixArtSigmaPAGPipeline": Case(IMAGE, settings={"pag_applied_layers": "blocks.1"}),
    "StableDiffusion3Pipeline": Case(IMAGE),
    "StableDiffusion3Img2ImgPipeline": Case(IMAGE),
    "StableDiffusion3InpaintPipeline": Case(
        IMAGE, config={"in_channels": 16, "out_channels": 16}, parts={"vae": kl(latent_channels=16)}
    ),
    "StableDiffusion3PAGPipeline": Case(IMAGE, settings={"pag_applied_layers": "blocks.1"}),
    "StableDiffusion3PAGImg2ImgPipeline": Case(IMAGE, settings={"pag_applied_layers": "blocks.1"}),
    "AuraFlowPipeline": Case(IMAGE),
    "SanaPipeline": Case(SANA),
    "SanaPAGPipeline": Case(SANA, settings={"pag_applied_layers": "transformer_blocks.0"}),
    "LuminaPipeline": Case(IMAGE),
    "Lumina2Pipeline": Case(IMAGE),
    "HunyuanDiTPipeline": Case(HUNYUAN_DIT),
    "HunyuanDiTPAGPipeline": Case(HUNYUAN_DIT, settings={"pag_applied_layers": "blocks.1"}),
    "CogView3PlusPipeline": Case(IMAGE),
    "CogView4Pipeline": Case(IMAGE),
    "CogView4ControlPipeline": Case(IMAGE, config={"in_channels": 8}),
    "ChromaPipeline": Case(
        IMAGE | {"prompt_attention_mask": mask().bool(), "negative_prompt_attention_mask": mask().bool()}
    ),
    "ChromaImg2ImgPipeline": Case(IMAGE),
    "ChromaInpaintPipeline": Case(IMAGE),
    "BriaPipeline": Case(IMAGE),
    "BriaFiboPipeline": Case(
        IMAGE,
        {"prompt": "{}"},
        prepare=answering(encode_prompt=bria),
        parts={"text_encoder": lambda: Answer(bria, dtype=torch.float32)},
    ),
    "BriaFiboEditPipeline": Case(
        IMAGE,
        {"prompt": '{"edit_instruction": "a"}'},
        prepare=answering(encode_prompt=bria),
        parts={"text_encoder": lambda: Answer(bria, dtype=torch.float32)},
    ),
    "BriaFibo2Pipeline": Case(IMAGE | {"image": None, "mask_image": None}),
    "HiDreamImagePipeline": Case(HIDREAM),
    "OvisImagePipeline": Case(IMAGE),
    "PRXPipeline": Case(IMAGE),
    "PRXPixelPipeline": Case(IMAGE),
    "Krea2Pipeline": Case(
        IMAGE
        | {
            "prompt_embeds": normal(1, 5, 2, TEXT),
            "negative_prompt_embeds": normal(1, 5, 2, TEXT, seed=4),
            "prompt_embeds_mask": mask().bool(),
            "negative_prompt_embeds_mask": mask().bool(),
        }
    ),
    "LongCatImagePipeline": Case(
        IMAGE,
        {
            "prompt": ["a"],
            "negative_prompt": [""],
            "enable_prompt_rewrite": False,
            "prompt_embeds": None,
            "negative_prompt_embeds": None,
        },
        prepare=longcat,
    ),
    "LongCatImageEditPipeline": Case(IMAGE),
    "GlmImagePipeline": Case(IMAGE | {"prior_token_ids": torch.arange(16)[None] % 16, "image": None}),
    "ErnieImagePipeline": Case(IMAGE | {"prompt_embeds": [text()[0]], "negative_prompt_embeds": [text(seed=4)[0]]}),
    "HunyuanImagePipeline": Case(HUNYUAN_IMAGE),
    "HunyuanImageRefinerPipeline": Case(IMAGE),
    "Ideogram4Pipeline": Case(
        IMAGE,
        {"prompt": "a", "max_sequence_length": 5, "guidance_schedule": None, "guidance_scale": 3.0},
        prepare=ideogram,
    ),
    "JoyImageEditPipeline": Case(IMAGE, prepare=small_joy),
    "JoyImageEditPlusPipeline": Case(not_built="encodes pictures and text with Qwen3-VL; no stand-in is written"),
    "NucleusMoEImagePipeline": Case(IMAGE),
    "Kandinsky5T2IPipeline": Case(KANDINSKY, prepare=small_buckets),
    "Kandinsky5I2IPipeline": Case(KANDINSKY, config={"visual_cond": True}, prepare=small_buckets),
    "QwenImagePipeline": Case(IMAGE),
    "QwenImageImg2ImgPipeline": Case(IMAGE),
    "QwenImageInpaintPipeline": Case(IMAGE),
    "QwenImageEditPipeline": Case(IMAGE, prepare=small_area),
    "QwenImageEditInpaintPipeline": Case(IMAGE, prepare=small_area),
    "QwenImageEditPlusPipeline": Case(IMAGE, prepare=small_area),
    "QwenImageLayeredPipeline": Case(
        IMAGE, prepare=small_area, parts={"text_encoder": lambda: Answer(text, dtype=torch.float32)}
    ),
    "QwenImage21Pipeline": Case(IMAGE),
    "ZImagePipeline": Case(IMAGE | {"prompt_embeds": [text()[0]], "negative_prompt_embeds": [text(seed=4)[0]]}),
    "ZImageImg2ImgPipeline": Case(IMAGE | {"prompt_embeds": [text()[0]], "negative_prompt_embeds": [text(seed=4)[0]]}),
    "ZImageInpaintPipeline": Case(IMAGE | {"prompt_embeds": [text()[0]], "negative_prompt_embeds": [text(seed=4)[0]]}),
    "ZImageOmniPipeline": Case(
        IMAGE | {"prompt_embeds": [[text()[0]]], "negative_prompt_embeds": [[text(seed=4)[0]]], "image": None}
    ),
    "SanaSprintPipeline": Case(
        SANA,
        parts={"scheduler": diffusers.SCMScheduler},
        config={"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"},
    ),
    "SanaSprintImg2ImgPipeline": Case(
        SANA,
        parts={"scheduler": diffusers.SCMScheduler},
        config={"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"},
    ),
    "StableDiffusion3ControlNetPipeline": Case(IMAGE),
    "StableDiffusion3ControlNetInpaintingPipeline": Case(
        IMAGE,
        {"control_mask": stencil()},
        parts={"controlnet": lambda: controlnet("SD3ControlNetModel", extra_conditioning_channels=1)},
    ),
    "HunyuanDiTControlNetPipeline": Case(HUNYUAN_DIT),
    "SanaControlNetPipeline": Case(SANA),
    "QwenImageControlNetPipeline": Case(IMAGE),
    "QwenImageControlNetInpaintPipeline": Case(
        IMAGE,
        {"control_mask": stencil()},
        parts={"controlnet": lambda: controlnet("QwenImageControlNetModel", extra_condition_channels=4)},
    ),
    "ZImageControlNetPipeline": Case(
        IMAGE | {"prompt_embeds": [text()[0]], "negative_prompt_embeds": [text(seed=4)[0]]}
    ),
    "ZImageControlNetInpaintPipeline": Case(
        IMAGE | {"prompt_embeds": [text()[0]], "negative_prompt_embeds": [text(seed=4)[0]]},
        parts={"controlnet": lambda: controlnet("ZImageControlNetModel", control_in_dim=9)},
    ),
    "OmniGenPipeline": Case(not_built="needs torchvision, which is not installed"),
    "KandinskyPriorPipeline": Case(**PRIOR),
    "KandinskyV22PriorPipeline": Case(**PRIOR),
    "KandinskyV22PriorEmb2EmbPipeline": Case(**PRIOR),
    "UnCLIPPipeline": Case(not_built=BEFORE_UNET),
    "StableUnCLIPPipeline": Case(not_built=BEFORE_UNET),
    "ShapEPipeline": Case(not_built="renders shapes, and its renderer has no small form"),
    "ShapEImg2ImgPipeline": Case(not_built="renders shapes, and its renderer has no small form"),
    "SpectrogramDiffusionPipeline": Case(not_built="needs note_seq, which is not installed"),
    "VQDiffusionPipeline": Case(not_built="samples tokens of a codebook with its own scheduler; no builder is written"),
}
