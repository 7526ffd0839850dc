"""Features rounded to a smaller dtype, and back; in eight bits, each vector with a scale of its own.

A float8 spans from about 2^-9 to 448. So a vector of features, the last dimension of a tensor, is divided by a scale
that brings its largest entry to the end of that range. The scale, four bytes, lies behind the vector in one tensor of
bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE_BYTES = 4


def is_scaled(dtype: torch.dtype | None) -> bool:
    """Whether features in this dtype have scales: those of eight bits."""
    return dtype is not None and dtype.itemsize == 1


def is_known(dtype: torch.dtype) -> bool:
    """Whether torch rounds to this dtype and back here, with sign and at least one bit behind the point."""
    sample = torch.tensor([-1.5, 0.0, 1.5])
    try:
        return torch.equal(sample.to(dtype).float(), sample)
    except (RuntimeError, TypeError):  # a dtype without a conversion on this machine
        return False


def rounded(feature: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The feature (..., D) in ``dtype``; in eight bits (..., D + 4) bytes. None leaves it as it is."""
    if dtype is None or not is_scaled(dtype):
        return feature if dtype is None else feature.to(dtype)
    wide = feature.float()
    largest = wide.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest / torch.finfo(dtype).max, torch.ones_like(largest))
    return torch.cat([(wide / scale).to(dtype).view(torch.uint8), scale.view(torch.uint8)], -1)


def restored(stored: Tensor, dtype: torch.dtype, kept_in: torch.dtype | None) -> Tensor:
    """What `rounded` made, in the dtype that it had; kept_in: the dtype that it was rounded to."""
    if kept_in is None or not is_scaled(kept_in):
        return stored.to(dtype)
    numbers = stored[..., :-SCALE_BYTES].view(kept_in)
    scale = stored[..., -SCALE_BYTES:].contiguous().view(torch.float32)
    return (numbers.float() * scale).to(dtype)


def stored_bytes(numbers: int, vectors: int, dtype: torch.dtype) -> int:
    """Bytes of a feature of so many numbers, in so many vectors of its last dimension, rounded to a dtype."""
    return numbers * dtype.itemsize + (vectors * SCALE_BYTES if is_scaled(dtype) else 0)
