"""Pipelines of sound: how each is built and called."""

from __future__ import annotations

from typing import Any

import torch

from pipelines.build import Case
from pipelines.parts import mask, normal, text
from pipelines.pools import Answer
from pipelines.transformers import TEXT

SOUND = {"prompt_embeds": text(), "negative_prompt_embeds": text(seed=4), "output_type": "latent"}
STABLE_3 = SOUND | {
    "encoder_attention_mask": mask(), "negative_encoder_attention_mask": mask(), "duration": 4.0,
    "audio": normal(1, 2, 64), "mask_start_seconds": 1.0, "mask_end_seconds": 2.0,
}  # fmt: skip


def durations(pipe: Any) -> None:
    """Stable Audio's start and end, which a small module embeds."""

    def encode(start: Any, end: Any, device: Any, guided: bool, batch: int) -> tuple[Any, Any]:
        number = batch * (2 if guided else 1)
        return text(number, seed=6, tokens=1), text(number, seed=7, tokens=1)

    pipe.encode_duration = encode


def longcat(pipe: Any) -> None:
    """What LongCat's encode_prompt gives: embeddings and their lengths."""
    pipe.encode_prompt = lambda prompt, device: (text(len(prompt)), torch.full((len(prompt),), 5))


EMBEDDER = {"duration_embedder": lambda: Answer(lambda seconds: normal(len(seconds), TEXT), dtype=torch.float32)}
PROJECTION = {
    "projection_model": lambda: Answer(text, config=Answer(text, min_value=0, max_value=512), dtype=torch.float32)
}
WAVES = {"num_waveforms_per_prompt": 2}

CASES: dict[str, Case] = {
    "StableAudioPipeline": Case(SOUND, prepare=durations, parts=PROJECTION, two=WAVES),
    "StableAudio3Pipeline": Case(STABLE_3, parts=EMBEDDER, two=WAVES),
    "StableAudio3AudioToAudioPipeline": Case(STABLE_3, parts=EMBEDDER, two=WAVES),
    "StableAudio3InpaintPipeline": Case(STABLE_3, parts=EMBEDDER, two=WAVES),
    "LongCatAudioDiTPipeline": Case(
        {"output_type": "latent", "audio_duration_s": 4.0}, {"prompt": "a"}, prepare=longcat, two={"prompt": ["a", "b"]}
    ),
    "AceStepPipeline": Case(not_built="its condition encoder and tokenizers of sound are large; no builder is written"),
}
