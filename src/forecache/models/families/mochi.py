"""MochiTransformer3DModel of diffusers (Mochi 1), by branches.

Text and video are two streams of different widths with one attention and two MLPs. What these give out is normed in
float32 and gated by the tanh of the modulation before it is rounded, so that features are normed ones in float32. The
last block leaves the text as it is. B batch, N tokens of all frames, M tokens of the text, D and E their widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from forecache.models.blocks import Block, Branch, Gate, Gates, described, joined
from forecache.models.families import joint
from forecache.models.families.joint import IMAGE, TEXT, Rows
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named


class Condition(NamedTuple):
    """Vectors (B, D) of the modulations, and the keyword arguments of the attention.

    video: scale and gate of the attention, scale and gate of the MLP; gates before tanh
    text: the same, of width E; in the last block the scale of the attention alone
    """

    video: Sequence[Tensor]
    text: Sequence[Tensor]
    attention: Mapping[str, Any]


NATIVE = "MochiTransformerBlock"
"""The class of the blocks that are written out here."""


def fits(model: nn.Module) -> bool:
    return is_named(model, "MochiTransformer3DModel")


def layout(model: Any) -> Layout:
    return from_blocks(model, described(model.transformer_blocks, NATIVE, _block), stacked=_stacked)


def _normed(norm: Any, x_BND: Tensor) -> Tensor:
    """Tokens normed in float32; ``norm`` has no weights."""
    return norm.norm(x_BND.to(torch.float32))


def _scaled(norm: Any, x_BND: Tensor, scale_BD: Tensor) -> Tensor:
    return (_normed(norm, x_BND) * (1 + scale_BD.unsqueeze(1).to(torch.float32))).to(x_BND.dtype)


def _added(x_BND: Tensor, y_BND: Tensor, gate: Tensor) -> Tensor:
    return x_BND + (y_BND * gate).to(x_BND.dtype)


def _gate(vector_BD: Tensor) -> Tensor:
    return torch.tanh(vector_BD).unsqueeze(1)


def _block(block: Any) -> Block:
    last = block.context_pre_only

    def condition(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        encoder_attention_mask: Tensor,
        image_rotary_emb: Any = None,
    ) -> Condition:
        video = block.norm1.linear(block.norm1.silu(temb)).chunk(4, dim=1)
        norm = block.norm1_context
        if last:
            text = (norm.linear_1(norm.silu(temb).to(encoder_hidden_states.dtype)),)
        else:
            text = norm.linear(norm.silu(temb)).chunk(4, dim=1)
        return Condition(video, text, {"image_rotary_emb": image_rotary_emb, "attention_mask": encoder_attention_mask})

    def attention(video: Tensor, text: Tensor, c: Condition) -> Tensor:
        context = block.norm1_context
        outputs = block.attn1(
            hidden_states=_scaled(block.norm1, video, c.video[0]),
            encoder_hidden_states=_scaled(context.norm if last else context, text, c.text[0]),
            **c.attention,
        )
        norms = (block.norm2,) if last else (block.norm2, block.norm2_context)
        return joined([_normed(norm, output) for norm, output in zip(norms, outputs, strict=False)])

    def mlp(video: Tensor, c: Condition) -> Tensor:
        return _normed(block.norm4, block.ff(_scaled(block.norm3, video, c.video[2])))

    def mlp_text(text: Tensor, c: Condition) -> Tensor:
        return _normed(block.norm4_context, block.ff_context(_scaled(block.norm3_context, text, c.text[2])))

    def gate(c: Condition) -> Gate:
        return _gate(c.video[1]) if last else (_gate(c.video[1]), _gate(c.text[1]))

    branches = [
        Branch(
            "attn",
            attention,
            gate,
            streams=(IMAGE,) if last else (IMAGE, TEXT),
            reads=(IMAGE, TEXT),
            add=_added,
        ),
        Branch("mlp", mlp, lambda c: _gate(c.video[3]), tokenwise=True, add=_added),
    ]
    inlined = ["norm1", "norm1_context", "norm2", "norm3", "norm4"]
    if not last:
        branches.append(Branch("mlp_text", mlp_text, lambda c: _gate(c.text[3]), streams=(TEXT,), add=_added))
        inlined += ["norm2_context", "norm3_context", "norm4_context"]
    return Block(
        block,
        condition,
        tuple(branches),
        lambda: joint.weights(block.norm1, block.norm1_context),
        ("hidden_states", "encoder_hidden_states"),
        (IMAGE, TEXT),
        native=NATIVE,
        inlined=tuple(inlined),
    )


def _stacked(blocks: Sequence[Any]) -> Gates | None:
    return joint.gates_alone([_rows(block) for block in blocks], [_arranged] * len(blocks), 2)


def _rows(block: Any) -> list[Rows]:
    norms = [block.norm1] if block.context_pre_only else [block.norm1, block.norm1_context]
    return [Rows(norm.linear, 4, (1, 3)) for norm in norms]


def _arranged(gates: list[Tensor]) -> list[Gate]:
    """One gate a branch, of the video's and the text's gates (attention, MLP)."""
    attention, mlp, *text = (gate.tanh() for gate in gates)
    return [(attention, text[0]), mlp, text[1]] if text else [attention, mlp]


FAMILIES = (Family("Mochi 1", "MochiTransformer3DModel", "branches", ("attn", "mlp", "mlp_text"), fits, layout),)
