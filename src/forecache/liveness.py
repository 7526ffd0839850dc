"""Which features are alive when: a plan's row turned into slots, as a compiler allocates registers.

A feature is kept from the step that emits it to the last step that reads it, and not at all if none does. Because a
plan is static this is known before the run: the session only follows it, and `Plan.cost` predicts from it. The same
holds for the scores by which partial cells choose their tokens, and for the tokens' ages.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from forecache._core import Cell, Importance, Site, Tokens, is_reuse

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
    """One cell, ready to run: read these slots, then free those, correct the sum, then store the result.

    reads: (slot, weight) pairs, empty for a computed cell. frees: slots whose feature was read for the last time.
    store: the slot that keeps the result, or None if no later step reads it. gain, shift: the cell's constants. choice:
    of a partial cell. scored: how this site is scored in this step, for partial cells of other sites.
    """

    reads: tuple[tuple[int, float], ...]
    frees: tuple[int, ...]
    store: int | None
    gain: str | None = None
    shift: str | None = None
    choice: Choice | None = None
    scored: tuple[Importance, ...] = ()

    @property
    def is_reuse(self) -> bool:
        """Estimated by one feature as it is."""
        return is_reuse(self.reads)

    @property
    def is_sum(self) -> bool:
        """Estimated by features as they lie, for this step alone."""
        return bool(self.reads) and self.store is None and self.gain is None and self.shift is None

    @property
    def skipped(self) -> bool:
        """Nothing of the site runs: it is estimated, and nobody looks at how it would be computed."""
        return bool(self.reads) and self.choice is None and not self.scored

    @property
    def is_plain(self) -> bool:
        """The site runs as it always does, and nothing of it is kept."""
        return not self.reads and self.store is None and self.choice is None and not self.scored


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


def operations(sites: Sequence[Site], rows: Rows) -> list[tuple[Op, ...]]:
    """The rows of a plan as operations, [site][step]."""
    made = [list(allocate(row)) for row in rows]
    number = {site.name: index for index, site in enumerate(sites)}
    latest: dict[tuple[Score, int], tuple[int, int]] = {}  # score and the step that makes it -> its last reader
    for step in range(len(rows[0])):
        for index, row in enumerate(rows):
            tokens = row[step].tokens
            if tokens is None or (tokens.share == 0 and not tokens.age):
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
    random = tokens.seed, step, index
    return Choice(tokens, score, random, _ages(row[step::-1]), _ages(row[step:]))


def _ages(gap: Sequence[Cell]) -> bool:
    """Whether the first cell shares ages with another partial cell that comes before a computed one."""
    for cell in gap[1:]:
        if cell.computed:
            return False
        if cell.tokens is not None:
            return bool(cell.tokens.age or (gap[0].tokens and gap[0].tokens.age))
    return False


def _scored_at(row: Sequence[Cell], step: int, score: Score) -> int:
    """Attention is scored when it is computed; what a site gives out, at once."""
    if score[1] != "attention":
        return step
    return max(each for each in range(step + 1) if row[each].computed)


def allocate(row: Sequence[Cell]) -> tuple[Op, ...]:
    """The row of one site as operations on as few slots as it ever keeps features."""
    last_reader = {source: step for step, cell in enumerate(row) for source, _ in cell.reads}
    slot_of: dict[int, int] = {}
    free: list[int] = []
    ops = []
    for step, cell in enumerate(row):
        reads = tuple((slot_of[source], weight) for source, weight in cell.reads)
        frees = tuple(slot_of.pop(source) for source, _ in cell.reads if last_reader[source] == step)
        free.extend(frees)
        store = None
        if step in last_reader:
            # len(slot_of) slots are in use; with none free, the next number is new
            store = slot_of[step] = free.pop() if free else len(slot_of)
        ops.append(Op(reads, frees, store, cell.gain, cell.shift))
    return tuple(ops)


def slots(ops: Sequence[Op]) -> int:
    """How many slots the operations use."""
    return 1 + max((op.store for op in ops if op.store is not None), default=-1)


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
            held += sizes[index] * ((op.store is not None) - len(op.frees)) + SCORE_BYTES * _scores(op, index, tokens)
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
