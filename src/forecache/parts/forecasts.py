"""Forecasts: weights with which a skipped feature is estimated from earlier ones. No tensors here.

Every known forecast is a linear multistep rule: the estimate at step c is a weighted sum of what earlier steps emitted,
computed features and estimates alike, with weights that depend on the step numbers alone and sum to one. A forecast is
therefore tested without a tensor.

Most read one kind of past features, their ``history``:

* ``computed``: the features that were computed, newest first.
* ``emitted``: what the steps up to the newest computed one emitted, newest first, estimates of skipped steps included
  (GOC's queue). By default the queue is frozen while a gap lasts: every skipped step of a gap reads it as it was when
  the last feature was computed. At N = 2 this is the paper's queue exactly. In longer gaps the paper's queue goes on
  with what skipped steps emitted, ``Gradient(eta, gaps="paper")``: extrapolations of extrapolations.

`Feedback` reads both: it forecasts from computed features, and compares them with what was emitted before them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol

from forecache.errors import PlanError
from forecache.parts.grid import Site

History = Literal["computed", "emitted"]
Gaps = Literal["divided", "paper"]


class Forecast(Protocol):
    """A linear multistep rule."""

    def reads(self, step: int, computed: Sequence[int], site: Site) -> Mapping[int, float]:
        """The weight of what each earlier step emitted, newest first.

        step: the skipped step that is estimated.
        computed: the steps before it at which the feature was computed, newest first, at least one. The steps between
            them emitted estimates.
        site: the site that is estimated. Published rules do not depend on it, and their weights sum to one; measured
            ones (`forecache.fit.tuning`) may differ from site to site, and sum to less.
        """
        ...


class Multistep(ABC):
    """A rule that reads one kind of past features.

    history: ``computed`` or ``emitted``.
    length: the most features that it reads, at least 1.
    """

    history: History
    length: int

    @abstractmethod
    def weights(self, step: int, past: Sequence[int], gap: int = 0) -> tuple[float, ...]:
        """The weights of past features, which sum to one.

        step: the skipped step that is estimated.
        past: the steps of the history, newest first, 1 to ``length`` of them.
        gap: number of steps skipped just before the newest computed one.
        """

    def reads(self, step: int, computed: Sequence[int], site: Site | None = None) -> Mapping[int, float]:
        history = computed if self.history == "computed" else range(computed[0], -1, -1)
        past = history[: self.length]
        gap = computed[0] - computed[1] - 1 if len(computed) > 1 else 0
        return dict(zip(past, self.weights(step, past, gap), strict=True))

    def needed(self, computed: Sequence[int]) -> Sequence[int]:
        """See `needed`."""
        return (computed if self.history == "computed" else range(computed[0], -1, -1))[: self.length]


def needed(forecast: Forecast, computed: Sequence[int]) -> Sequence[int]:
    """The steps, up to the newest computed one, of which an estimate at any later step may read what they emitted.

    computed: the steps that were computed so far, newest first. Which of the later ones will be, nobody knows. A
    forecast says it by a method ``needed(computed)``; of one that does not, every step may be read.
    """
    own: Callable[[Sequence[int]], Sequence[int]] | None = getattr(forecast, "needed", None)
    return range(computed[0], -1, -1) if own is None else own(computed)


def of_computed(forecast: Forecast, step: int, computed: Sequence[int], site: Site) -> Mapping[int, float]:
    """The weights of computed features in an estimate; those of estimates that it reads are followed back to them.

    step: the skipped step. computed: the steps before it that were computed, newest first, at least one. A history of
    one feature is reused.
    """
    known: dict[int, Mapping[int, float]] = {}

    def followed(own: int) -> Mapping[int, float]:
        if own not in known:
            earlier = [source for source in computed if source < own]
            total: dict[int, float] = {}
            for source, weight in forecast.reads(own, earlier, site).items():
                back = {source: 1.0} if source in computed else followed(source)
                for origin, share in back.items():
                    total[origin] = total.get(origin, 0.0) + weight * share
            known[own] = total
        return known[own]

    return followed(step)


@dataclass(frozen=True)
class Reuse(Multistep):
    """The last computed feature, unchanged: ghat(c) = g(c0) (FORA, arXiv 2407.01425)."""

    history: History = "computed"
    length: int = 1

    def weights(self, step: int, past: Sequence[int], gap: int = 0) -> tuple[float, ...]:
        return (1.0,)


@dataclass(frozen=True)
class Gradient(Multistep):
    """Plain reuse plus eta times the last change: ghat = g1 + eta * (g1 - g0) (GOC, arXiv 2503.05156, Eq. 5).

    g1 is the newest feature, g0 the one before it in the history; a history of one feature is reused (Eq. 4).

    eta: weight of the last change; 0 is plain reuse.
    history: ``emitted`` [default, the paper's] or ``computed``.
    gaps: gaps of several skipped steps with the emitted history: ``divided`` [default, ours] or ``paper``.

    With ``emitted``, g0 is the estimate emitted just before g1, so that each estimate pays back the error of the one
    before. That error was collected over the whole gap before g1; eta is therefore divided by the number of steps
    skipped in it: by 1 at N = 2, as published. From gap to gap an error changes by the factor eta / gap; undivided,
    long gaps overshoot. With ``gaps="paper"`` nothing is divided, and every skipped step reads the two features emitted
    just before it, estimates of the same gap included.

    With ``computed``, g0 is the computed feature before g1, and the change is not divided by the steps that it spans.
    """

    eta: float
    history: History = "emitted"
    length: int = 2
    gaps: Gaps = "divided"

    def __post_init__(self) -> None:
        if self.history not in ("computed", "emitted"):
            raise PlanError(f"history must be 'computed' or 'emitted', not {self.history!r}.")
        if self.gaps not in ("divided", "paper"):
            raise PlanError(f"gaps must be 'divided' or 'paper', not {self.gaps!r}.")
        if self.gaps == "paper" and self.history == "computed":
            raise PlanError(
                "gaps='paper' is the paper's queue, which receives estimates as well: leave history='computed' out."
            )

    def weights(self, step: int, past: Sequence[int], gap: int = 0) -> tuple[float, ...]:
        eta = self.eta / max(1, gap) if self.history == "emitted" and self.gaps == "divided" else self.eta
        return (1.0,) if len(past) < 2 else (1.0 + eta, -eta)

    def reads(self, step: int, computed: Sequence[int], site: Site | None = None) -> Mapping[int, float]:
        if self.gaps == "divided":
            return super().reads(step, computed, site)
        past = range(step - 1, -1, -1)[: self.length]
        return dict(zip(past, self.weights(step, past), strict=True))


@dataclass(frozen=True)
class Taylor(Multistep):
    """Taylor expansion around the newest computed feature (TaylorSeer, arXiv 2503.06923).

    ghat(c0 + k) = sum over i <= order of D_i(c0) k^i / i!, where the derivatives are backward differences at the
    computed steps: D_i(c0) = (D_{i-1}(c0) - D_{i-1}(c1)) / (c0 - c1), with c1 the computed step before c0.

    order: of the expansion, at least 0, which is reuse. It is lowered while there are fewer than order + 1 computed
        features. From order 1 on straight lines are reproduced, at any spacing of the computed steps.
    """

    order: int
    history: History = "computed"
    length: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.order, int) or self.order < 0:
            raise PlanError(f"A Taylor forecast has a whole order of at least 0 (reuse); {self.order!r} was asked for.")
        object.__setattr__(self, "length", self.order + 1)

    def weights(self, step: int, past: Sequence[int], gap: int = 0) -> tuple[float, ...]:
        count = len(past)
        # difference[j] = D_i at past[j], as weights over `past`; each pass of the loop raises i by one
        difference = [[float(row == column) for column in range(count)] for row in range(count)]
        total = [0.0] * count
        factor = 1.0
        for order in range(count):
            if order > 0:
                factor *= (step - past[0]) / order
                difference = [
                    [(a - b) / (past[row] - past[row + 1]) for a, b in zip(newer, older, strict=True)]
                    for row, (newer, older) in enumerate(pairwise(difference))
                ]
            total = [sum_ + factor * weight for sum_, weight in zip(total, difference[0], strict=True)]
        return tuple(total)


@dataclass(frozen=True)
class Feedback:
    """A Taylor forecast that pays back a share of the error of its last estimates (ours).

    ghat(c) = T(c) - strength * e, where T is the Taylor forecast from computed features, and e the mean error of the
    estimates in the gap before the newest computed feature: what was emitted there less the straight line between the
    computed neighbours, which is known by now. Errors then alternate along the trajectory instead of adding up: from
    gap to gap e is multiplied by -strength, at any order and any gap. Order 1 with strength 1 at N = 2 is GOC with
    eta 1.

    order: of the Taylor forecast, at least 0 [2].
    strength: share of the error that is paid back, 0 (Taylor) to 1; below 1 errors fade [0.5].
    """

    order: int = 2
    strength: float = 0.5

    def __post_init__(self) -> None:
        Taylor(self.order)
        if not 0 <= self.strength <= 1:
            raise PlanError(
                f"The strength of feedback lies between 0 and 1, beyond which errors grow from gap to gap; "
                f"{self.strength!r} was asked for."
            )

    def reads(self, step: int, computed: Sequence[int], site: Site | None = None) -> Mapping[int, float]:
        return paid_back(Taylor(self.order).reads(step, computed), computed, self.strength)

    def needed(self, computed: Sequence[int]) -> Sequence[int]:
        """See `needed`: the computed steps of the expansion, and the estimates of the gap before the newest one."""
        gap = range(computed[0] - 1, computed[1], -1) if len(computed) > 1 and self.strength else ()
        return sorted({*computed[: max(2, self.order + 1)], *gap}, reverse=True)


def paid_back(reads: Mapping[int, float], computed: Sequence[int], strength: float) -> Mapping[int, float]:
    """A forecast's reads, less a share of the mean error of the estimates in the gap before the newest computed step.

    The error of an estimate is its distance from the straight line between its computed neighbours.
    """
    weights = dict(reads)
    if len(computed) < 2:
        return weights
    newer, older = computed[:2]
    for step in range(older + 1, newer):
        share = strength / (newer - older - 1)
        position = (step - older) / (newer - older)
        for source, weight in ((step, -share), (newer, share * position), (older, share * (1 - position))):
            weights[source] = weights.get(source, 0.0) + weight
    nonzero = {source: weight for source, weight in weights.items() if not math.isclose(weight, 0, abs_tol=1e-12)}
    return dict(sorted(nonzero.items(), reverse=True))


FORECASTS: dict[str, type] = {"reuse": Reuse, "gradient": Gradient, "taylor": Taylor, "feedback": Feedback}
"""The forecasts that a file can hold with their numbers, by name."""
