"""The steps of a plan on a model, known before a run starts: what happens at every site and to every block.

Where all branches of the blocks i to j are skipped, the whole span of blocks is one sum, x + gates * estimates, and the
gates of all its branches are computed at once. That is the papers' arithmetic: the gates are those of the current step.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from forecache.models.blocks import UNTOUCHED, WHOLE, Untouched, Whole
from forecache.models.layout import Layout
from forecache.plan.ops import OUT, Op
from forecache.plan.slots import consecutive, skipped_blocks


@dataclass(frozen=True, eq=False)
class SkippedSpan:
    """Consecutive skipped blocks, whose sites add their gated estimates to the streams at once.

    key: the first and the last block.
    sites: numbers of their sites.
    ops: one operation a site.
    slots_added: per site, the slots whose features are added as they are; None where the estimate is materialised
        first, because a later step reads it or a gain corrects it.
    reads: site and slot of every feature that is added as it is, in order.
    branches: for every one of these features, the branch of the span whose gate it gets.
    weights: for every one of these features, its weight in the estimate.
    frees: site and slot of every feature that no later step reads.
    shifted: branches to which a shift is added as it is.
    is_sum: whether every site adds features as they are, so that nothing is kept.
    is_reuse: whether every site adds one feature with weight 1, so that gates need no weights.
    """

    key: tuple[int, int]
    sites: range
    ops: tuple[Op, ...]
    slots_added: tuple[tuple[int, ...] | None, ...]
    reads: tuple[tuple[int, int], ...]
    branches: tuple[int, ...]
    weights: tuple[float, ...]
    frees: tuple[tuple[int, int], ...]
    shifted: tuple[int, ...]
    is_sum: bool
    is_reuse: bool


class Covered(Enum):
    """Marks a skipped block that an earlier block's span covers: it returns its input."""

    COVERED = "covered"


COVERED: Literal[Covered.COVERED] = Covered.COVERED


@dataclass(frozen=True, eq=False)
class Step:
    """One model call of a plan.

    ops: one operation a site.
    as_is: per site, the slot that keeps its output as it is, where it is computed and nothing else is to do; else None.
    blocks: per block, a span for the first of skipped blocks, COVERED for its others, UNTOUCHED for a block of which
        nothing is skipped or kept, WHOLE for one that is a single site, its first; None for any other, which runs
        branch by branch.
    weights: the weights of all operations, in order of sites.
    computed: number of sites that are computed as a whole.
    partial: number of sites of which some tokens are computed.
    is_computed: whether every site is computed as a whole.
    """

    ops: tuple[Op, ...]
    as_is: tuple[int | None, ...]
    blocks: tuple[SkippedSpan | Covered | Untouched | Whole | None, ...]
    weights: tuple[float, ...]
    computed: int
    partial: int
    is_computed: bool


def step_of(ops: tuple[Op, ...], layout: Layout, guarded: bool = False) -> Step:
    """The step of the layout's model with these operations.

    guarded: whether every estimate is materialised, so that its error can be measured; see `Guards.max_error`.
    """
    blocks: list[SkippedSpan | Covered | Untouched | Whole | None] = [
        UNTOUCHED if all(ops[site].is_untouched for site in sites) else WHOLE if number in layout.whole else None
        for number, sites in enumerate(layout.spans)
    ]
    skipped_alone = [number for number in skipped_blocks(ops, layout.spans) if number not in layout.whole]
    for skipped in consecutive(skipped_alone, layout.starts):
        blocks[skipped.start : skipped.stop] = [COVERED] * len(skipped)
        blocks[skipped.start] = _span(skipped, ops, layout, guarded)
    computed, partial = sum(not op.reads for op in ops), sum(op.choice is not None for op in ops)
    others = {site for number in layout.whole for site in layout.spans[number][1:]}
    if others:
        ops = tuple(Op() if site in others else op for site, op in enumerate(ops))
    weights = tuple(weight for op in ops for weight in op.weights)
    return Step(
        ops, tuple(map(_slot_as_is, ops)), tuple(blocks), weights, computed, partial, is_computed=computed == len(ops)
    )


def _slot_as_is(op: Op) -> int | None:
    """The slot that keeps a site's output as it is; None if anything else is kept, estimated or scored."""
    if op.reads or op.choice is not None or op.scored or len(op.keeps) != 1:
        return None
    (kept,) = op.keeps
    return kept.slot if kept.base == OUT and not kept.adds else None


def _span(blocks: range, all_ops: tuple[Op, ...], layout: Layout, guarded: bool) -> SkippedSpan:
    sites = range(layout.spans[blocks.start].start, layout.spans[blocks.stop - 1].stop)
    ops = all_ops[sites.start : sites.stop]
    streams = layout.streams[sites.start : sites.stop]
    as_is = [_is_added_as_is(op, len(stream), guarded) for op, stream in zip(ops, streams, strict=True)]
    terms = [(branch, slot, weight) for branch, op in enumerate(ops) if as_is[branch] for slot, weight in op.reads]
    branches = tuple(branch for branch, _, _ in terms)
    weights = tuple(weight for _, _, weight in terms)
    return SkippedSpan(
        (blocks.start, blocks.stop - 1),
        sites,
        ops,
        slots_added=tuple(
            tuple(slot for slot, _ in op.reads) if as_is[branch] else None for branch, op in enumerate(ops)
        ),
        reads=tuple((sites[branch], slot) for branch, slot, _ in terms),
        branches=branches,
        weights=weights,
        frees=tuple((site, slot) for site, op in zip(sites, ops, strict=True) for slot in op.frees),
        shifted=tuple(branch for branch, op in enumerate(ops) if as_is[branch] and op.shift),
        is_sum=all(as_is),
        is_reuse=branches == tuple(range(len(ops))) and set(weights) <= {1.0},
    )


def _is_added_as_is(op: Op, num_streams: int, guarded: bool) -> bool:
    """Whether the estimate is a plain weighted sum that can be added to its streams without being materialised."""
    if op.shift and (num_streams > 1 or guarded):
        return False
    return op.is_sum and (op.is_reuse or not guarded)
