"""Pixel metrics of pairs of images or videos: PSNR and SSIM.

B images, F frames, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from forecache.errors import InputError

EQUAL_DB = 100.0
"""Most dB of an image in a mean: an identical one has infinitely many, and would hide all others."""

WINDOW, SIGMA = 11, 1.5


def psnr(images: Tensor, reference: Tensor, peak: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of every image to its reference: (B, C, H, W) twice -> (B,), inf if equal.

    Of videos (B, F, C, H, W) it is the mean over the frames, to which an equal frame adds `EQUAL_DB`; inf if all are.

    peak: the range of the pixels, 1 for images in [0, 1].
    """
    _check_pairs("PSNR", images, reference)
    if images.ndim == 5:
        of_frames_BF = psnr(images.flatten(0, 1), reference.flatten(0, 1), peak).unflatten(0, images.shape[:2])
        means_B = of_frames_BF.clamp_max(EQUAL_DB).mean(1)
        return means_B.masked_fill(of_frames_BF.isinf().all(1), torch.inf)
    error_B = (images.double() - reference.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(peak**2 / error_B)


def ssim(images: Tensor, reference: Tensor, peak: float = 1.0) -> Tensor:
    """Structural similarity (Wang et al. 2004) of every image to its reference: (B, C, H, W) twice -> (B,), 1 if equal.

    As published: a Gaussian window of 11 x 11 pixels and width 1.5, K1 = 0.01, K2 = 0.03; only windows that lie inside
    the image count, and the mean is over these and the channels. Images are at least 11 x 11. Of videos
    (B, F, C, H, W) it is the mean over the frames.
    """
    _check_pairs("SSIM", images, reference)
    if images.ndim == 5:
        return ssim(images.flatten(0, 1), reference.flatten(0, 1), peak).unflatten(0, images.shape[:2]).mean(1)
    if min(images.shape[-2:]) < WINDOW:
        raise InputError(f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels; these are {_size(images)}.")
    x, y = (part.double().flatten(0, 1)[:, None] for part in (images, reference))
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x = _blurred(x * x) - mean_x.square()
    var_y = _blurred(y * y) - mean_y.square()
    cov = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    light = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    shape = (2 * cov + c2) / (var_x + var_y + c2)
    return (light * shape).unflatten(0, images.shape[:2]).flatten(1).mean(1)


def _blurred(x: Tensor) -> Tensor:
    """Gaussian means over the windows inside the image."""
    offset = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weight = torch.exp(-offset.square() / (2 * SIGMA**2))
    weight = weight / weight.sum()
    return conv2d(conv2d(x, weight.view(1, 1, 1, -1)), weight.view(1, 1, -1, 1))


def _check_pairs(name: str, images: Tensor, reference: Tensor) -> None:
    if images.shape != reference.shape:
        raise InputError(
            f"{name} compares images pair by pair; {tuple(images.shape)} and {tuple(reference.shape)} differ."
        )


def _size(images: Tensor) -> str:
    return f"{images.shape[-2]} x {images.shape[-1]}"
