"""The grid of steps x sites that a plan fills, and the vocabulary of its cells. No tensors here.

A sampling run is a grid of steps x sites. Step 0 is the noisiest model call. A site is a place in a model whose output
may be estimated instead of computed: the attention or MLP branch of a block, or any module.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from enum import Enum
from numbers import Integral
from typing import Any, Literal

from forecache.errors import PlanError

MAX_WEIGHT = 1e6
"""Bound on the size of a weight. A forecast with larger ones would turn rounding errors into noise."""


class Action(Enum):
    """What a schedule does in one cell of the grid; the value is its sign in a picture."""

    COMPUTE = "#"
    SKIP = "."
    PARTIAL = "o"
    """Skip, but compute some of the tokens."""
    DECIDE = "?"
    """Compute or skip, as is decided while the plan runs."""


IMPORTANCES = ("attn_norm", "attention", "random")
Importance = Literal["attn_norm", "attention", "random"] | Callable[[Any], Any]
"""The score that ranks tokens: its name, or a function from a site's output (B, N, D) to scores (B, N)."""


@dataclass(frozen=True)
class Tokens:
    """Which tokens a partial cell computes: those with the highest scores.

    share: share of the tokens that are computed, 0 to 1; their number is rounded down.
    importance: the score of a token. ``attn_norm`` [default] is the L2 norm of the token's output of ``site`` in this
        call; ``attention`` is the attention that the token received from all queries when ``site``, an attention, was
        last computed, mean over heads; ``random`` ignores ``site``; a function makes scores (B, N) from the output of
        ``site`` (B, N, D).
    site: name of an earlier site of the same call; empty [default] for ``random``.
    age: added to the score, normalised to length one over the tokens, for every partial call since the token was last
        computed; 0 [default] to `MAX_WEIGHT`.
    bonus: factor on the score of the best token of each 2 x 2 patch; over 0 [1].
    token_grid: (rows, columns) of tokens; None [default] takes them from the shape of the model's input.
    halves: in a batch that is a guidance pair, each half chooses its ``own`` [default] tokens, or both the same ones,
        by their mean score (``shared``).
    seed: seed of ``random`` [0].
    """

    share: float
    importance: Importance = "attn_norm"
    site: str = ""
    age: float = 0.0
    bonus: float = 1.0
    token_grid: tuple[int, int] | None = None
    halves: Literal["own", "shared"] = "own"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise PlanError(f"The share of tokens to compute lies between 0 and 1; {self.share!r} was asked for.")
        if not callable(self.importance) and self.importance not in IMPORTANCES:
            raise PlanError(f"importance must be {', '.join(IMPORTANCES)} or a function, not {self.importance!r}.")
        if self.halves not in ("own", "shared"):
            raise PlanError(f"halves must be 'own' or 'shared', not {self.halves!r}.")
        if not 0 <= self.age < MAX_WEIGHT or not 0 < self.bonus < MAX_WEIGHT:
            raise PlanError(f"age is at least 0 and bonus over 0, both finite; they are {self.age!r}, {self.bonus!r}.")
        if self.token_grid is not None and (len(self.token_grid) != 2 or min(self.token_grid) < 1):
            raise PlanError(f"token_grid is (rows, columns) of tokens, each at least 1, not {self.token_grid!r}.")

    @property
    def needs_site(self) -> bool:
        """Whether another site's output or attention is needed to choose the tokens."""
        return self.importance != "random"

    def count(self, tokens: int) -> int:
        """The number of computed tokens out of ``tokens``."""
        return math.floor(self.share * tokens + 1e-9)


@dataclass(frozen=True)
class Cell:
    """One cell of a plan: computed, or estimated as ``(1 + gain) * sum + shift`` from a weighted sum of features.

    reads: (step, weight) pairs of the sum; empty [default] means that the feature is computed. The value read at a step
        is what that step emitted: the computed feature, or the estimate if the step was skipped.
    gain: name of a tensor among the plan's constants, (N, D) or (D,), None [default] for 0. A gain near 0 keeps its
        digits in bfloat16, where a factor near 1 would not.
    shift: name of a tensor among the plan's constants, (N, D) or (D,), None [default] for 0.
    tokens: in a partial cell, the tokens that are computed and replace their estimates; None [default] elsewhere.
    undecided: whether it is decided while the plan runs if the cell is computed [False].
    is_open: whether an undecided cell is estimated by the plan's forecast where it is skipped [default], or reused.
    """

    reads: tuple[tuple[int, float], ...] = ()
    gain: str | None = None
    shift: str | None = None
    tokens: Tokens | None = None
    undecided: bool = False
    is_open: bool = True

    @property
    def computed(self) -> bool:
        return not (self.reads or self.undecided)

    @property
    def is_reuse(self) -> bool:
        """Whether the sum is one feature with weight 1, corrected or not."""
        return is_reuse(self.reads)

    @property
    def constants(self) -> tuple[str, ...]:
        """The names of the tensors that the cell needs."""
        return tuple(name for name in (self.gain, self.shift) if name is not None)

    @property
    def sign(self) -> str:
        """``#`` computed, ``.`` reused as it is, ``~`` forecast, ``+`` corrected, ``o`` partial, ``?`` undecided."""
        if self.undecided:
            return Action.DECIDE.value
        if self.tokens is not None:
            return Action.PARTIAL.value
        return "#" if self.computed else "+" if self.constants else "." if self.is_reuse else "~"


def sum_to_one(weights: Iterable[float]) -> bool:
    """Whether weights sum to one within 1e-6, which no feature can tell from one."""
    return abs(math.fsum(weights) - 1) < 1e-6


def is_reuse(reads: Sequence[tuple[int, float]]) -> bool:
    """Whether a sum is one feature with weight 1."""
    return len(reads) == 1 and sum_to_one([reads[0][1]])


def check_reads(reads: Sequence[tuple[int, float]], step: int) -> None:
    """Raises PlanError unless a skipped cell reads distinct earlier steps with finite weights."""
    sources = [source for source, _ in reads]
    if not reads or len(set(sources)) != len(sources) or not all(0 <= source < step for source in sources):
        raise PlanError(f"Step {step} must read earlier steps, each once; it reads {sources[:8]}.")
    weights = [weight for _, weight in reads]
    if not all(abs(weight) < MAX_WEIGHT for weight in weights):
        raise PlanError(f"The weights of step {step} must be finite, and not huge; they are {weights[:8]}.")


@dataclass(frozen=True, order=True)
class Site:
    """A place in a model whose output may be estimated instead of computed.

    name: unique in the model, such as ``blocks.3.mlp``; for a module site, the path of the module.
    depth: index of the block that the site lies in, from 0.
    kind: ``attn``, ``mlp`` or ``cross`` for a branch; for a module site, the last part of its path.
    """

    name: str
    depth: int
    kind: str

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise PlanError(f"The depth of a site is at least 0; {self.name} has {self.depth}.")


@dataclass(frozen=True, repr=False)
class Grid:
    """The cells of a sampling run: ``num_steps`` model calls x the sites of a model, in order of execution.

    num_steps: model calls of the run, at least 1.
    sites: at least one, with names that differ.
    model: class of the model that the sites were read from, and for module sites how many modules of their kinds it
        has, so that a deeper model is another one; empty [default] if it is not known.
    fingerprint: of the model's structure and weights; empty [default] if it is not known.
    scheduler: the scheduler of the run with its settings; empty [default] if it is not known.
    """

    num_steps: int
    sites: tuple[Site, ...]
    model: str = ""
    fingerprint: str = ""
    scheduler: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.num_steps, bool) or not isinstance(self.num_steps, Integral) or self.num_steps < 1:
            raise PlanError(
                f"A grid needs a whole number of steps, at least one step; num_steps={self.num_steps!r} was asked for."
            )
        if not self.sites:
            raise PlanError("A grid needs at least one site; this one has none.")
        names = [site.name for site in self.sites]
        if len(set(names)) != len(names):
            twice = sorted(name for name, count in Counter(names).items() if count > 1)
            raise PlanError(f"Site names must be unique; {', '.join(twice[:3])} stands more than once.")

    @property
    def size(self) -> str:
        """The numbers of steps and sites, in words."""
        return size_of(self.num_steps, self.sites)

    def __repr__(self) -> str:
        model = f" of {self.model}" if self.model else ""
        return f"<Grid {self.size}{model}>"


def size_of(num_steps: int, sites: Sized) -> str:
    """The size of a grid in words: ``20 steps x 24 sites``."""
    return f"{num_steps} step{'s' * (num_steps != 1)} x {len(sites)} site{'s' * (len(sites) != 1)}"


Schedule = Callable[[int, Site, Grid], Action]
"""(step, site, grid) -> Action. A plain function, also where it is composed of others."""

Gate = Callable[[int, Site, Grid], bool]
"""(step, site, grid) -> whether the forecast applies in this skipped cell; where it does not, the feature is reused."""

Selector = Callable[[int, Site, Grid], Tokens]
"""(step, site, grid) -> the tokens that a partial cell computes."""
