"""SanaTransformer2DModel and SanaVideoTransformer3DModel of diffusers (Sana, arXiv 2410.10629), by branches.

Linear self-attention, cross-attention to the text without norm and gate, and a Mix-FFN, whose convolution over the grid
of tokens mixes neighbours, so that some tokens of it alone cannot be computed. B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from forecache.models.blocks import Block, Branch, Gates, described
from forecache.models.families import adaln_single
from forecache.models.families.adaln_single import modulated
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named


class Modulation(NamedTuple):
    """adaLN-single's six vectors, (B, 1, D), or (B, N, D) where every token has a timestep of its own; the rest.

    attention: keyword arguments of the self-attention; cross: of the cross-attention. grid: height and width, and
    frames before them, in tokens
    """

    shift_attn: Tensor
    scale_attn: Tensor
    gate_attn: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor
    attention: Mapping[str, Any]
    cross: Mapping[str, Any]
    grid: tuple[int, ...]


IMAGES, VIDEOS = "SanaTransformerBlock", "SanaVideoTransformerBlock"
"""The classes of the blocks that are written out here."""


def layout_of_images(model: Any) -> Layout:
    return from_blocks(model, described(model.transformer_blocks, IMAGES, _of_images), stacked=_stacked)


def layout_of_videos(model: Any) -> Layout:
    return from_blocks(model, described(model.transformer_blocks, VIDEOS, _of_videos), stacked=_stacked)


def _of_images(block: Any) -> Block:
    def condition(
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Any = None,
        height: Any = None,
        width: Any = None,
    ) -> Modulation:
        parts = (block.scale_shift_table[None] + timestep.reshape(len(hidden_states), 6, -1)).chunk(6, dim=1)
        cross = {"encoder_hidden_states": encoder_hidden_states, "attention_mask": encoder_attention_mask}
        return Modulation._make((*parts, {}, cross, (height, width)))

    def mix(x_BND: Tensor, c: Modulation) -> Tensor:
        normed = modulated(block.norm2(x_BND), c.shift_mlp, c.scale_mlp)
        output_BDHW = block.ff(normed.unflatten(1, c.grid).permute(0, 3, 1, 2))
        return output_BDHW.flatten(2, 3).permute(0, 2, 1)

    return _described(block, condition, mix, IMAGES)


def _of_videos(block: Any) -> Block:
    def condition(
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Any = None,
        frames: Any = None,
        height: Any = None,
        width: Any = None,
        rotary_emb: Any = None,
    ) -> Modulation:
        time_BN6D = timestep.reshape(len(hidden_states), timestep.shape[1], 6, -1)
        parts = (block.scale_shift_table[None, None] + time_BN6D).unbind(dim=2)
        cross = {"encoder_hidden_states": encoder_hidden_states, "attention_mask": encoder_attention_mask}
        return Modulation._make((*parts, {"rotary_emb": rotary_emb}, cross, (frames, height, width)))

    def mix(x_BND: Tensor, c: Modulation) -> Tensor:
        normed = modulated(block.norm2(x_BND), c.shift_mlp, c.scale_mlp)
        return block.ff(normed.unflatten(1, c.grid)).flatten(1, 3)

    return _described(block, condition, mix, VIDEOS)


def _described(block: Any, condition: Any, mix: Any, native: str) -> Block:
    def attention(x_BND: Tensor, c: Modulation) -> Tensor:
        return block.attn1(modulated(block.norm1(x_BND), c.shift_attn, c.scale_attn).to(x_BND.dtype), **c.attention)

    def cross(x_BND: Tensor, c: Modulation) -> Tensor:
        return block.attn2(x_BND, **c.cross)

    branches = (
        Branch("attn", attention, lambda c: c.gate_attn, add=_added),
        Branch("cross", cross, lambda c: 1.0, tokenwise=True, add=_added_before),
        Branch("mlp", mix, lambda c: c.gate_mlp, add=_added),
    )
    return Block(block, condition, branches, lambda: (block.scale_shift_table,), copies=True, native=native)


def _added(x_BND: Tensor, y_BND: Tensor, gate: Tensor) -> Tensor:
    """x + gate * y. A sum lies in memory as its first term does, and half floats are rounded by how tokens lie."""
    return x_BND + gate * y_BND


def _added_before(x_BND: Tensor, y_BND: Tensor, gate: float) -> Tensor:
    """y + x, which lies as y does."""
    return y_BND + x_BND


def _stacked(blocks: Sequence[Any]) -> Gates | None:
    return adaln_single.stacked([block.scale_shift_table for block in blocks], "timestep", 4, cross=True)


def _family(name: str, kind: str, layout: Any) -> Family:
    def fits(model: nn.Module) -> bool:
        return is_named(model, kind)

    return Family(name, kind, "branches", ("attn", "cross", "mlp"), fits, layout)


FAMILIES = (
    _family("Sana", "SanaTransformer2DModel", layout_of_images),
    _family("Sana Video", "SanaVideoTransformer3DModel", layout_of_videos),
)
