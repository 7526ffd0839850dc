"""HunyuanVideoTransformer3DModel of diffusers (HunyuanVideo, arXiv 2412.03603), and HunyuanVideo 1.5's, by branches.

First joint blocks as in FLUX; in version 1 then blocks in which video and text are one sequence, and attention and MLP
run beside one another: one site, kind ``parallel``. Where a given image replaces the tokens of the first frame, these
are modulated as at time 0. B batch, N tokens of all frames, M tokens of the text, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from forecache.models.blocks import Block, Branch, described
from forecache.models.families import joint, mmdit
from forecache.models.families.joint import IMAGE, TEXT, both
from forecache.models.families.mmdit import GATE, SCALE, SHIFT, Condition
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named

JOINT, SINGLE = "HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock"
REPLACING = "HunyuanVideoTokenReplaceTransformerBlock", "HunyuanVideoTokenReplaceSingleTransformerBlock"
JOINT_15 = "HunyuanVideo15TransformerBlock"
"""The classes of the blocks that are written out here."""


def fits(model: nn.Module) -> bool:
    return is_named(model, "HunyuanVideoTransformer3DModel")


def fits_15(model: nn.Module) -> bool:
    return is_named(model, "HunyuanVideo15Transformer3DModel")


def layout(model: Any) -> Layout:
    replaces = model.config.image_condition_type == "token_replace"
    joint_kind, single_kind = REPLACING if replaces else (JOINT, SINGLE)
    blocks = described(model.transformer_blocks, joint_kind, partial(_joint, native=joint_kind))
    blocks += described(model.single_transformer_blocks, single_kind, partial(_single, native=single_kind))
    return from_blocks(model, blocks, stacked=None if replaces else mmdit.stacked)


def layout_15(model: Any) -> Layout:
    blocks = described(model.transformer_blocks, JOINT_15, partial(_joint, native=JOINT_15))
    return from_blocks(model, blocks, stacked=mmdit.stacked)


class ByFrame(Sequence[Tensor]):
    """The vectors (B, N, D) of tokens of which those of the first frame have others, each made where it is read.

    first, others: vectors (B, 1, D)
    number: of tokens of the first frame
    total: number of all tokens
    """

    def __init__(self, first: Sequence[Tensor], others: Sequence[Tensor], number: int, total: int) -> None:
        self._first, self._others, self._number, self._total = first, others, number, total

    def __len__(self) -> int:
        return len(self._others)

    def __getitem__(self, part: Any) -> Any:
        first_BND = self._first[part].expand(-1, self._number, -1)
        return torch.cat([first_BND, self._others[part].expand(-1, self._total - self._number, -1)], 1)


def _vectors(norm: Any, parts: int, temb: Tensor) -> Sequence[Tensor]:
    return mmdit.vectors(norm.linear(norm.silu(temb)), parts)


def _joint(block: Any, native: str) -> Block:
    def condition(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        attention_mask: Tensor | None = None,
        freqs_cis: Any = None,
        token_replace_emb: Any = None,
        num_tokens: Any = None,
    ) -> Condition:
        image, text = _vectors(block.norm1, 6, temb), _vectors(block.norm1_context, 6, temb)
        if native in REPLACING:
            image = ByFrame(_vectors(block.norm1, 6, token_replace_emb), image, num_tokens, hidden_states.shape[1])
        return Condition(image, text, {"attention_mask": attention_mask, "image_rotary_emb": freqs_cis})

    return Block(
        block,
        condition,
        mmdit.branches(block, mmdit.FLUX_IMAGE, mmdit.FLUX_TEXT),
        lambda: joint.weights(block.norm1, block.norm1_context),
        mmdit.INPUTS,
        (IMAGE, TEXT),
        native=native,
        inlined=("norm1", "norm1_context"),
    )


def _single(block: Any, native: str) -> Block:
    def condition(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        token_replace_emb: Any = None,
        num_tokens: Any = None,
    ) -> Condition:
        image = text = _vectors(block.norm, 3, temb)
        if native in REPLACING:
            image = ByFrame(_vectors(block.norm, 3, token_replace_emb), text, num_tokens, hidden_states.shape[1])
        return Condition(image, text, {"attention_mask": attention_mask, "image_rotary_emb": image_rotary_emb})

    def parallel(image: Tensor, text: Tensor, c: Condition) -> Tensor:
        def whole(part: int) -> Tensor:
            vector = c.image[part]
            return vector if vector.shape[1] == 1 else both(vector, c.text[part].expand(-1, text.shape[1], -1))

        normed_BND = mmdit.modulated(block.norm.norm(both(image, text)), whole(SHIFT), whole(SCALE))
        mlp_BNE = block.act_mlp(block.proj_mlp(normed_BND))
        image, text = normed_BND.split([image.shape[1], text.shape[1]], 1)
        outputs = block.attn(hidden_states=image, encoder_hidden_states=text, **c.attention)
        return block.proj_out(torch.cat([both(*outputs), mlp_BNE], 2))

    branch = Branch("parallel", parallel, lambda c: (c.image[GATE], c.text[GATE]), streams=(IMAGE, TEXT))
    return Block(
        block,
        condition,
        (branch,),
        lambda: joint.weights(block.norm),
        mmdit.INPUTS,
        (IMAGE, TEXT),
        native=native,
        inlined=("norm",),
    )


FAMILIES = (
    Family("HunyuanVideo", "HunyuanVideoTransformer3DModel", "branches", (*mmdit.KINDS, "parallel"), fits, layout),
    Family("HunyuanVideo 1.5", "HunyuanVideo15Transformer3DModel", "branches", mmdit.KINDS, fits_15, layout_15),
)
