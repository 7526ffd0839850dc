"""AuraFlowTransformer2DModel of diffusers (AuraFlow), by branches: one a stream, in which attention and MLP are nested.

A block adds ``gate * mlp(norm(x + gate * attention))`` to each stream, so that what the attention gives out is read by
the MLP alone, and there is one site a block. First joint blocks, then blocks in which text and image are one sequence.
B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from forecache.models.blocks import Block, Branch, Gate, Gates, described
from forecache.models.families import joint
from forecache.models.families.joint import IMAGE, TEXT, Rows, both, modulated
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named


class Condition(NamedTuple):
    """Vectors (B, D) of each stream's modulation, and the keyword arguments of the attention."""

    image: Sequence[Tensor]
    text: Sequence[Tensor]
    attention: Mapping[str, Any]


JOINT, SINGLE = "AuraFlowJointTransformerBlock", "AuraFlowSingleTransformerBlock"
"""The classes of the blocks that are written out here."""


def fits(model: nn.Module) -> bool:
    return is_named(model, "AuraFlowTransformer2DModel")


def layout(model: Any) -> Layout:
    blocks = described(model.joint_transformer_blocks, JOINT, _joint)
    blocks += described(model.single_transformer_blocks, SINGLE, _single)
    return from_blocks(model, blocks, stacked=_stacked)


def _vectors(norm: Any, temb: Tensor) -> Sequence[Tensor]:
    return norm.linear(norm.silu(temb)).chunk(6, dim=1)


def _nested(mlp: nn.Module, norm: nn.Module, x_BND: Tensor, attended_BND: Tensor, vectors: Sequence[Tensor]) -> Tensor:
    """The MLP of a stream and of what the attention adds to it before."""
    return mlp(modulated(norm, x_BND + vectors[2].unsqueeze(1) * attended_BND, *vectors[3:5]))


def _joint(block: Any) -> Block:
    def condition(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        attention_kwargs: Mapping[str, Any] | None = None,
    ) -> Condition:
        return Condition(_vectors(block.norm1, temb), _vectors(block.norm1_context, temb), attention_kwargs or {})

    def nested(image: Tensor, text: Tensor, c: Condition) -> Tensor:
        attended, attended_text = block.attn(
            hidden_states=modulated(block.norm1.norm, image, *c.image[:2]),
            encoder_hidden_states=modulated(block.norm1_context.norm, text, *c.text[:2]),
            **c.attention,
        )
        return both(
            _nested(block.ff, block.norm2, image, attended, c.image),
            _nested(block.ff_context, block.norm2_context, text, attended_text, c.text),
        )

    def gate(c: Condition) -> tuple[Tensor, Tensor]:
        return c.image[5][:, None], c.text[5][:, None]

    return Block(
        block,
        condition,
        (Branch("nested", nested, gate, streams=(IMAGE, TEXT)),),
        lambda: joint.weights(block.norm1, block.norm1_context),
        ("hidden_states", "encoder_hidden_states"),
        (TEXT, IMAGE),
        native=JOINT,
        inlined=("norm1", "norm1_context"),
    )


def _single(block: Any) -> Block:
    def condition(hidden_states: Tensor, temb: Tensor, attention_kwargs: Mapping[str, Any] | None = None) -> Condition:
        return Condition(_vectors(block.norm1, temb), (), attention_kwargs or {})

    def nested(x_BND: Tensor, c: Condition) -> Tensor:
        attended = block.attn(hidden_states=modulated(block.norm1.norm, x_BND, *c.image[:2]), **c.attention)
        return _nested(block.ff, block.norm2, x_BND, attended, c.image)

    return Block(
        block,
        condition,
        (Branch("nested", nested, lambda c: c.image[5][:, None]),),
        lambda: joint.weights(block.norm1),
        native=SINGLE,
        inlined=("norm1",),
    )


def _stacked(blocks: Sequence[Any]) -> Gates | None:
    """The position of ``temb`` is that of the first block, since a span is of blocks of one kind."""
    rows = [[Rows(norm.linear, 6, (5,)) for norm in _norms(block)] for block in blocks]
    position = 2 if len(rows[0]) == 2 else 1
    return joint.gates_alone(rows, [_arranged] * len(blocks), position)


def _norms(block: Any) -> list[Any]:
    return [block.norm1, block.norm1_context] if hasattr(block, "norm1_context") else [block.norm1]


def _arranged(gates: list[Tensor]) -> list[Gate]:
    return [gates[0] if len(gates) == 1 else (gates[0], gates[1])]


FAMILIES = (Family("AuraFlow", "AuraFlowTransformer2DModel", "branches", ("nested",), fits, layout),)
