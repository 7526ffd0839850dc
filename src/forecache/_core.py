"""The vocabulary: actions, sites, grids. No tensors here.

A sampling run is a grid of steps x sites. Step 0 is the noisiest model call. A site is a place whose output may
be estimated instead of computed: the attention or MLP branch of a block, or any module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from forecache._errors import PlanError


class Action(Enum):
    """What happens in one cell of the grid; the value is its sign in a picture."""

    COMPUTE = "#"
    SKIP = "."


@dataclass(frozen=True)
class Cell:
    """One cell of a plan: computed, or estimated as ``(1 + gain) * sum + shift``, the sum being over what earlier
    steps gave out, weighted.

    reads: (step, weight) pairs; empty means that the feature is computed. The value read at a step is what that
    step emitted: the computed feature, or the estimate if the step was skipped. gain, shift: names of tensors among
    the plan's constants, with the shape of a feature without its batch, (tokens, width), or (width,); None where there
    is no such correction. (A gain near 0 keeps its digits in bfloat16, where a factor near 1 would not.)
    """

    reads: tuple[tuple[int, float], ...] = ()
    gain: str | None = None
    shift: str | None = None

    @property
    def computed(self) -> bool:
        return not self.reads

    @property
    def constants(self) -> tuple[str, ...]:
        """The names of the tensors that it needs."""
        return tuple(name for name in (self.gain, self.shift) if name is not None)

    @property
    def sign(self) -> str:
        """``#`` computed, ``.`` reused as it is, ``~`` forecast from several features, ``+`` corrected."""
        return "#" if self.computed else "+" if self.constants else "." if len(self.reads) == 1 else "~"


MAX_WEIGHT = 1e6
"""Weights beyond this are an accident: a forecast with them would amplify rounding to nothing but noise."""


def check_reads(reads: Sequence[tuple[int, float]], step: int) -> None:
    """A skipped cell reads distinct earlier steps, with finite weights that sum to one; else PlanError."""
    sources = [source for source, _ in reads]
    if not reads or len(set(sources)) != len(sources) or not all(0 <= source < step for source in sources):
        raise PlanError(f"Step {step} must read earlier steps, each once; it reads {sources[:8]}.")
    weights = [weight for _, weight in reads]
    if not all(abs(weight) < MAX_WEIGHT for weight in weights) or abs(math.fsum(weights) - 1) > 1e-6:
        raise PlanError(f"The weights of step {step} must be finite and sum to one; they are {weights[:8]}.")


@dataclass(frozen=True, order=True)
class Site:
    """A place in a model whose output may be estimated instead of computed.

    name: unique in the model, such as ``blocks.3.mlp``; for a module site, the module's path.
    depth: index of the block that it lies in, from 0.
    kind: ``attn``, ``mlp``, ``cross`` for branches; for a module site, the last part of its path.
    """

    name: str
    depth: int
    kind: str

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise PlanError(f"The depth of a site is at least 0; {self.name} has {self.depth}.")


@dataclass(frozen=True)
class Grid:
    """The cells of a sampling run: ``num_steps`` model calls x the sites of a model, in order of execution.

    model: describes the model that the sites were read from: its class, and for module sites how many modules it
    has of their kinds, so that a plan is not taken for that of a deeper model. fingerprint: tells its weights from
    others'. scheduler: the scheduler of the run and its settings. Each is empty where it is not known.
    """

    num_steps: int
    sites: tuple[Site, ...]
    model: str = ""
    fingerprint: str = ""
    scheduler: str = ""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise PlanError(f"A grid needs at least one step; num_steps={self.num_steps} was asked for.")
        if not self.sites:
            raise PlanError("A grid needs at least one site; this one has none.")
        names = [site.name for site in self.sites]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise PlanError(f"Site names must be unique; {', '.join(twice)} stands more than once.")


Schedule = Callable[[int, Site, Grid], Action]
"""(step, site, grid) -> Action. A plain function; a composed schedule is a function of functions."""

Gate = Callable[[int, Site, Grid], bool]
"""(step, site, grid) -> whether the forecast applies in this skipped cell; elsewhere the feature is reused."""
