"""Blocks of an image and a text stream as FLUX has them: a joint attention, and an MLP of each stream.

B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forecache.errors import ModelError, RunError
from forecache.models.blocks import Branch, Gate, Gates, clipped, gated
from forecache.models.families import joint
from forecache.models.families.joint import IMAGE, TEXT, Rows, both

INPUTS = ("hidden_states", "encoder_hidden_states")
"""The names of the streams in the signatures of the blocks."""
SHIFT, SCALE, GATE, SHIFT_MLP, SCALE_MLP, GATE_MLP = range(6)
KINDS = ("attn", "mlp", "mlp_text")


class Condition(NamedTuple):
    """What the branches of a block share.

    image, text: shift, scale and gate of the attention and of the MLP, each (B, 1, D), or (B, N, D) where every token
        has a modulation of its own; of a block of one branch, the first three
    attention: the keyword arguments of the attention
    """

    image: Sequence[Tensor]
    text: Sequence[Tensor]
    attention: Mapping[str, Any]


class Parts(NamedTuple):
    """The paths of a stream's modules in a block."""

    norm: str
    norm_mlp: str
    mlp: str


FLUX_IMAGE = Parts("norm1.norm", "norm2", "ff")
FLUX_TEXT = Parts("norm1_context.norm", "norm2_context", "ff_context")


def modulated(normed_BND: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normed tokens times (1 + scale) plus shift."""
    return normed_BND * (1 + fitting(scale, normed_BND)) + shift


def fitting(vector: Tensor, x_BND: Tensor) -> Tensor:
    """The vector, (B, 1, D) or (B, N, D); raises RunError where it is one a token, and x are some of the tokens."""
    if vector.shape[1] not in (1, x_BND.shape[1]):
        raise RunError(
            "Some tokens cannot be computed where tokens have modulations of their own, as those of a reference image "
            "or of a first frame: use a plan without partial cells."
        )
    return vector


def vectors(modulation_BE: Tensor, parts: int) -> tuple[Tensor, ...]:
    """The parts (B, 1, D) of a modulation."""
    return modulation_BE[:, None].chunk(parts, dim=-1)


Attend = Callable[[Tensor, Tensor, Condition], Sequence[Tensor]]
"""(normed image, normed text, condition) -> what the attention gives out for each."""


def branches(
    block: Any,
    image: Parts,
    text: Parts,
    clips: tuple[bool, bool] = (False, False),
    attend: Attend | None = None,
) -> tuple[Branch, ...]:
    """The branches of a joint block: attention, MLP of the image, MLP of the text.

    clips: whether the block clips its image, and its text, in half floats
    attend: the joint attention; by default ``block.attn``
    """
    image_norm, image_norm_mlp, image_mlp = map(attrgetter, image)
    text_norm, text_norm_mlp, text_mlp = map(attrgetter, text)

    def own(image_BND: Tensor, text_BMD: Tensor, c: Condition) -> Sequence[Tensor]:
        return block.attn(hidden_states=image_BND, encoder_hidden_states=text_BMD, **c.attention)

    joint_attention = attend or own

    def attention(image_BND: Tensor, text_BMD: Tensor, c: Condition) -> Tensor:
        image_BND = modulated(image_norm(block)(image_BND), c.image[SHIFT], c.image[SCALE])
        text_BMD = modulated(text_norm(block)(text_BMD), c.text[SHIFT], c.text[SCALE])
        outputs = joint_attention(image_BND, text_BMD, c)
        if len(outputs) > 2:
            raise ModelError(
                f"A {type(block).__name__} with an IP-Adapter has no known branches: unload it, or name modules as "
                "sites."
            )
        return both(*outputs)

    def mlp(image_BND: Tensor, c: Condition) -> Tensor:
        return image_mlp(block)(modulated(image_norm_mlp(block)(image_BND), c.image[SHIFT_MLP], c.image[SCALE_MLP]))

    def mlp_text(text_BMD: Tensor, c: Condition) -> Tensor:
        return text_mlp(block)(modulated(text_norm_mlp(block)(text_BMD), c.text[SHIFT_MLP], c.text[SCALE_MLP]))

    add, add_text = (clipped_sum if is_clipped else gated for is_clipped in clips)
    return (
        Branch("attn", attention, lambda c: (c.image[GATE], c.text[GATE]), streams=(IMAGE, TEXT)),
        Branch("mlp", mlp, lambda c: c.image[GATE_MLP], tokenwise=True, add=add),
        Branch("mlp_text", mlp_text, lambda c: c.text[GATE_MLP], streams=(TEXT,), add=add_text),
    )


def clipped_sum(x_BND: Tensor, y_BND: Tensor, gate: Any) -> Tensor:
    """x + gate * y, clipped in half floats."""
    return clipped(gated(x_BND, y_BND, gate))


def parallel(block: Any, norm: str, c: Condition, whole_BND: Tensor, **attention: Any) -> Tensor:
    """Attention and MLP beside one another, from one norm, and one projection of both."""
    normed_BND = modulated(attrgetter(norm)(block)(whole_BND), c.image[SHIFT], c.image[SCALE])
    mlp_BNE = block.act_mlp(block.proj_mlp(normed_BND))
    return block.proj_out(torch.cat([block.attn(hidden_states=normed_BND, **attention), mlp_BNE], 2))


def stacked(blocks: Sequence[Any]) -> Gates | None:
    """The gates of joint blocks, with norms of adaLN-Zero, and of blocks of one branch; see `joint.gates_alone`."""
    return joint.gates_alone([_rows(block) for block in blocks], [_arranged] * len(blocks), 2)


def _rows(block: Any) -> list[Rows]:
    if hasattr(block, "norm"):
        return [Rows(block.norm.linear, 3, (GATE,))]
    return [Rows(norm.linear, 6, (GATE, GATE_MLP)) for norm in (block.norm1, block.norm1_context)]


def _arranged(gates: list[Tensor]) -> list[Gate]:
    return [gates[0]] if len(gates) == 1 else arranged(gates)


def arranged(gates: list[Tensor]) -> list[Gate]:
    """One gate a branch, of the gates (attention, MLP) of the image and of the text."""
    attention, mlp, text_attention, text_mlp = gates
    return [(attention, text_attention), mlp, text_mlp]
