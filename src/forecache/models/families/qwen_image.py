"""QwenImageTransformer2DModel of diffusers (Qwen-Image, its Edit and Layered models, arXiv 2508.02324), by branches.

Joint blocks alone. In the later Edit models, the tokens of reference images are modulated as at time 0: the modulation
of twice the batch is computed, and an index (B, N) says which half a token takes. B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forecache.models.blocks import Block, Gates, described
from forecache.models.families import joint, mmdit
from forecache.models.families.joint import IMAGE, TEXT, Rows
from forecache.models.families.mmdit import GATE, GATE_MLP, Condition, Parts
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named

NATIVE = "QwenImageTransformerBlock"
"""The class of the blocks that are written out here."""
IMAGE_PARTS = Parts("img_norm1", "img_norm2", "img_mlp")
TEXT_PARTS = Parts("txt_norm1", "txt_norm2", "txt_mlp")


def fits(model: nn.Module) -> bool:
    return is_named(model, "QwenImageTransformer2DModel")


def layout(model: Any) -> Layout:
    return from_blocks(model, described(model.transformer_blocks, NATIVE, _block), stacked=_stacked, clips=True)


class ByIndex(Sequence[Tensor]):
    """The vectors (B, N, D) of tokens that take them from one of two modulations, each made where it is read.

    vectors: of both modulations, each (2 B, 1, D)
    index: (B, N), 0 for the first
    """

    def __init__(self, vectors: Sequence[Tensor], index_BN: Tensor) -> None:
        self._vectors, self._is_first = vectors, index_BN[..., None] == 0

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, part: Any) -> Any:
        first_B1D, second_B1D = self._vectors[part].chunk(2)
        return torch.where(self._is_first, first_B1D, second_B1D)


def _block(block: Any) -> Block:
    def condition(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None,
        temb: Tensor,
        image_rotary_emb: Any = None,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
        modulate_index: Any = None,
    ) -> Condition:
        image: Sequence[Tensor] = mmdit.vectors(block.img_mod(temb), 6)
        if modulate_index is not None:
            image = ByIndex(image, modulate_index)
        text = mmdit.vectors(block.txt_mod(temb.chunk(2)[0] if block.zero_cond_t else temb), 6)
        attention = {
            "encoder_hidden_states_mask": encoder_hidden_states_mask,
            "image_rotary_emb": image_rotary_emb,
            **(joint_attention_kwargs or {}),
        }
        return Condition(image, text, attention)

    return Block(
        block,
        condition,
        mmdit.branches(block, IMAGE_PARTS, TEXT_PARTS, clips=(True, True)),
        lambda: joint.weights(block.img_mod, block.txt_mod),
        mmdit.INPUTS,
        (TEXT, IMAGE),
        native=NATIVE,
        inlined=("img_mod", "txt_mod"),
    )


def _stacked(blocks: Sequence[Any]) -> Gates | None:
    if any(block.zero_cond_t for block in blocks):
        return None
    rows = [[_rows(modulation) for modulation in (block.img_mod, block.txt_mod)] for block in blocks]
    return joint.gates_alone(rows, [mmdit.arranged] * len(blocks), 3)


def _rows(modulation: nn.Module) -> Rows:
    return Rows(joint.last_of(modulation, nn.SiLU), 6, (GATE, GATE_MLP))


FAMILIES = (Family("Qwen-Image", "QwenImageTransformer2DModel", "branches", mmdit.KINDS, fits, layout),)
