"""CLIP (Radford et al., arXiv 2103.00020): features of images, and the similarity of an image and its text.

B images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forecache.errors import InputError, MissingExtraError
from forecache.evaluate.imagesets import Folder, ImageSet
from forecache.io import files

USUAL = "openai/clip-vit-base-patch16"


@dataclass(frozen=True)
class Clip:
    """A CLIP model and its processor; images are uint8, (B, 3, H, W)."""

    name: str
    model: Any
    processor: Any

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """CLIP score (B,) of each image and its prompt (arXiv 2104.08718): 100 times their cosine, at least 0."""
        if len(prompts) != len(images):
            raise InputError(f"There are {len(prompts)} prompts for {len(images)} images: give one for every image.")
        inputs = self.processor(
            text=list(prompts), images=list(images), return_tensors="pt", padding=True, truncation=True
        )
        output = self.model(**inputs.to(self.model.device))
        return 100 * torch.cosine_similarity(output.image_embeds, output.text_embeds).clamp_min(0).cpu()

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The projected features (B, F) of images, not normalised."""
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.model.device)
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)


def read_prompts(path: str | Path, images: ImageSet) -> tuple[str, ...]:
    """The prompt of every image: lines of a text file in the order of the images, or a JSON object by name.

    Names are paths in the folder, with or without suffix. Raises InputError with the name of an image without a prompt.
    """
    path = Path(path)
    try:
        data = files.contents(path, 16 * 2**20)
        text = data.decode("utf-8")
        by_name = files.parse(data) if path.suffix == ".json" else None
    except (OSError, ValueError) as error:
        raise InputError(f"The prompts at {path} cannot be read: {error}.") from error
    if by_name is None:
        prompts = tuple(text.splitlines())
        if len(prompts) != len(images):
            raise InputError(f"{path} has {len(prompts)} lines for {len(images)} images: give one prompt a line.")
        return prompts
    if not isinstance(by_name, dict) or not isinstance(images, Folder):
        raise InputError(f"{path} gives prompts by name, which only a folder of images has: an object of strings.")
    names = [file.relative_to(images.root).as_posix() for file in images.files]
    prompts = [by_name.get(name, by_name.get(key)) for name, key in zip(names, images.keys, strict=True)]
    if missing := [name for name, prompt in zip(names, prompts, strict=True) if not isinstance(prompt, str)]:
        raise InputError(f"{path} has no prompt for {missing[0]} ({len(missing)} of {len(images)} images have none).")
    return tuple(map(str, prompts))


def load_clip(name: str = USUAL, device: str = "cpu") -> Clip:
    """A CLIP model from the hub, or from a folder. Needs the extra ``eval`` (or ``diffusers``)."""
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError as error:
        raise MissingExtraError("transformers", "diffusers", "The CLIP score") from error
    try:
        model: Any = CLIPModel.from_pretrained(name)
        return Clip(name, model.eval().to(device), CLIPProcessor.from_pretrained(name))
    except (OSError, ValueError) as error:
        raise InputError(f"The CLIP model {name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
