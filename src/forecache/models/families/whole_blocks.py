"""diffusers' families by whole blocks: one site a block, ``blocks.<depth>.block``, its output minus its input.

A table: the class, its stacks of blocks in order of execution, and the inputs and outputs of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import nn

from forecache.models.blocks import Residual, residual
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named

IMAGE, TEXT = 0, 1
ALONE = ("hidden_states",)
JOINT = ("hidden_states", "encoder_hidden_states")


@dataclass(frozen=True)
class Stack:
    """A list of blocks, each called with the output of the one before.

    path: attribute of the list in the model
    inputs: the names of the streams in the signature of a block's forward
    outputs: the streams in the order in which a block returns them
    """

    path: str
    inputs: tuple[str, ...] = ALONE
    outputs: tuple[int, ...] = (IMAGE,)

    def blocks(self, model: Any) -> list[Residual]:
        """The blocks of the list, each as one site."""
        return [residual(block, self.inputs, self.outputs) for block in getattr(model, self.path)]


@dataclass(frozen=True)
class Row:
    """A diffusers class and its stacks of blocks.

    kind: the class
    name: as its users know it
    stacks: in order of execution
    is_u_shaped: blocks of the second half read the outputs of those of the first, in reverse order, so that spans of
        skipped blocks end at each
    interleaved: blocks of the stacks alternate, on tokens in another order
    rising: the model's time goes up while it samples
    clips: its blocks clip their outputs, in half floats
    """

    kind: str
    name: str
    stacks: tuple[Stack, ...]
    is_u_shaped: bool = False
    interleaved: bool = False
    rising: bool = False
    clips: bool = False

    def fits(self, model: nn.Module) -> bool:
        """Whether a model is of the class."""
        return is_named(model, self.kind)

    def blocks(self, model: Any) -> list[Residual]:
        """The blocks of a model in order of execution."""
        stacks = [stack.blocks(model) for stack in self.stacks]
        by_depth = zip(*stacks, strict=True) if self.interleaved else stacks
        return list(chain.from_iterable(by_depth))

    def long_skips(self, number: int) -> frozenset[tuple[int, int]]:
        """The pairs (block, reader) in a model of so many blocks, without the block next to the middle."""
        skips = number // 2 - 1 if self.is_u_shaped else 0
        return frozenset((depth, number - 1 - depth) for depth in range(skips))

    def layout(self, model: Any) -> Layout:
        """The layout of a model, with a site for every block."""
        stacks = [getattr(model, stack.path) for stack in self.stacks]
        blocks = self.blocks(model)
        if self.is_u_shaped or self.interleaved:
            starts = range(len(blocks))
        else:
            starts = {sum(map(len, stacks[:number])) for number in range(len(stacks)) if self._changes_streams(number)}
        return from_blocks(model, blocks, starts=starts, level="blocks", rising=self.rising, clips=self.clips)

    def _changes_streams(self, number: int) -> bool:
        """Whether a stack takes other streams than the one before it."""
        return number > 0 and self.stacks[number].inputs != self.stacks[number - 1].inputs


ROWS = (
    Row(
        "Flux2Transformer2DModel",
        "FLUX.2",
        (Stack("transformer_blocks", JOINT, (TEXT, IMAGE)), Stack("single_transformer_blocks")),
        clips=True,
    ),
    Row(
        "QwenImageTransformer2DModel",
        "Qwen-Image",
        (Stack("transformer_blocks", JOINT, (TEXT, IMAGE)),),
        clips=True,
    ),
    Row("ZImageTransformer2DModel", "Z-Image", (Stack("layers", ("x",)),), rising=True),
    Row("SanaTransformer2DModel", "Sana", (Stack("transformer_blocks"),)),
    Row("Lumina2Transformer2DModel", "Lumina 2", (Stack("layers"),), rising=True),
    Row(
        "AuraFlowTransformer2DModel",
        "AuraFlow",
        (Stack("joint_transformer_blocks", JOINT, (TEXT, IMAGE)), Stack("single_transformer_blocks")),
    ),
    Row("HunyuanDiT2DModel", "HunyuanDiT", (Stack("blocks"),), is_u_shaped=True),
    Row("CogVideoXTransformer3DModel", "CogVideoX", (Stack("transformer_blocks", JOINT, (IMAGE, TEXT)),)),
    Row(
        "HunyuanVideoTransformer3DModel",
        "HunyuanVideo",
        (
            Stack("transformer_blocks", JOINT, (IMAGE, TEXT)),
            Stack("single_transformer_blocks", JOINT, (IMAGE, TEXT)),
        ),
    ),
    Row("LTXVideoTransformer3DModel", "LTX-Video", (Stack("transformer_blocks"),)),
    Row("MochiTransformer3DModel", "Mochi 1", (Stack("transformer_blocks", JOINT, (IMAGE, TEXT)),)),
    Row(
        "LatteTransformer3DModel",
        "Latte",
        (Stack("transformer_blocks"), Stack("temporal_transformer_blocks")),
        interleaved=True,
    ),
    Row("StableAudioDiTModel", "Stable Audio", (Stack("transformer_blocks"),)),
)


FAMILIES = tuple(Family(row.name, row.kind, "blocks", ("block",), row.fits, row.layout) for row in ROWS)


def row_of(model: nn.Module) -> Row | None:
    """The row of a model's class; None if there is none."""
    return next((row for row in ROWS if row.fits(model)), None)
