"""ChromaTransformer2DModel of diffusers (Chroma), by branches: FLUX's blocks with a modulation from outside.

One network computes the modulations of all blocks, and a block is given its own rows. The gates of a span of skipped
blocks come from the arguments of its first, so no span is longer than one block. After the joint blocks, text and image
are one stream. B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from forecache.models.blocks import Block, Branch, described
from forecache.models.families import mmdit
from forecache.models.families.joint import IMAGE, TEXT
from forecache.models.families.mmdit import GATE, Condition
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named

JOINT, SINGLE = "ChromaTransformerBlock", "ChromaSingleTransformerBlock"
"""The classes of the blocks that are written out here."""


def fits(model: nn.Module) -> bool:
    return is_named(model, "ChromaTransformer2DModel")


def layout(model: Any) -> Layout:
    blocks = described(model.transformer_blocks, JOINT, _joint)
    blocks += described(model.single_transformer_blocks, SINGLE, _single)
    return from_blocks(model, blocks, starts=range(len(blocks)), clips=True)


def _condition(vectors: Sequence[Tensor], rotary: Any, mask_BN: Any, more: Mapping[str, Any] | None) -> Condition:
    attention = {"image_rotary_emb": rotary, "attention_mask": mask_BN, **(more or {})}
    return Condition(vectors[:6], vectors[6:], attention)


def _attended(attention: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of the attention, with a mask of queries and keys from one of tokens (B, N)."""
    mask_BN = attention["attention_mask"]
    mask_B1NN = None if mask_BN is None else mask_BN[:, None, None, :] * mask_BN[:, None, :, None]
    return {**attention, "attention_mask": mask_B1NN}


def _vectors(rows_BPD: Tensor) -> list[Tensor]:
    """The parts (B, 1, D) of a modulation."""
    return list(rows_BPD.split(1, 1))


def _joint(block: Any) -> Block:
    def condition(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        attention_mask: Tensor | None = None,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
    ) -> Condition:
        return _condition(_vectors(temb), image_rotary_emb, attention_mask, joint_attention_kwargs)

    def attend(image_BND: Tensor, text_BMD: Tensor, c: Condition) -> Sequence[Tensor]:
        return block.attn(hidden_states=image_BND, encoder_hidden_states=text_BMD, **_attended(c.attention))

    return Block(
        block,
        condition,
        mmdit.branches(block, mmdit.FLUX_IMAGE, mmdit.FLUX_TEXT, clips=(False, True), attend=attend),
        inputs=mmdit.INPUTS,
        outputs=(TEXT, IMAGE),
        native=JOINT,
        inlined=("norm1", "norm1_context"),
    )


def _single(block: Any) -> Block:
    def condition(
        hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        attention_mask: Tensor | None = None,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
    ) -> Condition:
        return _condition(_vectors(temb), image_rotary_emb, attention_mask, joint_attention_kwargs)

    def parallel(x_BND: Tensor, c: Condition) -> Tensor:
        return mmdit.parallel(block, "norm.norm", c, x_BND, **_attended(c.attention))

    branch = Branch("parallel", parallel, lambda c: c.image[GATE], add=mmdit.clipped_sum)
    return Block(block, condition, (branch,), native=SINGLE, inlined=("norm",))


FAMILIES = (Family("Chroma", "ChromaTransformer2DModel", "branches", (*mmdit.KINDS, "parallel"), fits, layout),)
