"""Patterns: the plan of one site as text, one sign a step; and the space of patterns that a search looks through.

    "#...#..#."        steps 0, 4 and 7 are computed, the others reused; `schedules.by_step` reads it
    (3, 2, 1)          its reuse intervals v_i: the number of steps skipped after each computed one

ProCache (arXiv 2512.17298) searches patterns of ``budget`` computed steps whose intervals lie between v_min and v_max
and never grow, so that computed steps stand closer together towards the end of the run.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from forecache.errors import PlanError
from forecache.parts.grid import Cell

SIGNS = {
    "#": "computed",
    ".": "reused",
    "~": "forecast",
    "+": "corrected",
    "o": "some tokens computed",
}
"""The signs of a plan's pictures, `Cell.sign`. A pattern has the first two alone."""

TRIES = 200
"""How many sticks `Constraints.sample` may break for each pattern that it is asked for."""


UNDECIDED = "?"
"""The sign of a cell of which it is decided while the plan runs whether it is computed."""


def legend(signs: Iterable[str] = SIGNS) -> str:
    """What signs stand for, in one line."""
    words = {**SIGNS, UNDECIDED: "decided while it runs"}
    return "   ".join(f"{sign} {words[sign]}" for sign in signs)


def line(cells: Iterable[Cell]) -> str:
    """A row of cells as text, one sign a step."""
    return "".join(cell.sign for cell in cells)


def distinct(lines: Iterable[str]) -> str:
    """The distinct lines of a picture, the most frequent first."""
    return "\n".join(text for text, _ in Counter(lines).most_common())


def is_pattern(text: str) -> bool:
    """Whether a text is a pattern: ``#`` and ``.`` alone, the first step computed."""
    return text.startswith("#") and set(text) <= {"#", "."}


def intervals(pattern: str) -> tuple[int, ...]:
    """The number of steps skipped after each computed one: ``intervals("#...#..#.") == (3, 2, 1)``."""
    if not is_pattern(pattern):
        raise PlanError(
            f"A pattern starts with '#' (compute) and goes on with '#' and '.' (skip); {pattern!r} does not."
        )
    return tuple(len(gap) for gap in pattern.split("#")[1:])


def computed(pattern: str) -> tuple[int, ...]:
    """The computed steps: ``computed("#...#..#.") == (0, 4, 7)``."""
    return tuple(step for step, sign in enumerate(pattern) if sign == "#")


def skipped(pattern: str) -> tuple[int, ...]:
    """The skipped steps: ``skipped("#...#..#.") == (1, 2, 3, 5, 6, 8)``."""
    return tuple(step for step, sign in enumerate(pattern) if sign == ".")


def from_steps(steps: Collection[int], num_steps: int) -> str:
    """The pattern that computes these steps: ``from_steps({0, 4, 7}, 9) == "#...#..#."``."""
    return "".join("#" if step in steps else "." for step in range(num_steps))


def from_segments(segments: Iterable[int]) -> str:
    """The pattern of segments, each a computed step and the skipped ones after it: (4, 3, 2) is ``#...#..#.``."""
    return "".join("#" + "." * (length - 1) for length in segments)


@dataclass(frozen=True)
class Constraints:
    """A space of patterns: those of ``num_steps`` steps that compute exactly ``budget``, the first step among them.

    num_steps: model calls of the run.
    budget: number of computed steps.
    v_min: fewest steps skipped after a computed one.
    v_max: most steps skipped after a computed one.
    monotone: whether an interval is never longer than the one before it, as in ProCache [default]; otherwise intervals
        stand in any order.

    The paper speaks of at most ``budget`` computed steps; here it is exactly ``budget``, as in its pattern for
    DiT-XL/2: fewer would only be cheaper. Raises PlanError if no pattern fits.
    """

    num_steps: int
    budget: int
    v_min: int
    v_max: int
    monotone: bool = True

    def __post_init__(self) -> None:
        numbers = (self.num_steps, self.budget, self.v_min, self.v_max)
        if not all(type(number) is int for number in numbers) or min(self.num_steps, self.budget) < 1 or self.v_min < 0:
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
        """Steps of the shortest segment: a computed step and the skipped ones after it."""
        return self.v_min + 1

    @property
    def _longest(self) -> int:
        return self.v_max + 1

    def _why_none(self) -> str:
        steps, low, high = self.num_steps, self.budget * self._shortest, self.budget * self._longest
        lengths = f"{low}" if low == high else f"{low} to {high}"
        least, most = math.ceil(steps / self._longest), steps // self._shortest
        wider = "a smaller v_min" if low > steps else "a larger v_max"
        if least > most:
            advice = f"no budget fits {steps} steps: take {wider}"
        else:
            advice = f"for {steps} steps, take a budget of {least}{f' to {most}' if most > least else ''}, or {wider}"
        return (
            f"No pattern of {steps} steps has {self.budget} computed ones with {self.v_min} to {self.v_max} skipped "
            f"after each. Such a pattern has {lengths} steps; {advice}."
        )

    def count(self) -> int:
        """The number of patterns, without listing them."""
        rest, most = self.num_steps - self.budget * self._shortest, self.v_max - self.v_min
        return _partitions(rest, self.budget, most) if self.monotone else _compositions(rest, self.budget, most)

    def allows(self, pattern: str) -> bool:
        """Whether a pattern lies in this space."""
        gaps = intervals(pattern) if is_pattern(pattern) else ()
        return (
            len(pattern) == self.num_steps
            and len(gaps) == self.budget
            and all(self.v_min <= gap <= self.v_max for gap in gaps)
            and (not self.monotone or list(gaps) == sorted(gaps, reverse=True))
        )

    def enumerate(self) -> Iterator[str]:
        """Every pattern once; those with the longest intervals at the start come first."""
        pending: list[tuple[int, ...]] = [()]
        while pending:
            segments = pending.pop()
            if len(segments) == self.budget:
                yield from_segments(segments)
            else:
                lowest, highest = self._next(segments)
                pending.extend((*segments, length) for length in range(lowest, highest + 1))

    def _next(self, segments: Sequence[int]) -> tuple[int, int]:
        """The shortest and the longest next segment with which the ones after it can still fill the run."""
        left, after = self.num_steps - sum(segments), self.budget - len(segments) - 1
        highest = min(self._longest, left - after * self._shortest)
        if not self.monotone:
            return max(self._shortest, left - after * self._longest), highest
        if segments:
            highest = min(highest, segments[-1])
        return max(self._shortest, math.ceil(left / (after + 1))), highest

    def sample(self, count: int, seed: int = 0) -> tuple[str, ...]:
        """``count`` distinct patterns by stick-breaking; with the same seed, a larger count begins with the same ones.

        Pieces are broken off a stick of ``num_steps``, shuffled, and sorted in descending order if ``monotone``. The
        paper rejects a stick with a piece beyond the limits; here each piece is drawn from the lengths that let the
        others stay within them, so that no stick is rejected. The draw is not uniform over the space. Raises PlanError
        if the space has fewer patterns, or if `TRIES` sticks a pattern gave fewer distinct ones.
        """
        if count < 1 or count > self.count():
            raise PlanError(f"1 to {self.count()} of these patterns can be sampled; {count} were asked for.")
        generator = random.Random(seed)
        sample: dict[str, None] = {}  # a set that keeps its order
        for _ in range(TRIES * count):
            sample[self._break(generator)] = None
            if len(sample) == count:
                return tuple(sample)
        raise PlanError(
            f"{TRIES * count} broken sticks gave {len(sample)} distinct patterns, {count} were asked for: ask for "
            f"fewer, or enumerate all {self.count()}."
        )

    def _break(self, generator: random.Random) -> str:
        segments: list[int] = []
        free = Constraints(self.num_steps, self.budget, self.v_min, self.v_max, monotone=False)
        for _ in range(self.budget):
            segments.append(generator.randint(*free._next(segments)))
        generator.shuffle(segments)
        return from_segments(sorted(segments, reverse=True) if self.monotone else segments)

    def choose(self, most: int, seed: int = 0) -> tuple[str, ...]:
        """Every pattern if there are at most ``most``, otherwise ``most`` sampled ones."""
        return tuple(self.enumerate()) if self.count() <= most else self.sample(most, seed)


def _partitions(total: int, parts: int, largest: int) -> int:
    """The number of ways to write a number as at most ``parts`` parts of at most ``largest``, in any order.

    It is the coefficient of q^total in the Gaussian binomial of parts + largest over parts, which is the product over
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
    """The number of ways to write a number as a sequence of ``parts`` numbers from 0 to ``largest``.

    By inclusion and exclusion of the numbers over ``largest``.
    """
    return sum(
        (-1) ** over * math.comb(parts, over) * math.comb(total - over * (largest + 1) + parts - 1, parts - 1)
        for over in range(min(parts, total // (largest + 1)) + 1)
    )
