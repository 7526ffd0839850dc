"""The quality of every image of a comparison: to the image of another column, and to its prompt."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forecache.errors import InputError, MissingExtraError, install_command
from forecache.evaluate.clip import USUAL, Clip, load_clip
from forecache.evaluate.images import EQUAL_DB, WINDOW, psnr, ssim
from forecache.evaluate.metrics import METRICS
from forecache.evaluate.perceptual import Perceptual, load_lpips

PAIRS = ("psnr", "ssim", "lpips")
NAMES = (*PAIRS, "clip")
ALEXNET = "alexnet-owt-7be5be79.pth"
"""The file under which torch.hub keeps the weights that LPIPS needs."""


@dataclass(frozen=True)
class Judges:
    """What measures the quality.

    names: metrics, of `NAMES`
    lpips, clip: the networks of these two; None where the metric is left out
    notes: a sentence for every metric that is left out
    """

    names: tuple[str, ...]
    lpips: Perceptual | None = None
    clip: Clip | None = None
    notes: tuple[str, ...] = ()


def open_judges(asked: Sequence[str] | None, texts: bool, size: int, device: str = "cpu") -> Judges:
    """The metrics that can be measured here.

    asked: names; None takes all whose networks are on this machine, and downloads nothing
    texts: whether images have prompts, which CLIP needs
    size: the smaller side of the images, in pixels

    Raises InputError for an unknown name, and for a metric that was asked for and cannot be measured.
    """
    names = list(NAMES if asked is None else dict.fromkeys(asked))
    if unknown := [name for name in names if name not in NAMES]:
        raise InputError(f"There is no metric {unknown[0]!r} of pairs and prompts; there are {', '.join(NAMES)}.")
    networks: dict[str, Any] = {}
    notes: list[str] = []
    reasons = {
        "ssim": "" if size >= WINDOW else f"images of {size} pixels are smaller than its window of {WINDOW}",
        "lpips": "" if asked is not None else _lpips_is_missing(),
        "clip": "images of classes have no prompts" if not texts else "" if asked is not None else _clip_is_missing(),
    }
    loaders: Mapping[str, Callable[[], Any]] = {
        "lpips": lambda: load_lpips(device=device), "clip": lambda: load_clip(device=device)
    }  # fmt: skip
    for name in list(names):
        reason = reasons.get(name, "")
        if not reason and name in loaders:
            try:
                networks[name] = loaders[name]()
            except (InputError, MissingExtraError) as error:
                reason = str(error).rstrip(".")
        if reason and asked is not None:
            raise InputError(f"{METRICS[name].title} cannot be measured: {reason}.")
        if reason:
            names.remove(name)
            notes.append(f"{METRICS[name].title.partition(',')[0]} is left out: {reason}.")
    return Judges(tuple(names), networks.get("lpips"), networks.get("clip"), tuple(notes))


def _lpips_is_missing() -> str:
    """The reason why LPIPS cannot be measured without a download; empty if it can."""
    if find_spec("lpips") is None or find_spec("torchvision") is None:
        return f"it needs {install_command('eval')}"
    if not (Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET).exists():
        return "its weights are not on this machine; --metrics psnr,ssim,lpips downloads them"
    return ""


def _clip_is_missing() -> str:
    """The reason why CLIP cannot be measured without a download; empty if it can."""
    if find_spec("transformers") is None or find_spec("huggingface_hub") is None:
        return f"it needs {install_command('eval')}"
    from huggingface_hub import try_to_load_from_cache

    is_here = any(isinstance(try_to_load_from_cache(USUAL, name), str | os.PathLike)
                  for name in ("model.safetensors", "pytorch_model.bin"))  # fmt: skip
    return "" if is_here else f"{USUAL} is not on this machine; --metrics psnr,ssim,clip downloads it"


def of_pair(judges: Judges, image: Tensor, reference: Tensor) -> dict[str, float | None]:
    """The metrics of an image and a reference, (1, 3, H, W) each, or means over the frames of videos (F, 3, H, W).

    PSNR is None where the two are equal.
    """
    values: dict[str, float | None] = {}
    if image.shape != reference.shape:
        raise InputError(f"Images of one size are compared; {tuple(image.shape)} and {tuple(reference.shape)} differ.")
    if "psnr" in judges.names:
        decibels = psnr(image[None], reference[None]).item()
        values["psnr"] = None if decibels == float("inf") else min(decibels, EQUAL_DB)
    if "ssim" in judges.names:
        values["ssim"] = ssim(image, reference).mean().item()
    if judges.lpips is not None:
        try:
            values["lpips"] = judges.lpips.of(image, reference).mean().item()
        except RuntimeError as error:
            raise InputError(
                f"LPIPS cannot look at images of {image.shape[-2]} x {image.shape[-1]} pixels: leave it out with "
                f"--metrics psnr,ssim. ({str(error).splitlines()[0]})"
            ) from error
    return values


def of_prompt(judges: Judges, image: Tensor, prompt: Any) -> dict[str, float]:
    """The CLIP score of an image, or the mean of a video's frames, and its prompt; empty without CLIP."""
    if judges.clip is None or not isinstance(prompt, str):
        return {}
    pixels = (image * 255).round().to(torch.uint8)
    return {"clip": judges.clip.score(pixels, [prompt] * len(pixels)).mean().item()}
