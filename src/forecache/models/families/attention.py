"""The attention that tokens receive in a diffusers module, since fused attention does not return its maps.

B batch, N tokens, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def received(attention: Any, x_BND: Tensor) -> Tensor:
    """The attention that every token receives from all queries, mean over heads (B, N): one map (B, N, N) at a time."""
    q_BHNd, k_BHNd = (
        part.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for part in (attention.to_q(x_BND), attention.to_k(x_BND))
    )
    if attention.norm_q is not None:
        q_BHNd, k_BHNd = attention.norm_q(q_BHNd), attention.norm_k(k_BHNd)
    total_BN = x_BND.new_zeros(x_BND.shape[:2], dtype=torch.float32)
    for q_BNd, k_BNd in zip(q_BHNd.unbind(1), k_BHNd.unbind(1), strict=True):
        map_BNN = (q_BNd @ k_BNd.transpose(1, 2) * attention.scale).softmax(-1, dtype=torch.float32)
        total_BN += map_BNN.sum(1)
    return total_BN / attention.heads
