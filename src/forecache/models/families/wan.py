"""WanTransformer3DModel of diffusers (Wan 2.1 and 2.2, arXiv 2503.20314), by branches: adaLN-single in float32.

Self-attention, cross-attention to text and image without a gate, MLP. B batch, N tokens of all frames, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from forecache.models.blocks import Block, Branch, Gates, described
from forecache.models.families import adaln_single
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named


class Modulation(NamedTuple):
    """adaLN-single's six vectors, (B, 1, D), or (B, N, D) where every token has a timestep of its own; the rest."""

    shift_attn: Tensor
    scale_attn: Tensor
    gate_attn: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor
    text: Tensor
    rotary: Any


NATIVE = "WanTransformerBlock"
"""The class of the blocks that are written out here."""


def fits(model: nn.Module) -> bool:
    return is_named(model, "WanTransformer3DModel")


def layout(model: Any) -> Layout:
    return from_blocks(model, described(model.blocks, NATIVE, _block), stacked=_stacked)


def _added(x_BND: Tensor, y_BND: Tensor, gate: Tensor) -> Tensor:
    return (x_BND.float() + y_BND * gate).type_as(x_BND)


def _block(block: Any) -> Block:
    def condition(hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: Any) -> Modulation:
        if temb.ndim == 4:
            parts = [part.squeeze(2) for part in (block.scale_shift_table.unsqueeze(0) + temb.float()).chunk(6, dim=2)]
        else:
            parts = (block.scale_shift_table + temb.float()).chunk(6, dim=1)
        return Modulation._make((*parts, encoder_hidden_states, rotary_emb))

    def attention(x_BND: Tensor, c: Modulation) -> Tensor:
        return block.attn1(_modulated(block.norm1, x_BND, c.shift_attn, c.scale_attn), None, None, c.rotary)

    def cross(x_BND: Tensor, c: Modulation) -> Tensor:
        return block.attn2(block.norm2(x_BND.float()).type_as(x_BND), c.text, None, None)

    def mlp(x_BND: Tensor, c: Modulation) -> Tensor:
        return block.ffn(_modulated(block.norm3, x_BND, c.shift_mlp, c.scale_mlp))

    branches = (
        Branch("attn", attention, lambda c: c.gate_attn, add=_added),
        Branch("cross", cross, None, tokenwise=True),
        Branch("mlp", mlp, lambda c: c.gate_mlp, tokenwise=True, add=_added),
    )
    return Block(
        block,
        condition,
        branches,
        lambda: (block.scale_shift_table,),
        copies=True,
        native=NATIVE,
    )


def _modulated(norm: nn.Module, x_BND: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return adaln_single.modulated(norm(x_BND.float()), shift, scale).type_as(x_BND)


def _stacked(blocks: Sequence[Any]) -> Gates | None:
    return adaln_single.stacked([block.scale_shift_table for block in blocks], "temb", 2, cross=True)


FAMILIES = (Family("Wan 2.1, 2.2", "WanTransformer3DModel", "branches", ("attn", "cross", "mlp"), fits, layout),)
