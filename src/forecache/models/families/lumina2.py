"""Lumina2Transformer2DModel of diffusers (Lumina-Image 2.0, arXiv 2503.21758), by branches.

What attention and MLP give out is normed, then gated by the tanh of the modulation, so that features are normed ones.
Text and image are one sequence. B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from forecache.models.blocks import Block, Branch, Gate, Gates, described
from forecache.models.families import joint
from forecache.models.families.joint import Rows
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named


class Modulation(NamedTuple):
    """Vectors (B, D), of which tanh makes the gates, and the keyword arguments of the attention."""

    scale_attn: Tensor
    gate_attn: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor
    attention: Mapping[str, Any]


NATIVE = "Lumina2TransformerBlock"
"""The class of the blocks that are written out here."""


def fits(model: nn.Module) -> bool:
    return is_named(model, "Lumina2Transformer2DModel")


def layout(model: Any) -> Layout:
    return from_blocks(model, described(model.layers, NATIVE, _block), stacked=_stacked, rising=True)


def _block(block: Any) -> Block:
    def condition(
        hidden_states: Tensor, attention_mask: Tensor | None, image_rotary_emb: Any, temb: Tensor
    ) -> Modulation:
        parts_BD = block.norm1.linear(block.norm1.silu(temb)).chunk(4, dim=1)
        attention = {"attention_mask": attention_mask, "image_rotary_emb": image_rotary_emb}
        return Modulation._make((*parts_BD, attention))

    def attention(x_BND: Tensor, c: Modulation) -> Tensor:
        normed_BND = block.norm1.norm(x_BND) * (1 + c.scale_attn[:, None])
        return block.norm2(block.attn(hidden_states=normed_BND, encoder_hidden_states=normed_BND, **c.attention))

    def mlp(x_BND: Tensor, c: Modulation) -> Tensor:
        return block.ffn_norm2(block.feed_forward(block.ffn_norm1(x_BND) * (1 + c.scale_mlp.unsqueeze(1))))

    branches = (
        Branch("attn", attention, lambda c: c.gate_attn.unsqueeze(1).tanh()),
        Branch("mlp", mlp, lambda c: c.gate_mlp.unsqueeze(1).tanh(), tokenwise=True),
    )
    return Block(block, condition, branches, lambda: joint.weights(block.norm1), native=NATIVE, inlined=("norm1",))


def _stacked(blocks: Sequence[Any]) -> Gates | None:
    rows = [[Rows(block.norm1.linear, 4, (1, 3))] for block in blocks]
    return joint.gates_alone(rows, [_arranged] * len(blocks), 3)


def _arranged(gates: list[Tensor]) -> list[Gate]:
    return [gate.tanh() for gate in gates]


FAMILIES = (Family("Lumina 2", "Lumina2Transformer2DModel", "branches", ("attn", "mlp"), fits, layout),)
