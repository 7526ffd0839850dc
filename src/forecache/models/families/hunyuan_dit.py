"""HunyuanDiT2DModel of diffusers (HunyuanDiT, arXiv 2405.08748), by branches: no gates, long skips inside of blocks.

Attention, cross-attention to the texts, MLP. A block of the second half first mixes the output of one of the first half
into its stream: a linear map of both, whose output minus its input is one more site, ``skip``. B batch, N tokens, D
width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from forecache.models.blocks import Block, Branch, described
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named


class Condition(NamedTuple):
    """The other arguments of a block; skip: (B, N, D), the output of a block of the first half."""

    text: Tensor | None
    temb: Tensor | None
    rotary: Any
    skip: Any


NATIVE = "HunyuanDiTBlock"
"""The class of the blocks that are written out here."""


def fits(model: nn.Module) -> bool:
    return is_named(model, "HunyuanDiT2DModel")


def layout(model: Any) -> Layout:
    """Spans of skipped blocks end at blocks whose outputs the model keeps for later ones."""
    blocks = described(model.blocks, NATIVE, _block)
    return from_blocks(model, blocks, starts=range(1, len(blocks) // 2))


def _block(block: Any) -> Block:
    def condition(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        temb: Tensor | None = None,
        image_rotary_emb: Any = None,
        skip: Any = None,
    ) -> Condition:
        return Condition(encoder_hidden_states, temb, image_rotary_emb, skip)

    def skip(x_BND: Tensor, c: Condition) -> Tensor:
        return block.skip_linear(block.skip_norm(torch.cat([x_BND, c.skip], -1)))

    def attention(x_BND: Tensor, c: Condition) -> Tensor:
        return block.attn1(block.norm1(x_BND, c.temb), image_rotary_emb=c.rotary)

    def cross(x_BND: Tensor, c: Condition) -> Tensor:
        return block.attn2(block.norm2(x_BND), encoder_hidden_states=c.text, image_rotary_emb=c.rotary)

    def mlp(x_BND: Tensor, c: Condition) -> Tensor:
        return block.ff(block.norm3(x_BND))

    branches = (
        Branch("skip", skip, None, replaces=True),
        Branch("attn", attention, None),
        Branch("cross", cross, None),  # its queries are rotated by their positions
        Branch("mlp", mlp, None, tokenwise=True),
    )
    return Block(block, condition, branches[block.skip_linear is None :], native=NATIVE)


KINDS = ("skip", "attn", "cross", "mlp")
FAMILIES = (Family("HunyuanDiT", "HunyuanDiT2DModel", "branches", KINDS, fits, layout),)
