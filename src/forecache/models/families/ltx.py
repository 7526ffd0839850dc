"""LTXVideoTransformer3DModel of diffusers (LTX-Video, arXiv 2501.00103), by branches: adaLN-single.

Self-attention, cross-attention to the text without norm and gate, MLP. Where a first frame is given, every token has a
timestep of its own. B batch, N tokens of all frames, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from forecache.models.blocks import Block, Branch, Gates, described
from forecache.models.families import adaln_single
from forecache.models.families.adaln_single import modulated
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
    mask: Tensor | None
    rotary: Any


NATIVE = "LTXVideoTransformerBlock"
"""The class of the blocks that are written out here."""


def fits(model: nn.Module) -> bool:
    return is_named(model, "LTXVideoTransformer3DModel")


def layout(model: Any) -> Layout:
    return from_blocks(model, described(model.transformer_blocks, NATIVE, _block), stacked=_stacked)


def _block(block: Any) -> Block:
    def condition(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Modulation:
        table = block.scale_shift_table
        time_BN6D = temb.reshape(len(hidden_states), temb.shape[1], len(table), -1)
        parts = (table[None, None].to(temb.device) + time_BN6D).unbind(dim=2)
        return Modulation._make((*parts, encoder_hidden_states, encoder_attention_mask, image_rotary_emb))

    def attention(x_BND: Tensor, c: Modulation) -> Tensor:
        normed = modulated(block.norm1(x_BND), c.shift_attn, c.scale_attn)
        return block.attn1(hidden_states=normed, encoder_hidden_states=None, image_rotary_emb=c.rotary)

    def cross(x_BND: Tensor, c: Modulation) -> Tensor:
        return block.attn2(x_BND, encoder_hidden_states=c.text, image_rotary_emb=None, attention_mask=c.mask)

    def mlp(x_BND: Tensor, c: Modulation) -> Tensor:
        return block.ff(modulated(block.norm2(x_BND), c.shift_mlp, c.scale_mlp))

    branches = (
        Branch("attn", attention, lambda c: c.gate_attn),
        Branch("cross", cross, None, tokenwise=True),
        Branch("mlp", mlp, lambda c: c.gate_mlp, tokenwise=True),
    )
    return Block(block, condition, branches, lambda: (block.scale_shift_table,), copies=True, native=NATIVE)


def _stacked(blocks: Sequence[Any]) -> Gates | None:
    return adaln_single.stacked([block.scale_shift_table for block in blocks], "temb", 2, cross=True)


FAMILIES = (Family("LTX-Video", "LTXVideoTransformer3DModel", "branches", ("attn", "cross", "mlp"), fits, layout),)
