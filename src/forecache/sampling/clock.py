"""Seconds that a call takes, the GPU waited for where there is one."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor


def timed(generate: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """The result and the seconds it took, waiting for the GPU where there is one."""
    _synchronize()
    started = time.perf_counter()
    images = generate()
    _synchronize()
    return images, time.perf_counter() - started


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
