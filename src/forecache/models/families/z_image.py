"""ZImageTransformer2DModel of diffusers (Z-Image and its Turbo, Omni and Edit models, arXiv 2511.22699), by branches.

One stream of image and text. Attention and MLP are normed before and after, scaled without a shift, and their gates are
tanh-ed. In Omni models, tokens of given images are modulated as at time 1. B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from forecache.models.blocks import Block, Branch, Gate, Gates, described
from forecache.models.families import joint, mmdit
from forecache.models.families.joint import Rows
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named

NATIVE = "ZImageTransformerBlock"
"""The class of the blocks that are written out here."""
ARGUMENTS = ("x", "attn_mask", "freqs_cis", "adaln_input", "noise_mask", "adaln_noisy", "adaln_clean")
"""Of a block's forward."""
SCALE, GATE, SCALE_MLP, GATE_MLP = range(4)


class Condition(NamedTuple):
    """What the branches of a block share.

    noisy, clean: scale and gate of the attention and of the MLP, each (B, 1, D); clean: of tokens of given images
    noise_mask: (B, N), 1 for tokens that are sampled; None where all are
    mask, rotary: arguments of the attention
    """

    noisy: Sequence[Tensor]
    clean: Sequence[Tensor]
    noise_mask: Tensor | None
    mask: Tensor | None
    rotary: Tensor

    def vector(self, part: int) -> Tensor:
        """One of the four vectors, (B, 1, D), or (B, N, D) where tokens differ in it."""
        if self.noise_mask is None:
            return self.noisy[part]
        return torch.where(self.noise_mask[..., None] == 1, self.noisy[part], self.clean[part])


def fits(model: nn.Module) -> bool:
    return is_named(model, "ZImageTransformer2DModel")


def layout(model: Any) -> Layout:
    return from_blocks(model, described(model.layers, NATIVE, _block), stacked=_stacked, rising=True)


def _block(block: Any) -> Block:
    def vectors(adaln_BE: Tensor) -> tuple[Tensor, ...]:
        scale, gate, scale_mlp, gate_mlp = mmdit.vectors(block.adaLN_modulation(adaln_BE), 4)
        return 1.0 + scale, gate.tanh(), 1.0 + scale_mlp, gate_mlp.tanh()

    def condition(
        x: Tensor,
        attn_mask: Tensor | None,
        freqs_cis: Tensor,
        adaln_input: Any = None,
        noise_mask: Tensor | None = None,
        adaln_noisy: Any = None,
        adaln_clean: Any = None,
    ) -> Condition:
        if noise_mask is None:
            return Condition(vectors(adaln_input), (), None, attn_mask, freqs_cis)
        return Condition(vectors(adaln_noisy), vectors(adaln_clean), noise_mask, attn_mask, freqs_cis)

    def attention(x_BND: Tensor, c: Condition) -> Tensor:
        scaled_BND = _scaled(block.attention_norm1(x_BND), c.vector(SCALE))
        return block.attention_norm2(block.attention(scaled_BND, attention_mask=c.mask, freqs_cis=c.rotary))

    def mlp(x_BND: Tensor, c: Condition) -> Tensor:
        return block.ffn_norm2(block.feed_forward(_scaled(block.ffn_norm1(x_BND), c.vector(SCALE_MLP))))

    branches = (
        Branch("attn", attention, lambda c: c.vector(GATE)),
        Branch("mlp", mlp, lambda c: c.vector(GATE_MLP), tokenwise=True),
    )
    return Block(
        block,
        condition,
        branches,
        lambda: joint.weights(block.adaLN_modulation),
        ("x",),
        native=NATIVE,
        inlined=("adaLN_modulation",),
    )


def _scaled(normed_BND: Tensor, scale: Tensor) -> Tensor:
    return normed_BND * mmdit.fitting(scale, normed_BND)


def _stacked(blocks: Sequence[Any]) -> Gates | None:
    gates_of = joint.gates_from(
        [[Rows(joint.last_of(block.adaLN_modulation), 4, (GATE, GATE_MLP))] for block in blocks],
        [lambda gates: [gate.tanh() for gate in gates]] * len(blocks),
    )
    if gates_of is None:
        return None

    def gates(*args: Any, **kwargs: Any) -> list[Gate]:
        given = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
        mask_BN = given.get("noise_mask")
        if mask_BN is None:
            return gates_of(given["adaln_input"])
        pairs: Any = zip(gates_of(given["adaln_noisy"]), gates_of(given["adaln_clean"]), strict=True)
        return [torch.where(mask_BN[..., None] == 1, noisy, clean) for noisy, clean in pairs]

    return gates


FAMILIES = (Family("Z-Image", "ZImageTransformer2DModel", "branches", ("attn", "mlp"), fits, layout),)
