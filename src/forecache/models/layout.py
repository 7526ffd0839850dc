"""Layouts: a model seen as sites, and the forwards that route every site through a handler.

B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from forecache.errors import PlanMismatchError
from forecache.models.blocks import Block, BlockHandler, Forward, Gate, Gates, OpenSpans, SiteHandler
from forecache.models.examples import example_of
from forecache.models.families.adaln_zero import StackedGates
from forecache.parts.grid import Cell, Site

Call = Callable[..., Mapping[str, Any]]
"""(batch), or (batch, size of what is sampled) -> the arguments of one model call, on the meta device."""
Level = Literal["branches", "blocks", "groups", "stack", "modules"]
"""What sites are: branches of known blocks, whole blocks, several consecutive blocks, all of them, or modules."""


class MountedForwards(Protocol):
    """Given handlers of sites and blocks, the (module, forward) pairs that route every site through them.

    opened: gives what spans hold in the model call in progress; by default one dict for all calls.
    """

    def __call__(
        self, on_site: SiteHandler, on_block: BlockHandler | None = None, opened: OpenSpans | None = None, /
    ) -> Iterable[tuple[nn.Module, Forward]]: ...


@dataclass(frozen=True)
class Layout:
    """A model seen as sites, in order of execution.

    model: the transformer.
    sites: in order of execution.
    forwards: see `MountedForwards`.
    example: the arguments of one model call; None where only the user knows them.
    guided: whether the pipelines of the model sample a guidance pair by default.
    tokenwise: numbers of the sites that treat every token by itself.
    received: for sites that are attentions, called as they are computed, what every token receives, (B, N).
    blocks: where sites belong to blocks, each block with the index of its first site.
    stacked: the gates of some of these blocks at once; None if they are computed one by one.
    starts: numbers of the blocks whose input is not simply the output of the block before; a span of skipped blocks
        ends there.
    level: what sites are.
    rising: whether the model's time goes up while it samples.
    clips: whether its blocks clip their outputs, in half floats.
    whole: numbers of the blocks that run another forward than their branches: each is one site, its output minus its
        input, in the place of the first branch.
    needed: pairs (site, other): the weights of the first are there only where the other is computed.
    lists: the lists of blocks that sites of several blocks are made of, with their lengths; else empty.
    """

    model: nn.Module
    sites: tuple[Site, ...]
    forwards: MountedForwards
    example: Call | None = None
    tokenwise: frozenset[int] = frozenset()
    received: Mapping[int, Callable[..., Tensor]] = field(default_factory=dict)
    blocks: tuple[tuple[int, Block], ...] = ()
    stacked: Callable[[Sequence[nn.Module]], Gates | None] | None = None
    starts: frozenset[int] = frozenset()
    level: Level = "modules"
    rising: bool = False
    clips: bool = False
    guided: bool = True
    whole: frozenset[int] = frozenset()
    needed: tuple[tuple[int, int], ...] = ()
    lists: str = ""

    @property
    def spans(self) -> tuple[range, ...]:
        """The indices of the sites of every block."""
        return tuple(range(first, first + len(block.branches)) for first, block in self.blocks)

    @property
    def streams(self) -> tuple[tuple[int, ...], ...]:
        """The streams that every site adds to; empty if sites do not belong to blocks."""
        return tuple(branch.streams for _, block in self.blocks for branch in block.branches)

    def is_like(self, other: Layout) -> bool:
        """Whether spans end at the same blocks of the model, and the same blocks run as a whole."""
        return (self.starts, self.whole, self.needed) == (other.starts, other.whole, other.needed)

    def weights_version(self) -> object:
        """A token of the modulation weights' identity and version; it changes whenever one of them does.

        It holds their addresses and versions, whether gradients flow to them, and the sums of those that are copied:
        a write through ``.data``, as by peft's merging, changes nothing else.
        """
        weights = [weight for _, block in self.blocks for weight in block.weights()]
        copied = [weight for _, block in self.blocks if block.copies for weight in block.weights()]
        versions = [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]
        return versions, _is_trained(copied), _sums(copied)

    def gates(self, numbers: Iterable[int]) -> Gates:
        """The gates of blocks, from one batched product if the family has one and the modules allow it."""
        blocks = [self.blocks[number][1] for number in numbers]
        copied = [weight for block in blocks if block.copies for weight in block.weights()]
        if self.stacked is None or _is_trained(copied):
            return _one_by_one(blocks)
        return self.stacked([block.module for block in blocks]) or _one_by_one(blocks)

    def gates_of(self, runs: Iterable[range]) -> dict[tuple[int, int], Gates]:
        """The gates of runs of blocks, by first and last block; the weights of all runs are copied once."""
        spans = list(runs)
        numbers = sorted({number for span in spans for number in span})
        whole = self.gates(numbers)
        if not isinstance(whole, StackedGates):
            return {(span.start, span.stop - 1): self.gates(span) for span in spans}
        return {(span.start, span.stop - 1): whole.part(numbers.index(span.start), len(span)) for span in spans}

    def check_tokens(self, rows: Sequence[Sequence[Cell]]) -> None:
        """Raises PlanMismatchError if a plan computes some tokens of a site that this model computes as a whole."""
        number = {site.name: index for index, site in enumerate(self.sites)}
        for index, row in enumerate(rows):
            partial = [cell.tokens for cell in row if cell.tokens is not None]
            name = self.sites[index].name
            if partial and index not in self.tokenwise:
                possible = ", ".join(dict.fromkeys(self.sites[site].kind for site in sorted(self.tokenwise)))
                raise PlanMismatchError(
                    f"The plan computes some tokens of {name}, which does not treat every token by itself: partial "
                    f"cells are for sites of the kinds {possible or '(none in this model)'}."
                )
            scored = {number[tokens.site] for tokens in partial if tokens.importance == "attention"}
            if unknown := sorted(scored - set(self.received)):
                raise PlanMismatchError(
                    f"The plan ranks tokens by the attention of {self.sites[unknown[0]].name}, which forecache cannot "
                    f"compute in {type(self.model).__name__}: use importance='attn_norm'."
                )

    def rows_among_others(self, rows: Sequence[tuple[Cell, ...]]) -> list[tuple[Cell, ...]]:
        """The rows of a plan as they run on this model.

        A block that runs as a whole is computed where any of its branches is, and the row of its first branch says how
        it is estimated where none is. Raises PlanMismatchError for a plan that corrects such a block or ranks tokens by
        it, and for one that computes a block whose weights are offloaded together with those of a skipped one.
        """
        adapted = list(rows)
        for number in sorted(self.whole):
            span = self.spans[number]
            row = tuple(
                cells[0] if all(not cell.computed and cell.tokens is None for cell in cells) else Cell()
                for cells in zip(*(rows[site] for site in span), strict=True)
            )
            adapted[span.start : span.stop] = [row] * len(span)
        for number in sorted(self.whole):
            self._check_whole(number, rows, adapted)
        for site, leader in self.needed:
            for step, (cell, other) in enumerate(zip(adapted[site], adapted[leader], strict=True)):
                if (cell.computed or cell.tokens is not None) and not other.computed:
                    raise PlanMismatchError(
                        f"The plan computes {self.sites[site].name} at step {step} and not {self.sites[leader].name}, "
                        "and their weights are offloaded as one group that returns with the latter: offload with "
                        "num_blocks_per_group=1, or make a plan that computes both at the same steps."
                    )
        return adapted

    def _check_whole(self, number: int, rows: Sequence[Sequence[Cell]], adapted: Sequence[Sequence[Cell]]) -> None:
        span = self.spans[number]
        names = {self.sites[site].name for site in span}
        is_corrected = any(cell.constants for site in span for cell in rows[site])
        is_ranking = any(cell.tokens is not None and cell.tokens.site in names for row in adapted for cell in row)
        if is_corrected or is_ranking:
            raise PlanMismatchError(
                f"Block {number} of this {type(self.model).__name__} ({min(names)}) runs another forward than that of "
                "its class, because something patches or hooks it, so that its branches cannot be seen, and the plan "
                f"{'corrects' if is_corrected else 'ranks tokens by'} them: take the patch off, or make a plan without "
                "that, such as forecache.fora or forecache.goc."
            )


def _is_trained(weights: Iterable[Tensor]) -> bool:
    """Whether gradients flow to the weights."""
    return torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)


def _sums(weights: Iterable[Tensor]) -> list[float]:
    """The sums of the weights, in one transfer from each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    with torch.no_grad():
        for weight in weights:
            if type(weight) in (Tensor, nn.Parameter) and not weight.is_meta:
                by_device.setdefault(weight.device, []).append(weight.sum(dtype=torch.float32))
        return [number for sums in by_device.values() for number in torch.stack(sums).tolist()]


def _one_by_one(blocks: Sequence[Block]) -> Gates:
    if all(branch.gate is None for block in blocks for branch in block.branches):
        ones = [1.0 for block in blocks for _ in block.branches]
        return lambda *_, **__: ones

    def gates(*args: Any, **kwargs: Any) -> Sequence[Gate]:
        values = _GatesInTurn(blocks, args, kwargs)
        return list(values) if torch.compiler.is_compiling() else values

    return gates


class _GatesInTurn(Sequence[Gate]):
    """The gates of blocks, each made where it is read, as one may have a vector for every token; conditions once."""

    def __init__(self, blocks: Sequence[Block], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._args, self._kwargs = args, kwargs
        self._branches = [(block, branch) for block in blocks for branch in block.branches]
        self._conditions: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._branches)

    def __getitem__(self, number: Any) -> Any:
        block, branch = self._branches[number]
        if id(block) not in self._conditions:
            self._conditions[id(block)] = block.condition(*self._args, **self._kwargs)
        return 1.0 if branch.gate is None else branch.gate(self._conditions[id(block)])


def from_blocks(
    model: nn.Module,
    blocks: Iterable[Block],
    example: Call | None = None,
    stacked: Callable[[Sequence[nn.Module]], Gates | None] | None = None,
    *,
    sites: Sequence[Site] | None = None,
    starts: Iterable[int] = (),
    level: Level = "branches",
    rising: bool = False,
    clips: bool = False,
    lists: str = "",
) -> Layout:
    """The layout of a stack of blocks, each called with the output of the one before, except for ``starts``.

    A block that takes other streams than the one before it is a start by itself.

    example: by default that of the model's class.
    sites: one a branch; by default they are named ``blocks.<depth>.<kind>``, as in every family.
    """
    numbered: list[tuple[int, Block]] = []
    own: list[Site] = []
    for depth, block in enumerate(blocks):
        numbered.append((len(own), block))
        own.extend(Site(f"blocks.{depth}.{branch.kind}", depth, branch.kind) for branch in block.branches)

    def forwards(
        on_site: SiteHandler, on_block: BlockHandler | None = None, opened: OpenSpans | None = None, /
    ) -> list[tuple[nn.Module, Forward]]:
        spans: dict[int, Any] = {}
        of_call = opened or (lambda: spans)
        return [
            pair
            for number, (first_site, block) in enumerate(numbered)
            for pair in block.forwards(number, first_site, on_site, on_block, of_call)
        ]

    branches = [branch for _, block in numbered for branch in block.branches]
    pairs = enumerate(pairwise(block for _, block in numbered), start=1)
    changes = {number for number, (before, block) in pairs if block.inputs != before.inputs}
    known = example_of(model)
    return Layout(
        model,
        tuple(own if sites is None else sites),
        forwards,
        example or (partial(known, model) if known is not None else None),
        frozenset(site for site, branch in enumerate(branches) if branch.tokenwise),
        {site: branch.received for site, branch in enumerate(branches) if branch.received is not None},
        tuple(numbered),
        stacked,
        frozenset(changes.union(starts)),
        level,
        rising,
        clips,
        known is None or known.guided,
        lists=lists,
    )


def is_named(model: object, name: str) -> bool:
    """Whether the model is of this diffusers class or a subclass; diffusers is not imported for it."""
    return any(kind.__name__ == name and kind.__module__.startswith("diffusers.") for kind in type(model).__mro__)
