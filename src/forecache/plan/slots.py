"""Slot allocation: a row of a plan as operations on few slots, as a compiler allocates registers.

A feature, or a sum of features, is kept from the step that makes it to the last step that reads it, and not at all if
none does. A plan is static, so all of this is known before the run: the session follows it, and `Plan.cost` predicts
peak memory from it. The same holds for the scores by which partial cells choose tokens, and for the ages of tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import takewhile

from forecache.parts.grid import Cell, Site
from forecache.plan import folding
from forecache.plan.ops import OUT, KeptSum, Op, Score, Terms, TokenChoice

Rows = Sequence[tuple[Cell, ...]]


def operations(sites: Sequence[Site], rows: Rows, folded: bool = True) -> list[tuple[Op, ...]]:
    """The rows of a plan as operations, [site][step]; folded: see `allocate`."""
    table = [list(allocate(row, folded)) for row in rows]
    number = {site.name: index for index, site in enumerate(sites)}
    latest: dict[tuple[Score, int], tuple[int, int]] = {}  # a score and the step that makes it -> its last reader
    for step in range(len(rows[0])):
        for index, row in enumerate(rows):
            tokens = row[step].tokens
            if tokens is None or (tokens.share == 0 and not _needs_ages(row[step:])):
                continue
            score = (number[tokens.site], tokens.importance) if tokens.needs_site and 0 < tokens.share < 1 else None
            table[index][step] = replace(table[index][step], choice=_choice(row, step, score, index))
            if score is not None:
                latest[score, _scored_at(rows[score[0]], step, score)] = index, step
    for (score, step), (reader, read_at) in latest.items():
        scored, last = table[score[0]][step], table[reader][read_at]
        assert last.choice is not None
        table[score[0]][step] = replace(scored, scored=(*scored.scored, score[1]))
        table[reader][read_at] = replace(last, choice=replace(last.choice, drops=(*last.choice.drops, score)))
    return [tuple(ops) for ops in table]


@lru_cache(maxsize=256)
def allocate(row: tuple[Cell, ...], folded: bool = True) -> tuple[Op, ...]:
    """The row of one site as operations on few slots; with ``folded``, features are kept as sums where that is less."""
    virtual = folding.folded_where_smaller(row) if folded else folding.as_written(row)
    last = folding.last_reads(virtual)
    slot_of: dict[int, int] = {OUT: OUT}  # virtual slot -> slot
    free: list[int] = []
    ops: list[Op] = []
    for step, op in enumerate(virtual):
        reads = _in_slots(op.reads, slot_of)
        sums = [(kept.slot, slot_of[kept.base], _in_slots(kept.adds, slot_of)) for kept in op.keeps]
        frees = tuple(slot_of.pop(slot) for slot in op.slots_read if last[slot] == step)
        free.extend(frees)
        keeps: list[KeptSum] = []
        for slot, base, adds in sums:
            if slot in last:
                # len(slot_of) - 1 slots are in use; with none free, the next number is new
                slot_of[slot] = free.pop() if free else len(slot_of) - 1
                keeps.append(KeptSum(slot_of[slot], base, adds))
        ops.append(replace(op, reads=reads, keeps=tuple(keeps), frees=frees))
    return tuple(ops)


def _in_slots(terms: Terms, slot_of: Mapping[int, int]) -> Terms:
    return tuple((slot_of[slot], weight) for slot, weight in terms)


def num_slots(ops: Sequence[Op]) -> int:
    """The number of slots that the operations of a site use."""
    return 1 + max((kept.slot for op in ops for kept in op.keeps), default=-1)


SCORE_BYTES = 4
"""Bytes of a token's score or age, in float32."""


def peak_bytes(rows: Sequence[Sequence[Op]], sizes: Sequence[int], tokens: Sequence[int]) -> tuple[int, ...]:
    """The peak bytes held during each step, with the sites run in order.

    rows: operations, [site][step].
    sizes: bytes of a feature, per site.
    tokens: tokens of the whole batch, per site.
    """
    held = 0
    peaks = []
    for step in range(len(rows[0])):
        peak = held
        for site, ops in enumerate(rows):
            op = ops[step]
            held += sizes[site] * (len(op.keeps) - len(op.frees)) + SCORE_BYTES * _more_scores(op, site, tokens)
            peak = max(peak, held)
        peaks.append(peak)
    return tuple(peaks)


def _more_scores(op: Op, site: int, tokens: Sequence[int]) -> int:
    """Net change, in entries, of the scores and ages held after this step."""
    more = len(op.scored) * tokens[site]
    if op.choice is not None:
        more -= sum(tokens[scored] for scored, _ in op.choice.drops)
        more += (op.choice.keeps_ages - op.choice.reads_ages) * tokens[site]
    return more


def _choice(row: Sequence[Cell], step: int, score: Score | None, site: int) -> TokenChoice:
    tokens = row[step].tokens
    assert tokens is not None
    follows_partial = any(cell.tokens is not None for cell in _gap(row[:step][::-1]))
    reads_ages = follows_partial and _needs_ages(row[step:])
    return TokenChoice(tokens, score, (tokens.seed, step, site), reads_ages, _needs_ages(row[step + 1 :]))


def _needs_ages(cells: Sequence[Cell]) -> bool:
    """Whether a partial cell ranks tokens by age, in the gap that these cells begin in."""
    return any(cell.tokens is not None and cell.tokens.age for cell in _gap(cells))


def _gap(cells: Sequence[Cell]) -> Iterator[Cell]:
    """The cells before the next computed one."""
    return takewhile(lambda cell: not cell.computed, cells)


def _scored_at(row: Sequence[Cell], step: int, score: Score) -> int:
    """The step that makes a score: an attention's last computed step, or this step for any other score."""
    if score[1] != "attention":
        return step
    return max(earlier for earlier in range(step + 1) if row[earlier].computed)


def skipped_blocks(ops: Sequence[Op], spans: Sequence[range]) -> list[int]:
    """The numbers of the blocks of which every site is skipped in a step; spans: the sites of every block."""
    return [block for block, sites in enumerate(spans) if all(ops[site].is_skipped for site in sites)]


def consecutive(blocks: Sequence[int], starts: Collection[int] = ()) -> list[range]:
    """Ascending numbers as ranges without a gap, [0, 1, 2, 5] as 0 to 2 and 5; at ``starts`` a new range begins."""
    ranges: list[range] = []
    for block in blocks:
        if ranges and ranges[-1].stop == block and block not in starts:
            ranges[-1] = range(ranges[-1].start, block + 1)
        else:
            ranges.append(range(block, block + 1))
    return ranges
