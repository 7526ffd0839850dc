"""PixArtTransformer2DModel of diffusers (PixArt-alpha, arXiv 2310.00426, and Sigma), by branches.

Self-attention, cross-attention to the caption without a gate, MLP. The modulation of all blocks is one, made from the
timestep; a block adds a table of its own to it. B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from forecache.models.blocks import Block, Branch, Gates, described
from forecache.models.families import adaln_single
from forecache.models.families.attention import received as received_by
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named


class Modulation(NamedTuple):
    """adaLN-single's six vectors, each (B, 1, D), and the keyword arguments of the two attentions."""

    shift_attn: Tensor
    scale_attn: Tensor
    gate_attn: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor
    attention: Mapping[str, Any]
    cross: Mapping[str, Any]


NATIVE = "BasicTransformerBlock"
"""The class of the blocks that are written out here."""


def fits(model: Any) -> bool:
    return is_named(model, "PixArtTransformer2DModel") and model.config.attention_type == "default"


def layout(model: Any) -> Layout:
    blocks = described(model.transformer_blocks, NATIVE, _block)
    return from_blocks(model, blocks, stacked=_stacked)


def _block(block: Any) -> Block:
    def condition(
        x_BND: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Any = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
    ) -> Modulation:
        parts_B1D = (block.scale_shift_table[None] + timestep.reshape(len(x_BND), 6, -1)).chunk(6, dim=1)
        more = cross_attention_kwargs or {}
        attention = {"attention_mask": attention_mask, **more}
        cross = {"encoder_hidden_states": encoder_hidden_states, "attention_mask": encoder_attention_mask, **more}
        return Modulation._make((*parts_B1D, attention, cross))

    def attention(x_BND: Tensor, c: Modulation) -> Tensor:
        return block.attn1(block.norm1(x_BND) * (1 + c.scale_attn) + c.shift_attn, **c.attention)

    def received(x_BND: Tensor, c: Modulation) -> Tensor:
        return received_by(block.attn1, block.norm1(x_BND) * (1 + c.scale_attn) + c.shift_attn)

    def cross(x_BND: Tensor, c: Modulation) -> Tensor:
        return block.attn2(x_BND, **c.cross)  # the published model has no norm here

    def mlp(x_BND: Tensor, c: Modulation) -> Tensor:
        return block.ff(block.norm2(x_BND) * (1 + c.scale_mlp) + c.shift_mlp)

    branches = (
        Branch("attn", attention, lambda c: c.gate_attn, received=received),
        Branch("cross", cross, None, tokenwise=True),
        Branch("mlp", mlp, lambda c: c.gate_mlp, tokenwise=True),
    )
    return Block(
        block,
        condition,
        branches if block.attn2 is not None else branches[::2],
        lambda: (block.scale_shift_table,),
        copies=True,
        native=NATIVE,
    )


def _stacked(blocks: Sequence[Any]) -> Gates | None:
    crosses = {block.attn2 is not None for block in blocks}
    if len(crosses) != 1:
        return None
    return adaln_single.stacked([block.scale_shift_table for block in blocks], "timestep", 4, crosses.pop())


FAMILIES = (
    Family("PixArt-alpha, Sigma", "PixArtTransformer2DModel", "branches", ("attn", "cross", "mlp"), fits, layout),
)
