"""The chain of a model's blocks: in which order they run, and which streams each of them takes and returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from forecache.errors import SiteError
from forecache.models.blocks import Residual, residual
from forecache.models.counting import FullTexts, twin
from forecache.models.examples import example_of
from forecache.models.families.whole_blocks import row_of
from forecache.models.family import Family
from forecache.models.layout import Layout
from forecache.models.reads import Blocks, Reads
from forecache.models.registry import family_of
from forecache.models.structure import BlockCall, Observer, learnt, lists_of, parts_of


@dataclass(frozen=True)
class Chain:
    """The blocks of a model in order of execution.

    model: the transformer.
    blocks: its blocks, each with the streams that it takes and returns.
    forms: per block, the form of its streams; those of two blocks of the same form are the same tensors, passed on.
    starts: numbers of the blocks whose input is not simply the output of the block before.
    reads: pairs (block, reader) of numbers: beside the next block, this later one reads the block's output, or, where
        it is the number of blocks, the rest of the model.
    clips: whether blocks clip their outputs, in half floats.
    rising: whether the model's time goes up while it samples.
    is_known: whether the blocks are those that the model's class is known by.
    is_seen: whether streams and reads are known before the first call: of the class, or from a call without data.
    """

    model: nn.Module
    blocks: tuple[Residual, ...]
    forms: tuple[object, ...]
    starts: frozenset[int] = frozenset()
    reads: frozenset[tuple[int, int]] = frozenset()
    clips: bool = False
    rising: bool = False
    is_known: bool = True
    is_seen: bool = True

    @property
    def census(self) -> str:
        """The lists of blocks with their lengths: ``transformer_blocks x 19, single_transformer_blocks x 38``."""
        counts: dict[str, int] = {}
        path_of = {id(module): path for path, module in self.model.named_modules()}
        for block in self.blocks:
            path = path_of.get(id(block.module), "").rpartition(".")[0]
            counts[path] = counts.get(path, 0) + 1
        return ", ".join(f"{path} x {count}" for path, count in counts.items())

    def read_beyond(self, span: range) -> int | None:
        """The first block inside of a span whose output something after the span reads; None if there is none."""
        inner = range(span.start, span.stop - 1)
        return min((block for block, reader in self.reads if block in inner and reader >= span.stop), default=None)

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


def chain_of(model: nn.Module, paths: Sequence[str] | None = None) -> Chain:
    """The chain of a model, from what is known of its class, else from its lists of blocks.

    paths: of the lists of blocks, in order; None for what is known of the class, else for all large lists
    """
    if paths is None and (known := _known(model)) is not None:
        return known
    lists = lists_of(model, paths)
    key = tuple(lists)
    modules = [module for blocks in lists.values() for module in blocks]
    traced = _TRACED.setdefault(model, {})
    if key not in traced or traced[key][0] != modules:
        traced[key] = modules, _traced(model, lists, is_given=paths is not None)
    parts = traced[key][1]
    return _untraced(model, lists) if parts is None else Chain(model, *parts, is_known=False)


def _known(model: nn.Module) -> Chain | None:
    """The chain of a model whose class is known; None for any other."""
    if (row := row_of(model)) is not None:
        blocks = row.blocks(model)
        number = len(row.stacks)
        forms = [(block.inputs, depth % number if row.interleaved else 0) for depth, block in enumerate(blocks)]
        reads = row.long_skips(len(blocks))
        starts = range(len(blocks)) if reads else _changes(forms)
        return Chain(model, tuple(blocks), tuple(forms), frozenset(starts), reads, row.clips, row.rising)
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
    return Chain(model, tuple(blocks), forms, known.starts, clips=known.clips, rising=known.rising)


def _changes(forms: Sequence[object]) -> set[int]:
    """Numbers of the blocks whose streams are of another form than those of the block before."""
    return {number for number, (before, form) in enumerate(pairwise(forms), start=1) if form != before}


_Traced = tuple[tuple[Residual, ...], tuple[object, ...], frozenset[int], frozenset[tuple[int, int]]]
_TRACED: WeakKeyDictionary[nn.Module, dict[tuple[str, ...], tuple[list[nn.Module], _Traced | None]]] = (
    WeakKeyDictionary()
)
"""The modules of lists, and the blocks, forms, starts and reads of their chain, by model and paths of lists."""


def _untraced(model: nn.Module, lists: Mapping[str, Sequence[nn.Module]]) -> Chain:
    """The chain of a model of which no call is known: lists follow one another, each with streams of its own."""
    blocks = [learnt(module) for modules in lists.values() for module in modules]
    forms = [path for path, modules in lists.items() for _ in modules]
    return Chain(model, tuple(blocks), tuple(forms), frozenset(range(len(blocks))), is_known=False, is_seen=False)


def _traced(model: nn.Module, lists: Mapping[str, Sequence[nn.Module]], is_given: bool) -> _Traced | None:
    """What a call of a twin on the meta device shows; None if no call is known, or shapes alone do not make one."""
    example = example_of(model)
    if example is None:
        return None
    observer, other = Observer(), twin(model)
    own = {path: list(other.get_submodule(path).children()) for path in lists}
    original = {
        id(part): module for path, modules in lists.items() for part, module in zip(own[path], modules, strict=True)
    }
    try:
        with torch.no_grad(), FullTexts(), Reads() as followed, observer.hooked(own):
            output = other(**example(other, 2))
        kept_at_end = followed.kept(output)
    except Exception:  # of the model's own code, which may fail in any way where tensors have no values
        return None
    path_of = {id(part): path for path, parts in own.items() for part in parts}
    calls = observer.calls
    dropped = _unfit(calls, own)
    if dropped and (is_given or len(dropped) == len(own)):
        path, reason = next(iter(dropped.items()))
        raise SiteError(f"The blocks of {type(model).__name__}.{path} {reason}: name modules as sites.")
    parts = parts_of(calls)
    kept = [number for number, call in enumerate(calls) if path_of[id(call.module)] not in dropped]
    forms = _forms_of(kept, calls, parts, path_of)
    blocks = [replace(parts[number], module=original[id(parts[number].module)]) for number in kept]
    reads = _pairs([calls[number].module for number in kept], followed, kept_at_end)
    starts = range(len(blocks)) if reads else _changes(forms)
    return tuple(blocks), forms, frozenset(starts), reads


def _pairs(modules: Sequence[nn.Module], followed: Reads, kept: Blocks) -> frozenset[tuple[int, int]]:
    """The pairs of `Chain.reads`, from what a call showed.

    kept: the blocks whose outputs are read when the last has run
    """
    numbers = {module: number for number, module in enumerate(modules)}
    readers = [followed.given.get(module, frozenset()) for module in modules]
    every = [
        (numbers[source], reader)
        for reader, sources in enumerate([*readers, kept])
        for source in sources
        if source in numbers
    ]
    return frozenset((source, reader) for source, reader in every if reader - source > 1)


def _unfit(calls: Sequence[BlockCall], lists: Mapping[str, Sequence[nn.Module]]) -> dict[str, str]:
    """The lists that are no part of the chain, with the reason."""
    times = Counter(id(call.module) for call in calls)
    unfit = {}
    for path, modules in lists.items():
        numbers = set(map(id, modules))
        if {times[number] for number in numbers} != {1}:
            unfit[path] = "do not run once each in a model call"
        elif any(call.is_held for call in calls if id(call.module) in numbers):
            unfit[path] = "return what is read after the last of them has run"
    return unfit


def _forms_of(
    numbers: Sequence[int], calls: Sequence[BlockCall], parts: Sequence[Residual], path_of: Mapping[int, str]
) -> tuple[object, ...]:
    """The form of every block's streams: that of the block before it that passes its streams on, or of its list."""
    forms: list[object] = []
    of_list: dict[object, object] = {}
    for place, number in enumerate(numbers):
        call, part = calls[number], parts[number]
        shapes = tuple(call.shapes[name] for name in part.inputs)
        key = path_of[id(call.module)], shapes
        form = _passed_on(calls, parts, numbers[place - 1], number) if place else False
        of_list.setdefault(key, forms[-1] if form else len(of_list))
        forms.append(of_list[key])
    return tuple(forms)


def _passed_on(calls: Sequence[BlockCall], parts: Sequence[Residual], before: int, number: int) -> bool:
    """Whether a block is given every stream that the block before it returned, in its place."""
    returned = {stream: place for place, stream in enumerate(parts[before].outputs) if stream is not None}
    sources = [calls[number].sources.get(name) for name in parts[number].inputs]
    return sources == [(before, returned.get(stream)) for stream in range(len(parts[before].inputs))]
