"""The C allocator of a CPU, told to keep what is freed."""

from __future__ import annotations

import torch


def settle() -> None:
    """Let freed memory be used again instead of given back.

    glibc returns memory to the system when more lies free than twice the largest block that it saw freed, up to 32 MiB.
    Features come and go at just such sizes, and their pages would be fetched again at every step. One large block that
    comes and goes settles it.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
