"""Distances between two sets of images, pair by pair."""

from __future__ import annotations

import torch
from torch import Tensor

from forecache._errors import InputError


def psnr(images: Tensor, reference: Tensor, peak: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image to its reference: (B, C, H, W) twice -> (B,), inf where equal.

    peak: the range of the pixels, 1 for images in [0, 1].
    """
    if images.shape != reference.shape:
        raise InputError(
            f"PSNR compares images pair by pair; {tuple(images.shape)} and {tuple(reference.shape)} differ."
        )
    error_B = (images.double() - reference.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(peak**2 / error_B)
