"""Flux2Transformer2DModel of diffusers (FLUX.2 dev and Klein), by branches.

One modulation is shared by all joint blocks, and one by all blocks after them, in which text and image are one stream
and one module is attention and MLP at once: one site, kind ``parallel``. B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from forecache.errors import ModelError
from forecache.models.blocks import Block, Branch, Gate, Gates, described
from forecache.models.families import mmdit
from forecache.models.families.joint import IMAGE, TEXT
from forecache.models.families.mmdit import GATE, GATE_MLP, SCALE, SHIFT, Condition, Parts
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named

JOINT, SINGLE = "Flux2TransformerBlock", "Flux2SingleTransformerBlock"
"""The classes of the blocks that are written out here."""
IMAGE_PARTS = Parts("norm1", "norm2", "ff")
TEXT_PARTS = Parts("norm1_context", "norm2_context", "ff_context")


def fits(model: nn.Module) -> bool:
    return is_named(model, "Flux2Transformer2DModel")


def layout(model: Any) -> Layout:
    blocks = described(model.transformer_blocks, JOINT, _joint)
    blocks += described(model.single_transformer_blocks, SINGLE, _single)
    return from_blocks(model, blocks, stacked=_stacked, clips=True)


def _vectors(modulation: Tensor, parts: int) -> tuple[Tensor, ...]:
    """The parts of a modulation (B, E) or, where reference tokens have one of their own, (B, N, E)."""
    return (modulation[:, None] if modulation.ndim == 2 else modulation).chunk(parts, dim=-1)


def _joint_condition(
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb_mod_img: Tensor,
    temb_mod_txt: Tensor,
    image_rotary_emb: Any = None,
    joint_attention_kwargs: Mapping[str, Any] | None = None,
) -> Condition:
    attention = {"image_rotary_emb": image_rotary_emb, **(joint_attention_kwargs or {})}
    return Condition(_vectors(temb_mod_img, 6), _vectors(temb_mod_txt, 6), attention)


def _joint(block: Any) -> Block:
    return Block(
        block,
        _joint_condition,
        mmdit.branches(block, IMAGE_PARTS, TEXT_PARTS, clips=(False, True)),
        inputs=mmdit.INPUTS,
        outputs=(TEXT, IMAGE),
        native=JOINT,
    )


def _single_condition(
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None,
    temb_mod: Tensor,
    image_rotary_emb: Any = None,
    joint_attention_kwargs: Mapping[str, Any] | None = None,
    split_hidden_states: bool = False,
    text_seq_len: int | None = None,
) -> Condition:
    if encoder_hidden_states is not None or split_hidden_states:
        raise ModelError(
            "A Flux2SingleTransformerBlock is expected to get text and image as one stream, as its model calls it: "
            "name modules as sites."
        )
    attention = {"image_rotary_emb": image_rotary_emb, **(joint_attention_kwargs or {})}
    return Condition(_vectors(temb_mod, 3), (), attention)


def _single(block: Any) -> Block:
    def parallel(x_BND: Tensor, c: Condition) -> Tensor:
        normed_BND = mmdit.modulated(block.norm(x_BND), c.image[SHIFT], c.image[SCALE])
        return block.attn(hidden_states=normed_BND, **c.attention)

    branch = Branch("parallel", parallel, lambda c: c.image[GATE], add=mmdit.clipped_sum)
    return Block(block, _single_condition, (branch,), native=SINGLE)


def _stacked(blocks: Sequence[Any]) -> Gates | None:
    """The gates of a run of blocks, which all have the same."""
    joint_ones = [hasattr(block, "ff") for block in blocks]
    if any(joint_ones) != all(joint_ones):
        return None

    def gates(*args: Any, **kwargs: Any) -> list[Gate]:
        if not joint_ones[0]:
            return [_single_condition(*args, **kwargs).image[GATE]] * len(blocks)
        image, text, _ = _joint_condition(*args, **kwargs)
        return [(image[GATE], text[GATE]), image[GATE_MLP], text[GATE_MLP]] * len(blocks)

    return gates


FAMILIES = (Family("FLUX.2", "Flux2Transformer2DModel", "branches", (*mmdit.KINDS, "parallel"), fits, layout),)
