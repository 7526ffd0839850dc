"""A plan resolved for a model before a run starts: what every step does, site by site and block by block.

Where all branches of the blocks i to j are skipped, the whole run of blocks is one sum, x + gates * estimates, with the
gates of all its branches made at once. That is the papers' arithmetic: gates are those of the current step.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Literal

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from forecache.errors import CacheBudgetError
from forecache.io.text import mib
from forecache.models.arguments import Arguments
from forecache.models.blocks import OWN, Gates, Own
from forecache.models.find import measure
from forecache.models.layout import Layout
from forecache.parts.grid import Grid
from forecache.plan import slots as slots_module
from forecache.plan.plan import Plan
from forecache.plan.slots import Op


@dataclass(frozen=True, eq=False)
class Run:
    """Skipped blocks that follow one another: their sites and the operations of these.

    sums: for every site the slots whose features are added as they lie, or None for a site whose estimate is made
    first, because a later step reads it or a gain corrects it. index, weights: for every such feature, which branch
    of the run it counts for, and how much. shifted: the branches to which a shift is added as it lies, too.
    """

    blocks: range
    sites: range
    ops: tuple[Op, ...]
    sums: tuple[tuple[int, ...] | None, ...]
    index: tuple[int, ...]
    weights: tuple[float, ...]
    shifted: tuple[int, ...]

    @property
    def key(self) -> tuple[int, int]:
        """The first and the last block."""
        return self.blocks.start, self.blocks.stop - 1

    @cached_property
    def is_sum(self) -> bool:
        """Whether every site adds features as they lie, and nothing is kept."""
        return None not in self.sums

    @cached_property
    def reads(self) -> tuple[tuple[int, int], ...]:
        """Site and slot of every feature that is added as it lies, in order."""
        return tuple((site, slot) for site, slots in zip(self.sites, self.sums, strict=True) for slot in slots or ())

    @cached_property
    def frees(self) -> tuple[tuple[int, int], ...]:
        """Site and slot of every feature that is read for the last time."""
        return tuple((site, slot) for site, op in zip(self.sites, self.ops, strict=True) for slot in op.frees)

    @cached_property
    def is_plain(self) -> bool:
        """Whether every site adds one feature, with its own gate."""
        return self.index == tuple(range(len(self.ops))) and set(self.weights) <= {1.0}


class Inside(Enum):
    """A block that the run of a block before it speaks for."""

    INSIDE = "inside"


INSIDE: Literal[Inside.INSIDE] = Inside.INSIDE


@dataclass(frozen=True, eq=False)
class Step:
    """One model call: an operation for every site, and what is known of every block.

    runs: a run for the first of skipped blocks, INSIDE for its others, OWN for a block of which nothing is skipped or
    kept, None for any other, which goes branch by branch.
    """

    ops: tuple[Op, ...]
    runs: tuple[Run | Inside | Own | None, ...]
    computed: int
    partial: int

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """Of everything that is added up; in order of sites."""
        return tuple(weight for op in self.ops for weight in op.numbers)


def step_of(ops: tuple[Op, ...], layout: Layout, guarded: bool = False) -> Step:
    """A call of the layout's model with these operations. guarded: estimates are made one by one, to be looked at."""
    spans = layout.spans
    plain = [all(ops[site].is_plain for site in sites) for sites in spans]
    runs: list[Run | Inside | Own | None] = [OWN if is_plain else None for is_plain in plain]
    for blocks in slots_module.runs(slots_module.skipped_blocks(ops, spans), layout.starts):
        runs[blocks.start : blocks.stop] = [INSIDE] * len(blocks)
        runs[blocks.start] = _run(blocks, ops, layout, guarded)
    computed, partial = sum(not op.reads for op in ops), sum(op.choice is not None for op in ops)
    return Step(ops, tuple(runs), computed, partial)


def _run(blocks: range, ops: tuple[Op, ...], layout: Layout, guarded: bool) -> Run:
    sites = range(layout.spans[blocks.start].start, layout.spans[blocks.stop - 1].stop)
    own = ops[sites.start : sites.stop]
    streams = layout.streams[sites.start : sites.stop]
    plain = [_adds_up(op, len(each), guarded) for op, each in zip(own, streams, strict=True)]
    sums = tuple(
        tuple(slot for slot, _ in op.reads) if is_plain else None for op, is_plain in zip(own, plain, strict=True)
    )
    terms = [(branch, weight) for branch, op in enumerate(own) if plain[branch] for _, weight in op.reads]
    index, weights = tuple(branch for branch, _ in terms), tuple(weight for _, weight in terms)
    shifted = tuple(branch for branch, op in enumerate(own) if plain[branch] and op.shift)
    return Run(blocks, sites, own, sums, index, weights, shifted)


def _adds_up(op: Op, streams: int, guarded: bool) -> bool:
    """Whether features are added to so many streams as they lie."""
    if op.shift and (streams > 1 or guarded):
        return False
    return op.is_sum and (op.is_reuse or not guarded)


class Program:
    """The steps of a plan on a model.

    rows: the operations of every site, [site][step]. gates: of every run of blocks that occurs, by its `Run.key`.
    """

    def __init__(self, layout: Layout, plan: Plan, guarded: bool = False) -> None:
        self.rows = slots_module.operations(plan.grid.sites, plan.rows, folded=not guarded)
        self.gates: dict[tuple[int, int], Gates] = {}
        self._layout = layout
        self._weights: object = None
        self.guarded = guarded
        self.steps = [step_of(ops, layout, guarded) for ops in zip(*self.rows, strict=True)]
        self._blocks = {run.blocks for step in self.steps for run in step.runs if isinstance(run, Run)}

    def refresh(self) -> None:
        """A generation starts: gates are stacked, unless they were and no weight has changed since."""
        if self._blocks and (weights := self._layout.weights_version()) != self._weights:
            self.gates.update(self._layout.gates_of(self._blocks))
            self._weights = weights

    def clear(self) -> None:
        """Let go of the weights that were stacked; `refresh` stacks them again."""
        self.gates.clear()
        self._weights = None


class Budget:
    """The most bytes of kept features that a generation may need; each size of a call is measured once."""

    def __init__(self, max_bytes: int, cache_dtype: torch.dtype | None) -> None:
        self._max_bytes, self._dtype = max_bytes, cache_dtype
        self._known: dict[object, int] = {}

    def check(self, model: nn.Module, program: Program, grid: Grid, arguments: Arguments, beside: int = 0) -> int:
        """The bytes that a generation needs that starts with this call.

        beside: what other lanes may need at the same time. Raises CacheBudgetError if it is too much.
        """
        leaves = tree_leaves((arguments.args, arguments.kwargs))
        key = tuple((each.shape, each.dtype, each.device) for each in leaves if isinstance(each, torch.Tensor))
        if key not in self._known:
            parts = measure(model, grid, 0, arguments)
            self._known[key] = max(slots_module.alive(program.rows, parts.kept_bytes(self._dtype), parts.site_tokens))
        need = self._known[key]
        if beside + need > self._max_bytes:
            others = f", {mib(beside)} for other calls of a step," if beside else ""
            raise CacheBudgetError(
                f"The plan keeps {mib(need)} of features at its peak for this batch{others} and "
                f"max_cache_bytes allows {mib(self._max_bytes)}: sample fewer images at a time, keep "
                "features in cache_dtype=torch.bfloat16, or take a forecast with a shorter history."
            )
        return need
