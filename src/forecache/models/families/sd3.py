"""SD3Transformer2DModel of diffusers (Stable Diffusion 3 and 3.5, arXiv 2403.03206), by branches.

Joint attention of image and text is one site; each stream has an MLP of its own. Some blocks of 3.5 have a second
attention, of the image alone. The last block returns no text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from forecache.models.blocks import Block, Branch, Gate, Gates, described
from forecache.models.families import joint
from forecache.models.families.joint import IMAGE, TEXT, Rows, both, modulated
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named


class Condition(NamedTuple):
    """Vectors (B, D) of each stream's modulation, the block's input, and the keyword arguments of the attention.

    image: shift, scale, gate of the attention and of the MLP, and of a second attention. text: the same; none in the
    last block, whose norm makes them itself.
    """

    image: Sequence[Tensor]
    text: Sequence[Tensor]
    input: Tensor
    temb: Tensor
    attention: Mapping[str, Any]


NATIVE = "JointTransformerBlock"
"""The class of the blocks that are written out here."""


def fits(model: nn.Module) -> bool:
    return is_named(model, "SD3Transformer2DModel")


def layout(model: Any) -> Layout:
    return from_blocks(model, described(model.transformer_blocks, NATIVE, _block), stacked=_stacked)


def _block(block: Any) -> Block:
    def condition(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
    ) -> Condition:
        image = block.norm1.linear(block.norm1.silu(temb)).chunk(9 if block.use_dual_attention else 6, dim=1)
        text: Sequence[Tensor] = ()
        if not block.context_pre_only:
            text = block.norm1_context.linear(block.norm1_context.silu(temb)).chunk(6, dim=1)
        return Condition(image, text, hidden_states, temb, joint_attention_kwargs or {})

    def attention(image: Tensor, text: Tensor, c: Condition) -> Tensor:
        if block.context_pre_only:
            normed = block.norm1_context(text, c.temb)
        else:
            normed = modulated(block.norm1_context.norm, text, *c.text[:2])
        image = modulated(block.norm1.norm, image, *c.image[:2])
        outputs = block.attn(hidden_states=image, encoder_hidden_states=normed, **c.attention)
        return outputs[0] if block.context_pre_only else both(*outputs)

    def second(image: Tensor, c: Condition) -> Tensor:
        return block.attn2(hidden_states=modulated(block.norm1.norm, c.input, *c.image[6:8]), **c.attention)

    def mlp(image: Tensor, c: Condition) -> Tensor:
        return block.ff(modulated(block.norm2, image, *c.image[3:5]))

    def mlp_text(text: Tensor, c: Condition) -> Tensor:
        return block.ff_context(modulated(block.norm2_context, text, *c.text[3:5]))

    last = block.context_pre_only
    branches = [
        Branch(
            "attn",
            attention,
            lambda c: c.image[2][:, None] if last else (c.image[2][:, None], c.text[2][:, None]),
            streams=(IMAGE,) if last else (IMAGE, TEXT),
            reads=(IMAGE, TEXT),
        )
    ]
    if block.use_dual_attention:
        branches.append(Branch("attn2", second, lambda c: c.image[8][:, None]))
    branches.append(Branch("mlp", mlp, lambda c: c.image[5][:, None], tokenwise=True))
    if not last:
        branches.append(Branch("mlp_text", mlp_text, lambda c: c.text[5][:, None], streams=(TEXT,)))
    return Block(
        block,
        condition,
        tuple(branches),
        lambda: joint.weights(block.norm1, block.norm1_context),
        ("hidden_states", "encoder_hidden_states"),
        (None if last else TEXT, IMAGE),
        native=NATIVE,
        inlined=("norm1",) if last else ("norm1", "norm1_context"),
    )


def _stacked(blocks: Sequence[Any]) -> Gates | None:
    return joint.gates_alone([_rows(block) for block in blocks], [_arranged(block) for block in blocks], 2)


def _rows(block: Any) -> list[Rows]:
    dual = block.use_dual_attention
    image = Rows(block.norm1.linear, 9 if dual else 6, (2, 5, 8) if dual else (2, 5))
    return [image] if block.context_pre_only else [image, Rows(block.norm1_context.linear, 6, (2, 5))]


def _arranged(block: Any) -> Callable[[list[Tensor]], list[Gate]]:
    """One gate for each branch, of the image's (attention, MLP, second attention) and the text's gates."""

    def arranged(gates: list[Tensor]) -> list[Gate]:
        attention, mlp, *rest = gates
        second = [rest.pop(0)] if block.use_dual_attention else []
        if block.context_pre_only:
            return [attention, *second, mlp]
        text_attention, text_mlp = rest
        return [(attention, text_attention), *second, mlp, text_mlp]

    return arranged


KINDS = ("attn", "attn2", "mlp", "mlp_text")
FAMILIES = (Family("Stable Diffusion 3, 3.5", "SD3Transformer2DModel", "branches", KINDS, fits, layout),)
