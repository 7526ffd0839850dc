"""diffusers' DiTTransformer2DModel (DiT, arXiv 2212.09748): two adaLN-Zero branches a block, attention and MLP.

B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from forecache.models.blocks import Block, Branch, described
from forecache.models.families import adaln_zero
from forecache.models.families.attention import received as received_by
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named


class Modulation(NamedTuple):
    """adaLN-Zero's six vectors, each (B, 1, D), and the keyword arguments of the attention."""

    shift_attn: Tensor
    scale_attn: Tensor
    gate_attn: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor
    attention: Mapping[str, Any]


NATIVE = "BasicTransformerBlock"
"""The class of the blocks that are written out here."""


def fits(model: nn.Module) -> bool:
    return is_named(model, "DiTTransformer2DModel")


def layout(model: Any) -> Layout:
    blocks = described(model.transformer_blocks, NATIVE, _block)
    return from_blocks(model, blocks, stacked=adaln_zero.stack)


def _block(block: Any) -> Block:
    def condition(
        x_BND: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
    ) -> Modulation:
        norm = block.norm1
        embedding_BD = norm.emb(timestep, class_labels, hidden_dtype=x_BND.dtype)
        parts_B1D = norm.linear(norm.silu(embedding_BD))[:, None].chunk(6, dim=-1)
        attention = {"attention_mask": attention_mask, **(cross_attention_kwargs or {})}
        return Modulation._make((*parts_B1D, attention))

    def attention(x_BND: Tensor, c: Modulation) -> Tensor:
        return block.attn1(block.norm1.norm(x_BND) * (1 + c.scale_attn) + c.shift_attn, **c.attention)

    def received(x_BND: Tensor, c: Modulation) -> Tensor:
        return received_by(block.attn1, block.norm1.norm(x_BND) * (1 + c.scale_attn) + c.shift_attn)

    def mlp(x_BND: Tensor, c: Modulation) -> Tensor:
        return block.ff(block.norm3(x_BND) * (1 + c.scale_mlp) + c.shift_mlp)

    return Block(
        block,
        condition,
        (
            Branch("attn", attention, lambda c: c.gate_attn, received=received),
            Branch("mlp", mlp, lambda c: c.gate_mlp, tokenwise=True),
        ),
        block.norm1.parameters,
        copies=True,
        native=NATIVE,
        inlined=("norm1",),
    )


FAMILIES = (Family("DiT", "DiTTransformer2DModel", "branches", ("attn", "mlp"), fits, layout),)
