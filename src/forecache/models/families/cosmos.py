"""CosmosTransformer3DModel of diffusers (Cosmos 1, Predict 2 and 2.5, arXiv 2501.03575), by branches: adaLN-LoRA.

Self-attention, cross-attention to text and image, MLP, each with a gate. Where frames are given, every token has a
timestep of its own. The first version adds its positions in every block, so that it is known by blocks alone.
B batch, N tokens of all frames, D width, L rank of the modulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from forecache.errors import ModelError
from forecache.models.blocks import Block, Branch, Gate, Gates, described, residual
from forecache.models.families import joint
from forecache.models.families.adaln_single import modulated
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named


class Condition(NamedTuple):
    """Shift, scale and gate of the three branches, each (B, 1, D), or (B, N, D) where tokens have timesteps; the rest.

    context: keyword arguments of the cross-attention
    """

    attn: Sequence[Tensor]
    cross: Sequence[Tensor]
    mlp: Sequence[Tensor]
    rotary: Any
    context: dict[str, Any]


NATIVE = "CosmosTransformerBlock"
"""The class of the blocks that are written out here."""


def fits(model: nn.Module) -> bool:
    return is_named(model, "CosmosTransformer3DModel")


def layout(model: Any) -> Layout:
    if model.learnable_pos_embed is not None:
        blocks = [residual(block, ("hidden_states",), (0,)) for block in model.transformer_blocks]
        return from_blocks(model, blocks, level="blocks")
    return from_blocks(model, described(model.transformer_blocks, NATIVE, _block), stacked=_stacked)


def _vectors(norm: Any, embedded: Tensor, temb: Tensor | None) -> Sequence[Tensor]:
    values = norm.linear_2(norm.linear_1(norm.activation(embedded)))
    if temb is not None:
        values = values + temb
    parts = values.chunk(3, dim=-1)
    return [part.unsqueeze(1) for part in parts] if values.ndim == 2 else parts


def _block(block: Any) -> Block:
    norms = block.norm1, block.norm2, block.norm3

    def condition(
        hidden_states: Tensor,
        encoder_hidden_states: Any,
        embedded_timestep: Tensor,
        temb: Tensor | None = None,
        image_rotary_emb: Any = None,
        extra_pos_emb: Tensor | None = None,
        attention_mask: Any = None,
        controlnet_residual: Tensor | None = None,
        latents: Tensor | None = None,
        block_idx: int | None = None,
    ) -> Condition:
        if controlnet_residual is not None:
            raise ModelError(
                "A ControlNet adds to what the blocks of Cosmos give out at every step, which a plan by branches would "
                "leave out where it skips them: make a plan by blocks, "
                "forecache.grid(pipe, num_steps, level='blocks')."
            )
        attn, cross, mlp = (_vectors(norm, embedded_timestep, temb) for norm in norms)
        context = {"encoder_hidden_states": encoder_hidden_states, "attention_mask": attention_mask}
        return Condition(attn, cross, mlp, image_rotary_emb, context)

    def attention(x_BND: Tensor, c: Condition) -> Tensor:
        return block.attn1(modulated(block.norm1.norm(x_BND), *c.attn[:2]), image_rotary_emb=c.rotary)

    def cross(x_BND: Tensor, c: Condition) -> Tensor:
        return block.attn2(modulated(block.norm2.norm(x_BND), *c.cross[:2]), **c.context)

    def mlp(x_BND: Tensor, c: Condition) -> Tensor:
        return block.ff(modulated(block.norm3.norm(x_BND), *c.mlp[:2]))

    branches = (
        Branch("attn", attention, lambda c: c.attn[2]),
        Branch("cross", cross, lambda c: c.cross[2], tokenwise=True),
        Branch("mlp", mlp, lambda c: c.mlp[2], tokenwise=True),
    )
    return Block(
        block,
        condition,
        branches,
        lambda: joint.weights(*norms),
        native=NATIVE,
        inlined=("norm1", "norm2", "norm3"),
    )


def _stacked(blocks: Sequence[Any]) -> Gates | None:
    """The gates' rows of the modulations in place; None where one of the maps is not a plain product."""
    norms = [norm for block in blocks for norm in (block.norm1, block.norm2, block.norm3)]
    if not all(joint.is_plain(linear) for norm in norms for linear in (norm.linear_1, norm.linear_2)):
        return None

    def gates(*args: Any, **kwargs: Any) -> list[Gate]:
        embedded = kwargs["embedded_timestep"] if "embedded_timestep" in kwargs else args[2]
        temb = kwargs["temb"] if "temb" in kwargs else args[3] if len(args) > 3 else None
        activated = nn.functional.silu(embedded)
        added = 0 if temb is None else temb.chunk(3, dim=-1)[2]
        values: list[Gate] = []
        for norm in norms:
            rank_BL = nn.functional.linear(activated, norm.linear_1.weight.to(activated.device))
            rows_DL = norm.linear_2.weight.chunk(3)[2].to(activated.device)
            gate = nn.functional.linear(rank_BL, rows_DL) + added
            values.append(gate.unsqueeze(1) if gate.ndim == 2 else gate)
        return values

    return gates


FAMILIES = (Family("Cosmos", "CosmosTransformer3DModel", "branches", ("attn", "cross", "mlp"), fits, layout),)
