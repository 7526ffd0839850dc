"""The chain of a model's blocks: in which order they run, and which streams each of them takes and returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from forecache.models.blocks import Residual, residual
from forecache.models.families.whole_blocks import row_of
from forecache.models.family import Family
from forecache.models.layout import Layout
from forecache.models.registry import family_of


@dataclass(frozen=True)
class Chain:
    """The blocks of a model in order of execution.

    model: the transformer.
    blocks: its blocks, each with the streams that it takes and returns.
    forms: per block, the form of its streams; those of two blocks of the same form are the same tensors, passed on.
    starts: numbers of the blocks whose input is not simply the output of the block before.
    reads: whether blocks read the outputs of blocks far before them.
    clips: whether blocks clip their outputs, in half floats.
    rising: whether the model's time goes up while it samples.
    """

    model: nn.Module
    blocks: tuple[Residual, ...]
    forms: tuple[object, ...]
    starts: frozenset[int] = frozenset()
    reads: bool = False
    clips: bool = False
    rising: bool = False

    @property
    def census(self) -> str:
        """The lists of blocks with their lengths: ``transformer_blocks x 19, single_transformer_blocks x 38``."""
        counts: dict[str, int] = {}
        path_of = {id(module): path for path, module in self.model.named_modules()}
        for block in self.blocks:
            path = path_of.get(id(block.module), "").rpartition(".")[0]
            counts[path] = counts.get(path, 0) + 1
        return ", ".join(f"{path} x {count}" for path, count in counts.items())

    def spans(self, most: int | None = None) -> list[range]:
        """The longest spans, of at most so many blocks, that end with streams of the form that they begin with."""
        spans: list[range] = []
        first = 0
        while first < len(self.blocks):
            limit = len(self.blocks) if most is None else min(first + most, len(self.blocks))
            stop = max(end for end in range(first + 1, limit + 1) if self.forms[end - 1] == self.forms[first])
            spans.append(range(first, stop))
            first = stop
        return spans


def chain_of(model: nn.Module) -> Chain | None:
    """The chain of a model whose class is known; None for any other."""
    if (row := row_of(model)) is not None:
        blocks = row.blocks(model)
        number = len(row.stacks)
        forms = [(block.inputs, depth % number if row.interleaved else 0) for depth, block in enumerate(blocks)]
        starts = range(len(blocks)) if row.reads else _changes(forms)
        return Chain(model, tuple(blocks), tuple(forms), frozenset(starts), row.reads, row.clips, row.rising)
    if (family := family_of(model)) is not None:
        return _of_family(model, family)
    return None


def _of_family(model: Any, family: Family) -> Chain | None:
    """The chain of a model whose blocks are known by branches."""
    known: Layout = family.layout(model)
    blocks = [residual(block.module, block.inputs, block.outputs) for _, block in known.blocks]
    if not blocks:
        return None
    forms = tuple(block.inputs for block in blocks)
    return Chain(model, tuple(blocks), forms, known.starts, False, known.clips, known.rising)


def _changes(forms: Sequence[object]) -> set[int]:
    """Numbers of the blocks whose streams are of another form than those of the block before."""
    return {number for number, (before, form) in enumerate(pairwise(forms), start=1) if form != before}
