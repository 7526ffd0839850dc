"""Operations: what a site does in one step, in terms of the slots that hold its kept features.

A row of a plan says which earlier steps a cell reads. The folding of features turns it into operations whose slots
are virtual, one for every tensor that is ever kept; slot allocation maps these to as few real slots as are ever full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from forecache.parts.grid import Importance, Tokens, is_reuse

OUT = -1
"""Stands for the output of the site in this step, where kept tensors have slots from 0 on."""

Terms = tuple[tuple[int, float], ...]
"""(slot, weight) pairs of a weighted sum."""
Shift = tuple[tuple[str, float], ...]
"""(name of a constant, weight) pairs of a weighted sum."""
Score = tuple[int, Importance]
"""The number of a site, and how its output scores tokens."""


class KeptSum(NamedTuple):
    """A tensor that is kept after a step: ``base + sum of weight * tensor over adds``.

    slot: the slot that it fills.
    base: a slot, or OUT.
    adds: multiples of other slots, or of OUT.
    """

    slot: int
    base: int
    adds: Terms = ()


@dataclass(frozen=True)
class TokenChoice:
    """How a partial cell chooses its tokens.

    tokens: their share, and the rule that ranks them.
    score: the score that ranks them; None if the choice needs none.
    random: seed of the random scores that rank them instead, (seed, step, site).
    reads_ages: whether ages of tokens are kept from an earlier partial cell.
    keeps_ages: whether ages of tokens are kept for a later partial cell.
    drops: scores that no later cell reads.
    """

    tokens: Tokens
    score: Score | None
    random: tuple[int, int, int]
    reads_ages: bool = False
    keeps_ages: bool = False
    drops: tuple[Score, ...] = ()


@dataclass(frozen=True)
class Op:
    """One cell, ready to run: estimate from slots, correct the estimate, free slots, then fill others.

    reads: slots and weights of the estimate; empty for a computed cell.
    keeps: sums that later steps read.
    frees: slots that no later step reads.
    gain: name of the constant that scales the estimate; None for none.
    shift: constants that are added to the estimate, with their weights.
    choice: of a partial cell, which tokens are computed; None for any other cell.
    scored: how the output of this site scores tokens for partial cells, of this step or of later ones.
    """

    reads: Terms = ()
    keeps: tuple[KeptSum, ...] = ()
    frees: tuple[int, ...] = ()
    gain: str | None = None
    shift: Shift = ()
    choice: TokenChoice | None = None
    scored: tuple[Importance, ...] = ()

    @property
    def slots_read(self) -> tuple[int, ...]:
        """The slots that the estimate and the kept sums read, each once, in order."""
        parts = (slot for kept in self.keeps for slot in (kept.base, *(slot for slot, _ in kept.adds)))
        return tuple(dict.fromkeys((*(slot for slot, _ in self.reads), *(slot for slot in parts if slot != OUT))))

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights of the estimate, unless it is plain reuse, and then those of the kept sums."""
        reads = () if self.is_reuse else self.reads
        return tuple(weight for terms in (reads, *(kept.adds for kept in self.keeps)) for _, weight in terms)

    @property
    def is_reuse(self) -> bool:
        """Whether the estimate is one feature as it is, before corrections."""
        return is_reuse(self.reads)

    @property
    def is_sum(self) -> bool:
        """Whether the estimate is a weighted sum of features, with a shift at most, that no later step reads."""
        return bool(self.reads) and not self.keeps and self.gain is None

    @property
    def is_skipped(self) -> bool:
        """Whether nothing of the site runs: it is estimated, and its computation scores no tokens."""
        return bool(self.reads) and self.choice is None and not self.scored

    @property
    def is_untouched(self) -> bool:
        """Whether the site runs as without a plan: computed, nothing kept, freed or scored."""
        return not (self.reads or self.keeps or self.frees or self.scored) and self.choice is None
