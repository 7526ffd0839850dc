"""The cost of DiT-XL/2 by closed formulas."""

import torch
from diffusers import DiTTransformer2DModel

L, N, D, HIDDEN = 28, 256, 1152, 4 * 1152  # DiT-XL/2 at 256x256: blocks, tokens, width, width inside the MLP
FREQUENCIES, PATCH_IN, PATCH_OUT = 256, 2 * 2 * 4, 2 * 2 * 8
ATTENTION = 3 * N * D * D + 2 * N * N * D + N * D * D  # q, k, v; scores and values; projection
MLP = 2 * N * D * HIDDEN
EMBEDDERS = FREQUENCIES * D + D * D  # the timestep's MLP; diffusers has one in every block, labels are looked up
MODULATION = 6 * D * D
ENDS = (
    N * PATCH_IN * D + EMBEDDERS + 2 * D * D + N * D * PATCH_OUT
)  # patches in; block 0's embedders again, final layer
ALWAYS = L * (EMBEDDERS + MODULATION) + ENDS
CALL = L * (ATTENTION + MLP) + ALWAYS
SKIPPED = L * (EMBEDDERS + 2 * 2 * D * D) + 2 * ENDS
"""Of a guidance pair: of the modulation the two gates alone, and a call has one timestep, embedded once."""


def meta_dit(num_layers):
    """DiT-XL/2 with this many blocks, without data."""
    with torch.device("meta"):
        return DiTTransformer2DModel(
            num_attention_heads=16,
            attention_head_dim=72,
            in_channels=4,
            out_channels=8,
            num_layers=num_layers,
            sample_size=32,
            patch_size=2,
            num_embeds_ada_norm=1000,
        )
