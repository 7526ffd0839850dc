"""CogVideoXTransformer3DModel of diffusers (CogVideoX, arXiv 2408.06072), by branches.

Text and video are two streams with modulations of their own, and one attention and one MLP for both: two sites.
B batch, N tokens of all frames, M tokens of the text, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from forecache.models.blocks import Block, Branch, Gate, Gates, described
from forecache.models.families import joint
from forecache.models.families.joint import IMAGE, TEXT, Rows, both, modulated
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named


class Condition(NamedTuple):
    """Vectors (B, D) of the modulations, and the keyword arguments of the attention.

    attn, mlp: shift, scale, gate of the video, and of the text
    """

    attn: Sequence[Tensor]
    mlp: Sequence[Tensor]
    attention: Mapping[str, Any]


NATIVE = "CogVideoXBlock"
"""The class of the blocks that are written out here."""


def fits(model: nn.Module) -> bool:
    return is_named(model, "CogVideoXTransformer3DModel")


def layout(model: Any) -> Layout:
    return from_blocks(model, described(model.transformer_blocks, NATIVE, _block), stacked=_stacked)


def _block(block: Any) -> Block:
    def condition(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        attention_kwargs: Mapping[str, Any] | None = None,
    ) -> Condition:
        attn, mlp = (norm.linear(norm.silu(temb)).chunk(6, dim=1) for norm in (block.norm1, block.norm2))
        return Condition(attn, mlp, {"image_rotary_emb": image_rotary_emb, **(attention_kwargs or {})})

    def attention(video: Tensor, text: Tensor, c: Condition) -> Tensor:
        norm = block.norm1.norm
        outputs = block.attn1(
            hidden_states=modulated(norm, video, *c.attn[:2]),
            encoder_hidden_states=modulated(norm, text, *c.attn[3:5]),
            **c.attention,
        )
        return both(*outputs)

    def mlp(text: Tensor, video: Tensor, c: Condition) -> Tensor:
        norm = block.norm2.norm
        return block.ff(torch.cat([modulated(norm, text, *c.mlp[3:5]), modulated(norm, video, *c.mlp[:2])], 1))

    branches = (
        Branch("attn", attention, lambda c: (c.attn[2][:, None], c.attn[5][:, None]), streams=(IMAGE, TEXT)),
        Branch("mlp", mlp, lambda c: (c.mlp[5][:, None], c.mlp[2][:, None]), streams=(TEXT, IMAGE)),
    )
    return Block(
        block,
        condition,
        branches,
        lambda: joint.weights(block.norm1, block.norm2),
        ("hidden_states", "encoder_hidden_states"),
        (IMAGE, TEXT),
        native=NATIVE,
        inlined=("norm1", "norm2"),
    )


def _stacked(blocks: Sequence[Any]) -> Gates | None:
    rows = [[Rows(norm.linear, 6, (2, 5)) for norm in (block.norm1, block.norm2)] for block in blocks]
    return joint.gates_alone(rows, [_arranged] * len(blocks), 2)


def _arranged(gates: list[Tensor]) -> list[Gate]:
    video_attn, text_attn, video_mlp, text_mlp = gates
    return [(video_attn, text_attn), (text_mlp, video_mlp)]


FAMILIES = (Family("CogVideoX", "CogVideoXTransformer3DModel", "branches", ("attn", "mlp"), fits, layout),)
