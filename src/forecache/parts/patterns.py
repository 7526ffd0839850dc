"""Patterns: which steps of a run are computed, in all branches alike, and the space that a search looks through.

    "#...#..#."        steps 0, 4 and 7 are computed, the others reused; `schedules.by_step` reads it
    (3, 2, 1)          its reuse intervals v_i: the skipped steps after each computed one

ProCache (arXiv 2512.17298) searches patterns of ``budget`` computed steps whose intervals lie between v_min and v_max
and never grow, so that computed steps stand closer together towards the end of the run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from forecache.errors import PlanError

TRIES = 200
"""How often `Constraints.sample` cuts for each pattern that it is asked for, before it says that it found too few."""


def intervals(pattern: str) -> tuple[int, ...]:
    """The skipped steps after each computed one: ``intervals("#...#..#.") == (3, 2, 1)``."""
    if not _starts_computed(pattern):
        raise PlanError(
            f"A pattern starts with '#' (compute) and goes on with '#' and '.' (skip); {pattern!r} does not."
        )
    return tuple(len(skipped) for skipped in pattern.split("#")[1:])


def computed(pattern: str) -> tuple[int, ...]:
    """The computed steps: ``computed("#...#..#.") == (0, 4, 7)``."""
    return tuple(step for step, sign in enumerate(pattern) if sign == "#")


def _starts_computed(pattern: str) -> bool:
    return pattern.startswith("#") and set(pattern) <= {"#", "."}


def _pattern(segments: Sequence[int]) -> str:
    return "".join("#" + "." * (length - 1) for length in segments)


@dataclass(frozen=True)
class Constraints:
    """The patterns of ``num_steps`` steps, of which exactly ``budget`` are computed, the first among them.

    v_min, v_max: after each computed step, so many are skipped at least and at most. monotone: an interval is never
    longer than the one before it, as in ProCache; otherwise they stand in any order.

    The paper speaks of at most ``budget`` computed steps; the sizes that it gives for its spaces are those of exactly
    so many, and fewer would only be cheaper. Raises PlanError if no pattern fits.
    """

    num_steps: int
    budget: int
    v_min: int
    v_max: int
    monotone: bool = True

    def __post_init__(self) -> None:
        numbers = (self.num_steps, self.budget, self.v_min, self.v_max)
        if not all(type(each) is int for each in numbers) or min(self.num_steps, self.budget) < 1 or self.v_min < 0:
            raise PlanError(
                "A search takes whole numbers: num_steps and budget of at least 1, v_min of at least 0; "
                f"num_steps={self.num_steps!r}, budget={self.budget!r}, v_min={self.v_min!r}, v_max={self.v_max!r} "
                "were asked for."
            )
        if self.v_max < self.v_min:
            raise PlanError(f"v_max is at least v_min; v_min={self.v_min}, v_max={self.v_max} were asked for.")
        if not self.budget * self._shortest <= self.num_steps <= self.budget * self._longest:
            raise PlanError(self._why_none())

    @property
    def _shortest(self) -> int:
        """Steps of a segment, which is a computed step and the skipped ones after it."""
        return self.v_min + 1

    @property
    def _longest(self) -> int:
        return self.v_max + 1

    def _why_none(self) -> str:
        steps, low, high = self.num_steps, self.budget * self._shortest, self.budget * self._longest
        made = f"{low}" if low == high else f"{low} to {high}"
        least, most = math.ceil(steps / self._longest), steps // self._shortest
        wider = "a smaller v_min" if low > steps else "a larger v_max"
        if least > most:
            advice = f"no budget fits {steps} steps: take {wider}"
        else:
            advice = f"for {steps} steps, take a budget of {least}{f' to {most}' if most > least else ''}, or {wider}"
        return (
            f"No pattern of {steps} steps has {self.budget} computed ones with {self.v_min} to {self.v_max} skipped "
            f"after each. Those make {made} steps; {advice}."
        )

    def count(self) -> int:
        """How many patterns there are, without making them."""
        rest, most = self.num_steps - self.budget * self._shortest, self.v_max - self.v_min
        return _partitions(rest, self.budget, most) if self.monotone else _compositions(rest, self.budget, most)

    def allows(self, pattern: str) -> bool:
        """Whether a pattern is one of these."""
        found = intervals(pattern) if _starts_computed(pattern) else ()
        return (
            len(pattern) == self.num_steps
            and len(found) == self.budget
            and all(self.v_min <= each <= self.v_max for each in found)
            and (not self.monotone or list(found) == sorted(found, reverse=True))
        )

    def enumerate(self) -> Iterator[str]:
        """Every pattern once; those that skip most at the start come first."""
        pending: list[tuple[int, ...]] = [()]
        while pending:
            segments = pending.pop()
            if len(segments) == self.budget:
                yield _pattern(segments)
            else:
                lowest, highest = self._next(segments)
                pending.extend((*segments, length) for length in range(lowest, highest + 1))

    def _next(self, segments: Sequence[int]) -> tuple[int, int]:
        """The shortest and the longest segment that can come next, so that the ones after it can fill the run."""
        left, after = self.num_steps - sum(segments), self.budget - len(segments) - 1
        highest = min(self._longest, left - after * self._shortest)
        if not self.monotone:
            return max(self._shortest, left - after * self._longest), highest
        if segments:
            highest = min(highest, segments[-1])
        return max(self._shortest, math.ceil(left / (after + 1))), highest

    def sample(self, count: int, seed: int = 0) -> tuple[str, ...]:
        """``count`` distinct patterns by stick-breaking; with the same seed, a larger count begins with the same ones.

        Pieces are broken off a stick of ``num_steps``, shuffled, and sorted descending where intervals must not grow.
        The paper rejects a stick with a piece beyond the limits; here each piece is drawn from the lengths that let the
        others keep theirs, so that none is rejected. The draw is not uniform over the space. Raises PlanError if there
        are fewer patterns, or if so many distinct ones were not met in `TRIES` sticks each.
        """
        if count < 1 or count > self.count():
            raise PlanError(f"1 to {self.count()} of these patterns can be sampled; {count} were asked for.")
        generator = random.Random(seed)
        found: dict[str, None] = {}
        for _ in range(TRIES * count):
            found[self._break(generator)] = None
            if len(found) == count:
                return tuple(found)
        raise PlanError(
            f"{TRIES * count} broken sticks gave {len(found)} distinct patterns, {count} were asked for: ask for "
            f"fewer, or enumerate all {self.count()}."
        )

    def _break(self, generator: random.Random) -> str:
        segments: list[int] = []
        free = Constraints(self.num_steps, self.budget, self.v_min, self.v_max, monotone=False)
        for _ in range(self.budget):
            segments.append(generator.randint(*free._next(segments)))
        generator.shuffle(segments)
        return _pattern(sorted(segments, reverse=True) if self.monotone else segments)

    def choose(self, most: int, seed: int = 0) -> tuple[str, ...]:
        """Every pattern if there are at most ``most``, otherwise ``most`` sampled ones."""
        return tuple(self.enumerate()) if self.count() <= most else self.sample(most, seed)


def _partitions(total: int, parts: int, largest: int) -> int:
    """Ways to write a number as at most ``parts`` parts of at most ``largest``, whatever their order.

    That is the coefficient of q^total in the Gaussian binomial of parts + largest over parts, which is the product over
    i = 1 ... a of (1 - q^(b + i)) / (1 - q^i), a and b being the smaller and the larger of the two.
    """
    small, large = sorted((parts, largest))
    ways = [1] + [0] * total
    for i in range(1, min(small, total) + 1):  # factors beyond q^total change nothing
        for power in range(total, large + i - 1, -1):
            ways[power] -= ways[power - large - i]
        for power in range(i, total + 1):
            ways[power] += ways[power - i]
    return ways[total]


def _compositions(total: int, parts: int, largest: int) -> int:
    """Ways to write a number as ``parts`` numbers of 0 to ``largest`` in order, by inclusion and exclusion."""
    return sum(
        (-1) ** over * math.comb(parts, over) * math.comb(total - over * (largest + 1) + parts - 1, parts - 1)
        for over in range(min(parts, total // (largest + 1)) + 1)
    )
