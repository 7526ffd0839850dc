"""Which features are alive when: a plan's row turned into slots, as a compiler allocates registers.

A feature, or a sum of features, is kept from the step that makes it to the last step that reads it, and not at all if
none does; `states` says which. Because a plan is static this is known before the run: the session only follows it, and
`Plan.cost` predicts from it. The same holds for the scores by which partial cells choose their tokens, and for the
tokens' ages.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile

from forecache.parts.grid import Cell, Importance, Site, Tokens, is_reuse
from forecache.plan import folding
from forecache.plan.folding import OUT, Shift, Sum, Terms

Score = tuple[int, Importance]
"""What tokens are ranked by: a site by its number, and how it is scored."""


@dataclass(frozen=True)
class Choice:
    """How a partial cell chooses its tokens.

    score: what it ranks them by; None if it needs none. random: numbers that seed what is drawn instead. aged: ages are
    there to read; ages: they are kept for a later cell. drops: scores that were read for the last time.
    """

    tokens: Tokens
    score: Score | None
    random: tuple[int, int, int]
    aged: bool = False
    ages: bool = False
    drops: tuple[Score, ...] = ()


@dataclass(frozen=True)
class Op:
    """One cell, ready to run: read these slots, correct the sum, make what is kept, free slots, then fill others.

    reads: (slot, weight) pairs, empty for a computed cell. keeps: what later steps need, with slots for numbers. frees:
    slots that were read for the last time. gain: the name of a constant; shift: names and shares of constants. choice:
    of a partial cell. scored: how this site is scored in this step, for partial cells of other sites.
    """

    reads: Terms = ()
    keeps: tuple[Sum, ...] = ()
    frees: tuple[int, ...] = ()
    gain: str | None = None
    shift: Shift = ()
    choice: Choice | None = None
    scored: tuple[Importance, ...] = ()

    @property
    def used(self) -> tuple[int, ...]:
        """The slots that it needs, each once, in order."""
        return tuple(folding.used(folding.Turn(self.reads, self.keeps)))

    @property
    def numbers(self) -> tuple[float, ...]:
        """The weights of all that it adds up, in order, where it does not read one feature as it is."""
        reads = () if self.is_reuse else self.reads
        return tuple(weight for terms in (reads, *(each.adds for each in self.keeps)) for _, weight in terms)

    @property
    def is_reuse(self) -> bool:
        """Estimated by one feature as it is."""
        return is_reuse(self.reads)

    @property
    def is_sum(self) -> bool:
        """Estimated by features as they lie, and perhaps a shift, for this step alone."""
        return bool(self.reads) and not self.keeps and self.gain is None

    @property
    def skipped(self) -> bool:
        """Nothing of the site runs: it is estimated, and nobody looks at how it would be computed."""
        return bool(self.reads) and self.choice is None and not self.scored

    @property
    def is_plain(self) -> bool:
        """The site runs as it always does, and nothing is kept or let go."""
        return not (self.reads or self.keeps or self.frees or self.scored) and self.choice is None


Rows = Sequence[tuple[Cell, ...]]


def skipped_blocks(ops: Sequence[Op], spans: Sequence[range]) -> list[int]:
    """The numbers of the blocks of which every site is skipped in a step; spans: the sites of every block."""
    return [block for block, sites in enumerate(spans) if all(ops[site].skipped for site in sites)]


def runs(blocks: Sequence[int], starts: Collection[int] = ()) -> list[range]:
    """Numbers in ascending order as runs without a gap: [0, 1, 2, 5] is 0 to 2, and 5. A run begins anew at starts."""
    found: list[range] = []
    for block in blocks:
        if found and found[-1].stop == block and block not in starts:
            found[-1] = range(found[-1].start, block + 1)
        else:
            found.append(range(block, block + 1))
    return found


def operations(sites: Sequence[Site], rows: Rows, folded: bool = True) -> list[tuple[Op, ...]]:
    """The rows of a plan as operations, [site][step]; see `allocate`."""
    made = [list(allocate(row, folded)) for row in rows]
    number = {site.name: index for index, site in enumerate(sites)}
    latest: dict[tuple[Score, int], tuple[int, int]] = {}  # score and the step that makes it -> its last reader
    for step in range(len(rows[0])):
        for index, row in enumerate(rows):
            tokens = row[step].tokens
            if tokens is None or (tokens.share == 0 and not _counts_ages(row[step:])):
                continue
            score = (number[tokens.site], tokens.importance) if tokens.needs_site and 0 < tokens.share < 1 else None
            made[index][step] = replace(made[index][step], choice=_choice(row, step, score, index))
            if score is not None:
                latest[score, _scored_at(rows[score[0]], step, score)] = index, step
    for (score, step), (reader, read_at) in latest.items():
        scored, last = made[score[0]][step], made[reader][read_at]
        assert last.choice is not None
        made[score[0]][step] = replace(scored, scored=(*scored.scored, score[1]))
        made[reader][read_at] = replace(last, choice=replace(last.choice, drops=(*last.choice.drops, score)))
    return [tuple(ops) for ops in made]


def _choice(row: Sequence[Cell], step: int, score: Score | None, index: int) -> Choice:
    tokens = row[step].tokens
    assert tokens is not None
    before = any(cell.tokens is not None for cell in _gap(row[:step][::-1]))
    aged = before and _counts_ages(row[step:])
    return Choice(tokens, score, (tokens.seed, step, index), aged, _counts_ages(row[step + 1 :]))


def _counts_ages(cells: Sequence[Cell]) -> bool:
    """Whether a partial cell chooses by its tokens' ages, in the gap that these cells begin in."""
    return any(cell.tokens is not None and cell.tokens.age for cell in _gap(cells))


def _gap(cells: Sequence[Cell]) -> Iterator[Cell]:
    """The cells before the next computed one."""
    return takewhile(lambda cell: not cell.computed, cells)


def _scored_at(row: Sequence[Cell], step: int, score: Score) -> int:
    """Attention is scored when it is computed; what a site gives out, at once."""
    if score[1] != "attention":
        return step
    return max(each for each in range(step + 1) if row[each].computed)


@lru_cache(maxsize=256)
def allocate(row: tuple[Cell, ...], folded: bool = True) -> tuple[Op, ...]:
    """The row of one site as operations on few slots. folded: no estimate is made for a later one to read."""
    turns = folding.turns(row) if folded else folding.as_written(row)
    last = folding.last_uses(turns)
    slot_of: dict[int, int] = {OUT: OUT}
    free: list[int] = []
    ops: list[Op] = []
    for step, turn in enumerate(turns):
        reads = _in_slots(turn.reads, slot_of)
        sums = [(each.number, slot_of[each.base], _in_slots(each.adds, slot_of)) for each in turn.sums]
        frees = tuple(slot_of.pop(number) for number in folding.used(turn) if last[number] == step)
        free.extend(frees)
        keeps: list[Sum] = []
        for number, base, adds in sums:
            if number in last:
                # len(slot_of) - 1 slots are in use; with none free, the next number is new
                slot_of[number] = free.pop() if free else len(slot_of) - 1
                keeps.append(Sum(slot_of[number], base, adds))
        ops.append(Op(reads, tuple(keeps), frees, turn.gain, turn.shift))
    return tuple(ops)


def _in_slots(terms: Terms, slot_of: Mapping[int, int]) -> Terms:
    return tuple((slot_of[number], weight) for number, weight in terms)


def slots(ops: Sequence[Op]) -> int:
    """How many slots the operations use."""
    return 1 + max((each.number for op in ops for each in op.keeps), default=-1)


SCORE_BYTES = 4
"""Scores and ages are float32, one a token."""


def alive(rows: Sequence[Sequence[Op]], sizes: Sequence[int], tokens: Sequence[int]) -> tuple[int, ...]:
    """The peak bytes held during each step, sites in order of execution.

    sizes: bytes per feature and site. tokens: of the whole batch, per site.
    """
    held = 0
    peaks = []
    for step in range(len(rows[0])):
        peak = held
        for index, ops in enumerate(rows):
            op = ops[step]
            held += sizes[index] * (len(op.keeps) - len(op.frees)) + SCORE_BYTES * _scores(op, index, tokens)
            peak = max(peak, held)
        peaks.append(peak)
    return tuple(peaks)


def _scores(op: Op, site: int, tokens: Sequence[int]) -> int:
    """By how many the scores and ages that are held become more."""
    more = len(op.scored) * tokens[site]
    if op.choice is not None:
        more -= sum(tokens[scored] for scored, _ in op.choice.drops)
        more += (op.choice.ages - op.choice.aged) * tokens[site]
    return more
