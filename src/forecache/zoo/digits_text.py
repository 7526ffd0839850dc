"""digits-text: a text-to-image pixel-space PixArt for two MNIST digits side by side, its text encoder and its judge."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from forecache.errors import InputError, MissingExtraError
from forecache.evaluate.extractors import Extractor
from forecache.evaluate.frechet import Moments
from forecache.evaluate.reference import Reference
from forecache.sampling.device import as_dtype
from forecache.sampling.loop import generators
from forecache.zoo import captions
from forecache.zoo.classifier import DigitClassifier, check_grey
from forecache.zoo.digits import load_classifier
from forecache.zoo.records import ASSETS, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from forecache.sampling.sources import Sampling

FOLDER = ASSETS / "digits-text"
HEIGHT, WIDTH = 24, 48
GUIDANCE = 2.0
"""The guidance scale of the card's figures and of the bundled statistics."""
CALL: Mapping[str, Any] = {
    "height": HEIGHT,
    "width": WIDTH,
    "use_resolution_binning": False,  # the bins are PixArt's own sizes
    "clean_caption": False,
    "max_sequence_length": captions.LENGTH,
}
"""The arguments of a call of `DigitsText.pipeline` besides prompts, steps and guidance: ``pipe(prompts, **CALL)``."""


@dataclass(frozen=True)
class DigitsText:
    """The model, a `forecache.sampling.sources.Source` for texts, and its judge.

    transformer: a diffusers PixArtTransformer2DModel
    scheduler: a DPMSolverMultistepScheduler
    text_encoder: a transformers T5EncoderModel
    tokenizer: a word-level tokenizer
    """

    transformer: Any
    scheduler: Any
    text_encoder: Any
    tokenizer: Any

    classes = 0
    test_set = "MNIST test"
    conditional = "second"
    guidance = GUIDANCE
    prompts = tuple(captions.captions(*pair)[0] for pair in captions.pairs(100))

    @cached_property
    def target(self) -> Any:
        """The pipeline that plans are applied to."""
        return self.pipeline()

    def label(self, name: str) -> int:
        raise InputError(f"digits-text makes images of texts, not of classes: use --prompt {name!r}.")

    def generate(
        self, labels: Sequence[str], how: Sampling, first_index: int = 0, on_step: Callable[[int], None] | None = None
    ) -> Tensor:
        """Images (B, 1, 24, 48) in [0, 1] of captions; image i depends on caption, seed and first_index + i alone."""
        images = self.target(
            list(labels),
            guidance_scale=how.guidance,
            num_inference_steps=how.num_steps,
            generator=generators(how.seed, how.indices(first_index, len(labels))),
            output_type="pt",
            callback=None if on_step is None else lambda step, *_: on_step(step),
            **CALL,
        ).images
        return images.float().cpu()

    @cached_property
    def classifier(self) -> DigitClassifier:
        """The MNIST classifier of `digits`, which judges both halves, float32 on the CPU."""
        return load_classifier()

    @cached_property
    def reference(self) -> Moments:
        """Moments of `features` on 10,000 canvases of MNIST test images, each of them once on each side."""
        return load_reference()

    def pipeline(self) -> Any:
        """A diffusers PixArtAlphaPipeline of these parts, with the identity as VAE; call it with `CALL`."""
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
        """The text features (B, 12, 64) and mask (B, 12) of prompts, as in the pipeline."""
        texts = [prompt.lower().strip() for prompt in prompts]
        ids, mask = (tokens.to(self.text_encoder.device) for tokens in captions.tokens(self.tokenizer, texts))
        return self.text_encoder(ids, attention_mask=mask)[0], mask

    def call_inputs(self, rows: int, seed: int = 0) -> dict[str, Any]:
        """The arguments of a call of the transformer on ``rows`` canvases of noise."""
        model, draw = self.transformer, torch.Generator().manual_seed(seed)
        noise = torch.randn(rows, model.config.in_channels, HEIGHT, WIDTH, generator=draw)
        text, mask = self.encode([captions.captions(*pair)[0] for pair in captions.pairs(rows)])
        return {
            "hidden_states": noise.to(model.device, model.dtype),
            "encoder_hidden_states": text,
            "timestep": torch.zeros(rows, dtype=torch.long, device=model.device),
            "encoder_attention_mask": mask,
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The judge's features (B, 256) of both halves of images (B, 1, 24, 48) in [0, 1]."""
        return _features(self.classifier, images)

    @torch.no_grad()
    def recognised(self, images: Tensor) -> Tensor:
        """The digits (B, 2), left and right, that the judge recognises in images (B, 1, 24, 48) in [0, 1]."""
        parts = images.split(500)
        return torch.cat([torch.stack([self.classifier(x).argmax(1) for x in halves(p * 2 - 1)], 1) for p in parts])


def halves(canvas: Tensor) -> tuple[Tensor, Tensor]:
    """The left and right half (B, 1, 24, 24) of canvases (B, 1, 24, 48) in [-1, 1]."""
    left, right = canvas.chunk(2, -1)
    return left, right


def load_reference() -> Moments:
    """Moments of the judge's features on 10,000 canvases of MNIST test images, each of them once on each side."""
    tensors = load_file(FOLDER / "reference.safetensors")
    return Moments(int(tensors["count"]), tensors["mean"].double(), tensors["covariance"].double())


def open_extractor(weights: str | Path | None = None, device: str = "cpu") -> Extractor:
    """The classifier on both halves of a canvas, layer pool (256), as an extractor of `forecache.evaluate`.

    Raises InputError if weights are given.
    """
    if weights is not None:
        raise InputError("The digits-text extractor comes with its weights: leave them out.")
    classifier = load_classifier().to(device)

    @torch.no_grad()
    def of(images: Tensor) -> dict[str, Tensor]:
        check_grey(images, HEIGHT, WIDTH, "digits-text")
        return {"pool": _features(classifier, images[:, :1].to(device).float() / 255)}

    return Extractor("digits-text", ("pool",), of)


def open_reference() -> Reference:
    """Canvases of the MNIST test set in the judge's features."""
    return Reference("digits-text", {"pool": load_reference()})


def _features(classifier: DigitClassifier, images: Tensor) -> Tensor:
    parts = images.split(500)
    return torch.cat([torch.cat([classifier.features(x) for x in halves(part * 2 - 1)], 1) for part in parts])


def load_digits_text(dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> DigitsText:
    """The bundled text-to-image model. Needs the extra ``diffusers``; no network."""
    return load_from(FOLDER, dtype, device)


def load_from(folder: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> DigitsText:
    """The model that ``python -m training.digits_text --export`` wrote to a folder."""
    try:
        from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
        from transformers import PreTrainedTokenizerFast, T5EncoderModel
    except ImportError as error:
        raise MissingExtraError(error.name or "diffusers", "diffusers", "The digits-text model") from error
    transformer: Any = PixArtTransformer2DModel.from_pretrained(folder / "transformer", **as_dtype(dtype))
    with _quiet():
        text_encoder: Any = T5EncoderModel.from_pretrained(folder / "text_encoder")
    return DigitsText(
        transformer.eval().to(device),
        DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler"),
        text_encoder.eval().to(device, dtype),
        PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress bar that transformers draws over a file of a few kilobytes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


RECORD = Record(
    name="digits-text",
    open=load_digits_text,
    extractor=open_extractor,
    reference=open_reference,
    metrics=("fid", "psnr", "ssim"),
    classes=DigitsText.classes,
    guidance=GUIDANCE,
    steps=20,
    ask="Texts, one a line",
    example="a seven left of a three\ntwo fives\na one and a two",
    prompts=DigitsText.prompts,
)
