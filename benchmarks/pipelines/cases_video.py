"""Pipelines of videos: how each is built and called."""

from __future__ import annotations

from typing import Any

import torch

from pipelines.build import LEFT_OUT, Case
from pipelines.parts import autoencoder, mask, normal, picture, pooled, text, video
from pipelines.pools import VIDEO, Answer
from pipelines.transformers import POOLED, TEXT

SMALL = VIDEO | {"height": 32, "width": 32, "image": picture(32, 32), "video": video(5, 32, 32)}
TEXT_ONLY = VIDEO | {"image": LEFT_OUT, "video": LEFT_OUT}
HUNYUAN_15 = SMALL | {
    "prompt_embeds_2": text(seed=6), "negative_prompt_embeds_2": text(seed=7), "prompt_embeds_mask_2": mask(),
    "negative_prompt_embeds_mask_2": mask(),
}  # fmt: skip
KANDINSKY = SMALL | {
    "prompt_embeds_qwen": text(), "prompt_embeds_clip": pooled(), "negative_prompt_embeds_qwen": text(seed=4),
    "negative_prompt_embeds_clip": pooled(seed=5), "prompt_cu_seqlens": torch.tensor([0, 5], dtype=torch.int32),
    "negative_prompt_cu_seqlens": torch.tensor([0, 5], dtype=torch.int32),
}  # fmt: skip
LTX = VIDEO | {"num_frames": 9, "video": video(9), "height": 64, "width": 64}
LTX2 = LTX | {"stg_scale": 0.0, "modality_scale": 1.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0,
              "frame_rate": 24.0}  # fmt: skip


def connectors() -> Any:
    """LTX-2's connectors: the text for the picture and for the sound, and its mask."""

    def connect(embeds: Any, attention_mask: Any, **_: Any) -> tuple[Any, Any, Any]:
        return embeds, embeds, attention_mask

    return Answer(connect, dtype=torch.float32)


def hunyuan_image(pipe: Any) -> None:
    """The picture as HunyuanVideo-1.5 gets it from SigLIP."""
    pipe.encode_image = lambda image, batch_size, *_, **__: text(batch_size, width=POOLED)


def clip(pipe: Any) -> None:
    """The picture as Wan gets it from CLIP."""
    pipe.encode_image = lambda *_, **__: text(seed=9)


def framepack(pipe: Any) -> None:
    """The picture as FramePack gets it from SigLIP."""
    pipe.encode_image = lambda *_, **__: text(width=POOLED)


TORCHVISION = "needs torchvision, which is not installed"
ANY_FLOW = SMALL | {"video": LEFT_OUT, "negative_prompt_embeds": LEFT_OUT}
NEGATIVE = {"guidance_scale": 2.5, "negative_prompt_embeds": text(seed=4)}
WAN_IMAGE = {"in_channels": 12, "out_channels": 4}
CLIP = WAN_IMAGE | {"image_dim": TEXT, "added_kv_proj_dim": 32}
WAN_VAE = {"vae": lambda: autoencoder("AutoencoderKLWan")}
LTX2_PARTS = {"connectors": connectors}

CASES: dict[str, Case] = {
    "WanPipeline": Case(SMALL, parts={"transformer_2": None}),
    "WanImageToVideoPipeline": Case(SMALL, config=WAN_IMAGE, parts={"transformer_2": None}),
    "WanVideoToVideoPipeline": Case(SMALL),
    "WanVACEPipeline": Case(SMALL, parts={"transformer_2": None}),
    "WanAnimatePipeline": Case(SMALL),
    "LucyEditPipeline": Case(SMALL, config={"in_channels": 8}, parts={"transformer_2": None}),
    "ChronoEditPipeline": Case(SMALL, config=CLIP, prepare=clip),
    "SkyReelsV2Pipeline": Case(SMALL),
    "SkyReelsV2ImageToVideoPipeline": Case(SMALL, config=CLIP, prepare=clip),
    "SkyReelsV2DiffusionForcingPipeline": Case(SMALL, {"prompt": None, "base_num_frames": 5}),
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": Case(SMALL),
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": Case(
        SMALL, {"num_frames": 9, "overlap_history": 1, "base_num_frames": 9}
    ),
    "AnyFlowPipeline": Case(ANY_FLOW, guided=NEGATIVE),
    "AnyFlowFARPipeline": Case(ANY_FLOW | {"height": 64, "width": 64}, guided=NEGATIVE),
    "HeliosPipeline": Case(SMALL | {"image": LEFT_OUT, "video": LEFT_OUT}),
    "HeliosPyramidPipeline": Case(SMALL | {"image": LEFT_OUT, "video": LEFT_OUT}),
    "CogVideoXPipeline": Case(VIDEO),
    "CogVideoXImageToVideoPipeline": Case(VIDEO, config={"in_channels": 8}),
    "CogVideoXVideoToVideoPipeline": Case(VIDEO),
    "CogVideoXFunControlPipeline": Case(VIDEO, {"control_video": video()}, config={"in_channels": 8}),
    "ConsisIDPipeline": Case(VIDEO, config={"in_channels": 8}),
    "HunyuanVideoPipeline": Case(SMALL),
    "HunyuanVideoImageToVideoPipeline": Case(SMALL, config={"image_condition_type": "token_replace"}),
    "HunyuanSkyreelsImageToVideoPipeline": Case(SMALL, config={"in_channels": 8}),
    "HunyuanVideoFramepackPipeline": Case(SMALL, {"latent_window_size": 1}, prepare=framepack),
    "HunyuanVideo15Pipeline": Case(HUNYUAN_15),
    "HunyuanVideo15ImageToVideoPipeline": Case(
        HUNYUAN_15, prepare=hunyuan_image, config={"task_type": "i2v", "target_size": 64}
    ),
    "MochiPipeline": Case(
        SMALL
        | {
            "num_frames": 7,
            "prompt_embeds": text(width=16),
            "negative_prompt_embeds": text(seed=4, width=16),
            "prompt_attention_mask": mask().bool(),
            "negative_prompt_attention_mask": mask().bool(),
        },
        parts={"vae": None},
    ),
    "LTXPipeline": Case(LTX),
    "LTXImageToVideoPipeline": Case(LTX),
    "LTXConditionPipeline": Case(LTX | {"video": LEFT_OUT}),
    "LTXI2VLongMultiPromptPipeline": Case(
        not_built="encodes the prompts of its segments itself; no stand-in is written"
    ),
    "LTX2Pipeline": Case(LTX2, parts=LTX2_PARTS),
    "LTX2ImageToVideoPipeline": Case(LTX2, {"image_crf": 0}, parts=LTX2_PARTS),
    "LTX2ConditionPipeline": Case(LTX2, parts=LTX2_PARTS),
    "LTX2InContextPipeline": Case(LTX2, parts=LTX2_PARTS),
    "LTX2HDRPipeline": Case(LTX2, parts=LTX2_PARTS),
    "LTX2DFRPipeline": Case(not_built="needs a transformer of LTX-2.5, which marks key frames; no builder is written"),
    "LTX2DFRTemporalRefinePipeline": Case(not_built="refines what LTX2DFRPipeline gives out; no builder is written"),
    "LattePipeline": Case(VIDEO, {"video_length": 2}),
    "AllegroPipeline": Case(VIDEO),
    "EasyAnimatePipeline": Case(VIDEO),
    "EasyAnimateControlPipeline": Case(VIDEO, {"control_video": normal(1, 3, 5, 64, 64)}, config={"in_channels": 8}),
    "EasyAnimateInpaintPipeline": Case(
        VIDEO,
        {"video": normal(1, 3, 5, 64, 64).clip(0, 1), "mask_video": torch.ones(1, 1, 5, 64, 64) * 255},
        config={"in_channels": 9},
    ),
    "Kandinsky5T2VPipeline": Case(KANDINSKY),
    "Kandinsky5I2VPipeline": Case(KANDINSKY, config={"visual_cond": True}),
    "Kandinsky6TI2VAPipeline": Case(SMALL | {"image": LEFT_OUT}, {"sample_audio": False}),
    "Kandinsky6SRPipeline": Case(not_built="samples videos of at least 256 x 256, with a model of a fixed size"),
    "MotifVideoPipeline": Case(SMALL),
    "MotifVideoImage2VideoPipeline": Case(SMALL, {"prompt": None}),
    "SanaVideoPipeline": Case(SMALL, {"frames": 5}, parts=WAN_VAE),
    "SanaImageToVideoPipeline": Case(SMALL, {"frames": 5}, parts=WAN_VAE),
    "SanaWMPipeline": Case(SMALL),
    "SanaWMLTX2Refiner": Case(SMALL),
    "CosmosTextToWorldPipeline": Case(not_built=TORCHVISION),
    "CosmosVideoToWorldPipeline": Case(not_built=TORCHVISION),
    "Cosmos2TextToImagePipeline": Case(not_built=TORCHVISION),
    "Cosmos2VideoToWorldPipeline": Case(not_built=TORCHVISION),
    "Cosmos2_5_PredictBasePipeline": Case(not_built=TORCHVISION),
    "Cosmos2_5_TransferPipeline": Case(not_built=TORCHVISION),
}
