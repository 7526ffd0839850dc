"""Forecasts: how a skipped feature is estimated from past ones. Arithmetic on step numbers; no tensors.

Every known forecast is a linear multistep rule: the estimate at step c is a weighted sum of what earlier steps gave
out, computed features and estimates alike, with weights that depend on the step numbers alone and add up to one. So a
forecast is tested without a tensor.

Most see one kind of past, their ``history``:

* ``computed``: the features that were computed, newest first.
* ``emitted``: what the calls up to the newest computed one gave out, newest first, estimates of skipped calls
  included (GOC's queue). The entries stay fixed while a gap lasts: every skipped call of a gap sees the queue as it
  stood when the last feature was computed. At N = 2 that is the published queue to the letter; at larger
  intervals the published queue would extrapolate from its own extrapolations, which diverges.

`Feedback` sees both: it forecasts from computed features, and looks back at what it had given out in their place.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol

from forecache.errors import PlanError
from forecache.parts.grid import Site

History = Literal["computed", "emitted"]


class Forecast(Protocol):
    """A linear multistep rule."""

    def reads(self, step: int, computed: Sequence[int], site: Site) -> Mapping[int, float]:
        """The weight of what each earlier step gave out, newest first.

        computed: the steps before ``step`` at which the feature was computed, newest first, at least one. A step
        between them gave out an estimate. The known rules have weights that sum to one and do not look at the site;
        those that were measured (`fit.tuning.fitted.Fitted`) may differ from site to site, and sum to less.
        """
        ...


class Multistep(ABC):
    """A rule on one kind of past. history: ``computed`` or ``emitted``. length: how many past features it reads at the
    most.
    """

    history: History
    length: int

    @abstractmethod
    def weights(self, step: int, past: Sequence[int], gap: int = 0) -> tuple[float, ...]:
        """One weight for each step in ``past`` (newest first, 1 to ``length`` of them); they sum to one.

        gap: how many steps were skipped just before the newest computed one.
        """

    def reads(self, step: int, computed: Sequence[int], site: Site | None = None) -> Mapping[int, float]:
        seen = computed if self.history == "computed" else range(computed[0], -1, -1)
        past = seen[: self.length]
        gap = computed[0] - computed[1] - 1 if len(computed) > 1 else 0
        return dict(zip(past, self.weights(step, past, gap), strict=True))


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

    g1 is the newest feature, g0 the one before it in the history; with only one feature there, it is reused
    (Eq. 4).

    history: ``emitted`` (the paper's) takes the estimate given out just before g1 for g0, so that each estimate
    pays back the error of the one before. That error was collected over the whole gap before g1, so eta is divided by
    the number of steps that were skipped in it: by 1 at N = 2, as published. From gap to gap an error grows by the
    factor eta / gap; undivided, long gaps overshoot.
    ``computed`` takes the computed feature before g1, and the change as it is, whatever the steps that it spans.
    """

    eta: float
    history: History = "emitted"
    length: int = 2

    def __post_init__(self) -> None:
        if self.history not in ("computed", "emitted"):
            raise PlanError(f"history must be 'computed' or 'emitted', not {self.history!r}.")

    def weights(self, step: int, past: Sequence[int], gap: int = 0) -> tuple[float, ...]:
        eta = self.eta / max(1, gap) if self.history == "emitted" else self.eta
        return (1.0,) if len(past) < 2 else (1.0 + eta, -eta)


@dataclass(frozen=True)
class Taylor(Multistep):
    """Taylor expansion around the newest computed feature (TaylorSeer, arXiv 2503.06923).

    ghat(c0 + k) = sum over i <= order of D_i(c0) k^i / i!, where the derivatives are backward differences taken
    at the computed steps: D_i(c0) = (D_{i-1}(c0) - D_{i-1}(c1)) / (c0 - c1), c1 the computed step before c0.
    With fewer computed features than order + 1 the order is lowered. Exact on straight lines at any spacing.
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

    ghat(c) = T(c) - strength * e, where T is the Taylor forecast of this order from computed features, and e the mean
    error of the estimates in the gap before the newest computed feature: what was given out there less the straight
    line between the computed neighbours, which is known by now. So errors alternate along the trajectory instead of
    adding up. From gap to gap e is multiplied by -strength, at any order and any gap: below 1 it fades, 0 is Taylor.
    Order 1 with strength 1 at N = 2 is GOC with eta 1.
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


def paid_back(reads: Mapping[int, float], computed: Sequence[int], strength: float) -> Mapping[int, float]:
    """A forecast's reads, less a share of the mean error of the estimates in the gap before the newest computed step.

    An estimate is judged by the straight line between its computed neighbours.
    """
    found = dict(reads)
    if len(computed) < 2:
        return found
    newer, older = computed[:2]
    for judged in range(older + 1, newer):
        share = strength / (newer - older - 1)
        place = (judged - older) / (newer - older)
        for source, weight in ((judged, -share), (newer, share * place), (older, share * (1 - place))):
            found[source] = found.get(source, 0.0) + weight
    kept = {source: weight for source, weight in found.items() if not math.isclose(weight, 0, abs_tol=1e-12)}
    return dict(sorted(kept.items(), reverse=True))
