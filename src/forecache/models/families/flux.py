"""FluxTransformer2DModel of diffusers (FLUX.1), by branches.

First joint blocks as in SD3, then blocks in which text and image are one sequence and attention and MLP run beside one
another: one site, kind ``parallel``, with one gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from forecache.errors import ModelError
from forecache.models.blocks import Block, Branch, Gate, Gates, clipped, described, gated
from forecache.models.families import joint
from forecache.models.families.joint import IMAGE, TEXT, Rows, both, modulated
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named


class Condition(NamedTuple):
    """Vectors (B, D) of each stream's modulation, and the keyword arguments of the attention."""

    image: Sequence[Tensor]
    text: Sequence[Tensor]
    attention: Mapping[str, Any]


JOINT, SINGLE = "FluxTransformerBlock", "FluxSingleTransformerBlock"
"""The classes of the blocks that are written out here."""


def fits(model: nn.Module) -> bool:
    return is_named(model, "FluxTransformer2DModel")


def layout(model: Any) -> Layout:
    blocks = described(model.transformer_blocks, JOINT, _joint)
    blocks += described(model.single_transformer_blocks, SINGLE, _single)
    return from_blocks(model, blocks, stacked=_stacked, clips=True)


def _clipped(x_BND: Tensor, y_BND: Tensor, gate: Any) -> Tensor:
    return clipped(gated(x_BND, y_BND, gate))


STREAMS = ("hidden_states", "encoder_hidden_states")


def _joint(block: Any) -> Block:
    def condition(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
    ) -> Condition:
        image, text = (norm.linear(norm.silu(temb)).chunk(6, dim=1) for norm in (block.norm1, block.norm1_context))
        return Condition(image, text, {"image_rotary_emb": image_rotary_emb, **(joint_attention_kwargs or {})})

    def attention(image: Tensor, text: Tensor, c: Condition) -> Tensor:
        outputs = block.attn(
            hidden_states=modulated(block.norm1.norm, image, *c.image[:2]),
            encoder_hidden_states=modulated(block.norm1_context.norm, text, *c.text[:2]),
            **c.attention,
        )
        if len(outputs) > 2:
            raise ModelError("FLUX with an IP-Adapter has no known branches: unload it, or name modules as sites.")
        return both(*outputs)

    def mlp(image: Tensor, c: Condition) -> Tensor:
        return block.ff(modulated(block.norm2, image, *c.image[3:5]))

    def mlp_text(text: Tensor, c: Condition) -> Tensor:
        return block.ff_context(modulated(block.norm2_context, text, *c.text[3:5]))

    branches = (
        Branch("attn", attention, lambda c: (c.image[2][:, None], c.text[2][:, None]), streams=(IMAGE, TEXT)),
        Branch("mlp", mlp, lambda c: c.image[5][:, None], tokenwise=True),
        Branch("mlp_text", mlp_text, lambda c: c.text[5][:, None], streams=(TEXT,), add=_clipped),
    )
    return Block(
        block,
        condition,
        branches,
        lambda: joint.weights(block.norm1, block.norm1_context),
        STREAMS,
        (TEXT, IMAGE),
        native=JOINT,
        inlined=("norm1", "norm1_context"),
    )


def _single(block: Any) -> Block:
    def condition(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
    ) -> Condition:
        parts = block.norm.linear(block.norm.silu(temb)).chunk(3, dim=1)
        return Condition(parts, (), {"image_rotary_emb": image_rotary_emb, **(joint_attention_kwargs or {})})

    def parallel(text: Tensor, image: Tensor, c: Condition) -> Tensor:
        normed = modulated(block.norm.norm, both(text, image), *c.image[:2])
        mlp = block.act_mlp(block.proj_mlp(normed))
        return block.proj_out(torch.cat([block.attn(hidden_states=normed, **c.attention), mlp], 2))

    branch = Branch("parallel", parallel, lambda c: c.image[2][:, None], streams=(TEXT, IMAGE), add=_clipped)
    return Block(
        block,
        condition,
        (branch,),
        lambda: joint.weights(block.norm),
        STREAMS,
        (TEXT, IMAGE),
        native=SINGLE,
        inlined=("norm",),
    )


def _stacked(blocks: Sequence[Any]) -> Gates | None:
    return joint.gates_alone([_rows(block) for block in blocks], [_arranged] * len(blocks), 2)


def _rows(block: Any) -> list[Rows]:
    if hasattr(block, "norm"):
        return [Rows(block.norm.linear, 3, (2,))]
    return [Rows(norm.linear, 6, (2, 5)) for norm in (block.norm1, block.norm1_context)]


def _arranged(gates: list[Tensor]) -> list[Gate]:
    if len(gates) == 1:
        return [gates[0]]
    attention, mlp, text_attention, text_mlp = gates
    return [(attention, text_attention), mlp, text_mlp]


KINDS = ("attn", "mlp", "mlp_text", "parallel")
FAMILIES = (Family("FLUX.1", "FluxTransformer2DModel", "branches", KINDS, fits, layout),)
