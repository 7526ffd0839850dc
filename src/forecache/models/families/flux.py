"""FluxTransformer2DModel of diffusers (FLUX.1), by branches.

First joint blocks as in SD3, then blocks in which text and image are one sequence and attention and MLP run beside one
another: one site, kind ``parallel``, with one gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from forecache.models.blocks import Block, Branch, described
from forecache.models.families import joint, mmdit
from forecache.models.families.joint import IMAGE, TEXT, both
from forecache.models.families.mmdit import GATE, Condition
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named

JOINT, SINGLE = "FluxTransformerBlock", "FluxSingleTransformerBlock"
"""The classes of the blocks that are written out here."""


def fits(model: nn.Module) -> bool:
    return is_named(model, "FluxTransformer2DModel")


def layout(model: Any) -> Layout:
    blocks = described(model.transformer_blocks, JOINT, _joint)
    blocks += described(model.single_transformer_blocks, SINGLE, _single)
    return from_blocks(model, blocks, stacked=mmdit.stacked, clips=True)


def _joint(block: Any) -> Block:
    def condition(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
    ) -> Condition:
        norms = block.norm1, block.norm1_context
        image, text = (mmdit.vectors(norm.linear(norm.silu(temb)), 6) for norm in norms)
        return Condition(image, text, {"image_rotary_emb": image_rotary_emb, **(joint_attention_kwargs or {})})

    return Block(
        block,
        condition,
        mmdit.branches(block, mmdit.FLUX_IMAGE, mmdit.FLUX_TEXT, clips=(False, True)),
        lambda: joint.weights(block.norm1, block.norm1_context),
        mmdit.INPUTS,
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
        parts = mmdit.vectors(block.norm.linear(block.norm.silu(temb)), 3)
        return Condition(parts, (), {"image_rotary_emb": image_rotary_emb, **(joint_attention_kwargs or {})})

    def parallel(text: Tensor, image: Tensor, c: Condition) -> Tensor:
        return mmdit.parallel(block, "norm.norm", c, both(text, image), **c.attention)

    branch = Branch("parallel", parallel, lambda c: c.image[GATE], streams=(TEXT, IMAGE), add=mmdit.clipped_sum)
    return Block(
        block,
        condition,
        (branch,),
        lambda: joint.weights(block.norm),
        mmdit.INPUTS,
        (TEXT, IMAGE),
        native=SINGLE,
        inlined=("norm",),
    )


KINDS = (*mmdit.KINDS, "parallel")
FAMILIES = (Family("FLUX.1", "FluxTransformer2DModel", "branches", KINDS, fits, layout),)
