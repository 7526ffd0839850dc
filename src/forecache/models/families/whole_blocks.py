"""diffusers' families by whole blocks: what each block adds to its streams is one site, in ``blocks.<depth>.block``.

A table: the class, its stacks of blocks in order of execution, and what a block takes and gives out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import nn

from forecache.models.blocks import Residual, residual
from forecache.models.layout import Layout, from_blocks, is_named

IMAGE, TEXT = 0, 1
ALONE = ("hidden_states",)
JOINT = ("hidden_states", "encoder_hidden_states")


@dataclass(frozen=True)
class Stack:
    """A list of blocks, each called with what the one before gave out.

    path: of the list in the model. inputs: what the forward of a block calls its streams. outputs: the streams in the
    order in which it gives them out.
    """

    path: str
    inputs: tuple[str, ...] = ALONE
    outputs: tuple[int, ...] = (IMAGE,)


@dataclass(frozen=True)
class Family:
    """A diffusers class and its stacks.

    name: as its users know it. reads: the model reads what
    single blocks hand on, for long skips, so that blocks are never added up as a run. turns: blocks of the stacks take
    turns, on tokens that lie otherwise. rising: the model is told a time that goes up. clips: see `Layout`.
    """

    kind: str
    name: str
    stacks: tuple[Stack, ...]
    reads: bool = False
    turns: bool = False
    rising: bool = False
    clips: bool = False

    def fits(self, model: nn.Module) -> bool:
        return is_named(model, self.kind)


FAMILIES = (
    Family(
        "Flux2Transformer2DModel",
        "FLUX.2",
        (Stack("transformer_blocks", JOINT, (TEXT, IMAGE)), Stack("single_transformer_blocks")),
        clips=True,
    ),
    Family(
        "QwenImageTransformer2DModel",
        "Qwen-Image",
        (Stack("transformer_blocks", JOINT, (TEXT, IMAGE)),),
        clips=True,
    ),
    Family("ZImageTransformer2DModel", "Z-Image", (Stack("layers", ("x",)),), rising=True),
    Family("SanaTransformer2DModel", "Sana", (Stack("transformer_blocks"),)),
    Family("Lumina2Transformer2DModel", "Lumina 2", (Stack("layers"),), rising=True),
    Family(
        "AuraFlowTransformer2DModel",
        "AuraFlow",
        (Stack("joint_transformer_blocks", JOINT, (TEXT, IMAGE)), Stack("single_transformer_blocks")),
    ),
    Family("HunyuanDiT2DModel", "HunyuanDiT", (Stack("blocks"),), reads=True),
    Family("CogVideoXTransformer3DModel", "CogVideoX", (Stack("transformer_blocks", JOINT, (IMAGE, TEXT)),)),
    Family(
        "HunyuanVideoTransformer3DModel",
        "HunyuanVideo",
        (
            Stack("transformer_blocks", JOINT, (IMAGE, TEXT)),
            Stack("single_transformer_blocks", JOINT, (IMAGE, TEXT)),
        ),
    ),
    Family("LTXVideoTransformer3DModel", "LTX-Video", (Stack("transformer_blocks"),)),
    Family("MochiTransformer3DModel", "Mochi 1", (Stack("transformer_blocks", JOINT, (IMAGE, TEXT)),)),
    Family(
        "LatteTransformer3DModel",
        "Latte",
        (Stack("transformer_blocks"), Stack("temporal_transformer_blocks")),
        turns=True,
    ),
    Family("StableAudioDiTModel", "Stable Audio", (Stack("transformer_blocks"),)),
)


def family(model: nn.Module) -> Family | None:
    """The row of the table that the model belongs to."""
    return next((each for each in FAMILIES if each.fits(model)), None)


def layout(model: Any) -> Layout:
    found = family(model)
    assert found is not None, "fits() was asked before"
    stacks = [list(_blocks(model, stack)) for stack in found.stacks]
    blocks = list(chain.from_iterable(zip(*stacks, strict=True)) if found.turns else chain.from_iterable(stacks))
    if found.reads or found.turns:
        starts = range(len(blocks))
    else:
        starts = {sum(map(len, stacks[:number])) for number, _ in enumerate(stacks) if _other(found, number)}
    return from_blocks(model, blocks, starts=starts, level="blocks", rising=found.rising, clips=found.clips)


def _other(found: Family, number: int) -> bool:
    """Whether a stack has other streams than the one before it."""
    return number > 0 and found.stacks[number].inputs != found.stacks[number - 1].inputs


def _blocks(model: nn.Module, stack: Stack) -> Iterable[Residual]:
    return (residual(block, stack.inputs, stack.outputs) for block in getattr(model, stack.path))
