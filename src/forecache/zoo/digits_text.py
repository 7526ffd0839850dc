"""digits-text: a text-to-image pixel-space PixArt for two MNIST digits side by side, its text encoder and its judge."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from forecache._errors import MissingExtraError
from forecache.evaluate import Moments
from forecache.zoo import captions
from forecache.zoo.classifier import DigitClassifier, load_classifier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

FOLDER = Path(__file__).parent / "assets" / "digits-text"
HEIGHT, WIDTH = 24, 48
CALL: Mapping[str, Any] = {
    "height": HEIGHT,
    "width": WIDTH,
    "use_resolution_binning": False,  # the bins are PixArt's own sizes
    "clean_caption": False,
    "max_sequence_length": captions.LENGTH,
}
"""What `DigitsText.pipeline` is called with beside prompts, steps and guidance: ``pipe(prompts, **CALL)``."""


@dataclass(frozen=True)
class DigitsText:
    """The transformer (a diffusers PixArtTransformer2DModel), its DPM-Solver++, the T5 encoder, the tokenizer."""

    transformer: Any
    scheduler: Any
    text_encoder: Any
    tokenizer: Any

    @cached_property
    def classifier(self) -> DigitClassifier:
        """The MNIST classifier that judges each half, float32 on the CPU: the one of `digits`."""
        return load_classifier()

    @cached_property
    def reference(self) -> Moments:
        """Moments of `features` on 10,000 canvases of MNIST test images, each of them once on each side."""
        tensors = load_file(FOLDER / "reference.safetensors")
        return Moments(int(tensors["count"]), tensors["mean"].double(), tensors["covariance"].double())

    def pipeline(self) -> Any:
        """diffusers' PixArtAlphaPipeline of these parts, to be called with `CALL`; for a VAE it has the identity."""
        from diffusers import PixArtAlphaPipeline

        from forecache.zoo.pixels import Pixels

        pipe = PixArtAlphaPipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
            vae=Pixels(),  # pyright: ignore[reportArgumentType]
            transformer=self.transformer,
            scheduler=self.scheduler,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The prompts' features (B, 12, 64) and mask (B, 12), as the pipeline makes them."""
        texts = [prompt.lower().strip() for prompt in prompts]
        ids, mask = (each.to(self.text_encoder.device) for each in captions.tokens(self.tokenizer, texts))
        return self.text_encoder(ids, attention_mask=mask)[0], mask

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The judge's features (B, 256) of both halves of images (B, 1, 24, 48) in [0, 1]."""
        parts = images.split(500)
        return torch.cat([torch.cat([self.classifier.features(x) for x in halves(part * 2 - 1)], 1) for part in parts])

    @torch.no_grad()
    def recognised(self, images: Tensor) -> Tensor:
        """The digits (B, 2), left and right, that the judge sees in images (B, 1, 24, 48) in [0, 1]."""
        parts = images.split(500)
        return torch.cat([torch.stack([self.classifier(x).argmax(1) for x in halves(p * 2 - 1)], 1) for p in parts])


def halves(canvas: Tensor) -> tuple[Tensor, Tensor]:
    """The left and right half (B, 1, 24, 24) of canvases (B, 1, 24, 48) in [-1, 1]."""
    left, right = canvas.chunk(2, -1)
    return left, right


def load_digits_text(dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> DigitsText:
    """The bundled text-to-image model. Needs the extra ``diffusers``; no network."""
    return load_from(FOLDER, dtype, device)


def load_from(folder: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> DigitsText:
    """The model that `train_digits_text --export` wrote to a folder."""
    try:
        from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
        from transformers import PreTrainedTokenizerFast, T5EncoderModel
    except ImportError as error:
        raise MissingExtraError(error.name or "diffusers", "diffusers", "The digits-text model") from error
    transformer: Any = PixArtTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype)
    text_encoder: Any = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype)
    return DigitsText(
        transformer.eval().to(device),
        DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler"),
        text_encoder.eval().to(device),
        PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
    )
