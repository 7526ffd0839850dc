"""HiDreamImageTransformer2DModel of diffusers (HiDream-I1 and E1, arXiv 2505.22705), by branches.

First joint blocks, then blocks in which image and text are one stream; every block is called with further tokens of a
text encoder, which the model cuts off after it, so that no span of skipped blocks is longer than one. The image's MLP
is a mixture of experts, among which each token is routed by itself. B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from forecache.models.blocks import Block, Branch, Gates, described
from forecache.models.families import joint, mmdit
from forecache.models.families.joint import IMAGE, TEXT, Rows, both
from forecache.models.families.mmdit import GATE, GATE_MLP, SCALE, SCALE_MLP, SHIFT, SHIFT_MLP
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named


class Condition(NamedTuple):
    """The six vectors (B, 1, D) of each stream; of the attention, the mask of the image's tokens and the rotation."""

    image: Sequence[Tensor]
    text: Sequence[Tensor]
    mask: Any
    rotary: Any


NATIVE = "HiDreamBlock"
"""The class of the modules that hold one block each; their blocks are written out here."""


def fits(model: nn.Module) -> bool:
    return is_named(model, "HiDreamImageTransformer2DModel")


def layout(model: Any) -> Layout:
    blocks = described(model.double_stream_blocks, NATIVE, _joint)
    blocks += described(model.single_stream_blocks, NATIVE, _single)
    return from_blocks(model, blocks, starts=range(len(blocks)), stacked=_stacked)


def _modulated(norm: nn.Module, x_BND: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return norm(x_BND).to(dtype=x_BND.dtype) * (1 + scale) + shift


def _mlp(block: Any) -> Branch:
    def mlp(image_BND: Tensor, c: Condition) -> Tensor:
        return block.ff_i(_modulated(block.norm3_i, image_BND, c.image[SHIFT_MLP], c.image[SCALE_MLP]))

    return Branch("mlp", mlp, lambda c: c.image[GATE_MLP], tokenwise=True)


def _joint(holder: Any) -> Block:
    block = holder.block

    def condition(
        hidden_states: Tensor,
        hidden_states_masks: Any = None,
        encoder_hidden_states: Any = None,
        temb: Any = None,
        image_rotary_emb: Any = None,
    ) -> Condition:
        vectors = mmdit.vectors(block.adaLN_modulation(temb), 12)
        return Condition(vectors[:6], vectors[6:], hidden_states_masks, image_rotary_emb)

    def attention(image: Tensor, text: Tensor, c: Condition) -> Tensor:
        image = _modulated(block.norm1_i, image, c.image[SHIFT], c.image[SCALE])
        text = _modulated(block.norm1_t, text, c.text[SHIFT], c.text[SCALE])
        return both(*block.attn1(image, c.mask, text, image_rotary_emb=c.rotary))

    def mlp_text(text: Tensor, c: Condition) -> Tensor:
        return block.ff_t(_modulated(block.norm3_t, text, c.text[SHIFT_MLP], c.text[SCALE_MLP]))

    branches = (
        Branch("attn", attention, lambda c: (c.image[GATE], c.text[GATE]), streams=(IMAGE, TEXT)),
        _mlp(block),
        Branch("mlp_text", mlp_text, lambda c: c.text[GATE_MLP], streams=(TEXT,)),
    )
    return _described(holder, condition, branches, mmdit.INPUTS, (IMAGE, TEXT))


def _single(holder: Any) -> Block:
    block = holder.block

    def condition(
        hidden_states: Tensor,
        hidden_states_masks: Any = None,
        encoder_hidden_states: Any = None,
        temb: Any = None,
        image_rotary_emb: Any = None,
    ) -> Condition:
        vectors = mmdit.vectors(block.adaLN_modulation(temb), 6)
        return Condition(vectors, (), hidden_states_masks, image_rotary_emb)

    def attention(x_BND: Tensor, c: Condition) -> Tensor:
        normed_BND = _modulated(block.norm1_i, x_BND, c.image[SHIFT], c.image[SCALE])
        return block.attn1(normed_BND, c.mask, image_rotary_emb=c.rotary)

    branches = (Branch("attn", attention, lambda c: c.image[GATE]), _mlp(block))
    return _described(holder, condition, branches, ("hidden_states",), (IMAGE,))


def _described(
    holder: Any, condition: Any, branches: tuple[Branch, ...], inputs: tuple[str, ...], outputs: tuple[int, ...]
) -> Block:
    return Block(
        holder,
        condition,
        branches,
        lambda: joint.weights(holder.block.adaLN_modulation),
        inputs,
        outputs,
        native=NATIVE,
        inlined=("block", "block.adaLN_modulation"),
    )


def _stacked(holders: Sequence[Any]) -> Gates | None:
    rows = [[_rows(holder.block)] for holder in holders]
    arrange = [mmdit.arranged if len(parts[0].gates) == 4 else list for parts in rows]
    return joint.gates_alone(rows, arrange, 3)


def _rows(block: Any) -> Rows:
    is_joint = hasattr(block, "ff_t")
    gates = (GATE, GATE_MLP, 6 + GATE, 6 + GATE_MLP) if is_joint else (GATE, GATE_MLP)
    return Rows(joint.last_of(block.adaLN_modulation, nn.SiLU), 12 if is_joint else 6, gates)


FAMILIES = (Family("HiDream", "HiDreamImageTransformer2DModel", "branches", mmdit.KINDS, fits, layout),)
