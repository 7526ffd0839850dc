"""Corrections: calibrated knowledge that is added to the estimates of skipped cells.

N tokens, D width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from forecache.errors import PlanError
from forecache.parts.grid import Cell, Grid, Site
from forecache.parts.statistics import Resolution

Form = Literal["relative", "additive"]
Judge = Literal["prior", "all"] | tuple[int, ...]


class Averages(Protocol):
    """The average features A(step, site) of a model without a cache, such as `Statistics`."""

    def mean(self, step: int, site: Site, per: Resolution = "token") -> Tensor:
        """A(step, site): (N, D) per token, or (D,) per channel."""
        ...

    def check(self, grid: Grid) -> None:
        """Raises StatisticsError if the averages are not of this grid's model, scheduler and steps."""
        ...


class RowCorrector(Protocol):
    """Corrects the cells of one row of the grid, from left to right."""

    @property
    def constants(self) -> Mapping[str, Tensor]:
        """The tensors that the corrected cells name."""
        ...

    def correct(self, step: int, cell: Cell) -> Cell:
        """The cell with its correction. Every step has to be passed in order, computed ones too."""
        ...

    def looked_at(self, step: int, cell: Cell) -> Cell:
        """The estimate of a computed step with the correction that it would have; the step is still to be passed."""
        ...


class Correction(Protocol):
    """A rule that adds a gain and a shift to estimates."""

    @property
    def steps(self) -> Sequence[int]:
        """The steps to correct, where they were listed; else none."""
        ...

    def corrector(self, site: Site, grid: Grid) -> RowCorrector:
        """A corrector for the row of a site; raises StatisticsError if the rule was calibrated on another grid."""
        ...


@dataclass(frozen=True)
class Drift:
    """A correction that moves estimates along the mean drift of the feature (EOC, arXiv 2501.19243).

    With A the average feature without a cache and E(c) = A(c) - A(c-1) its trend:

    * ``relative`` (the authors' code): cached * (1 + theta * E(c)), element by element.
    * ``additive`` (ours): cached + theta * (the sum of E over the calls since the cached one). On a forecast of several
      features it is theta times what the forecast misses on the averages.

    The corrected feature overwrites the cache: in a gap of several steps the next correction starts from it, and a step
    that is not corrected emits it again. In a partial cell only the tokens that are not computed are corrected, and the
    next correction starts from the feature with both.

    stats: averages of the model without a cache.
    theta: strength of the correction, finite; 0 changes nothing.
    form: ``relative`` [default] or ``additive``; ``relative`` corrects reused features only.
    judge: ``prior`` [default] corrects the steps at which A(c) is closer, in the sum of absolute values, to the
        corrected average than to the cached one; ``all`` corrects every step; a tuple of steps corrects these.
    per: ``token`` [default] keeps the shape (N, D) of the averages, ``channel`` their mean over tokens, (D,).
    """

    stats: Averages
    theta: float
    form: Form = "relative"
    judge: Judge = "prior"
    per: Resolution = "token"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("form", self.form, ("relative", "additive")),
            ("per", self.per, ("token", "channel")),
        ):
            if value not in allowed:
                raise PlanError(f"{name} must be {' or '.join(map(repr, allowed))}, not {value!r}.")
        if not math.isfinite(self.theta):
            raise PlanError(f"theta must be a finite number, not {self.theta!r}.")
        if isinstance(self.judge, str) and self.judge not in ("prior", "all"):
            raise PlanError(f"judge must be 'prior', 'all' or the steps to correct, not {self.judge!r}.")

    @property
    def steps(self) -> Sequence[int]:
        return () if isinstance(self.judge, str) else self.judge

    def corrector(self, site: Site, grid: Grid) -> RowCorrector:
        self.stats.check(grid)
        if self.per == "token":
            self.stats.mean(0, site)  # raises for statistics per channel, before anything is built
        return _DriftCorrector(self, site)


@dataclass(frozen=True)
class _Cached:
    """The feature that the cache holds inside a gap, seen on the averages.

    cell: reads of the estimate, and its correction so far.
    factor: 1 + gain of that correction, (N, D) or (D,).
    offset: shift of that correction, (N, D) or (D,).
    mean: average of the cached feature, (N, D) or (D,).
    since: the step up to which the drift is accounted for.
    """

    cell: Cell
    factor: Tensor
    offset: Tensor
    mean: Tensor
    since: int


class _DriftCorrector:
    """The corrector of one row under `Drift`."""

    def __init__(self, rule: Drift, site: Site) -> None:
        self._rule, self._site = rule, site
        self._emitted: list[Tensor] = []  # the average of what every step so far emitted
        self._cached: _Cached | None = None  # the corrected feature of this gap, once a step of it was corrected
        self.constants: dict[str, Tensor] = {}

    def correct(self, step: int, cell: Cell) -> Cell:
        truth = self._average(step)
        if cell.computed:
            self._cached = None
            self._emitted.append(truth)
            return cell
        cached = self._uncorrected(cell)
        corrected = self._corrected(step, cached)
        if self._helps(step, truth, cached.mean, corrected.mean):
            self._cached = cached = self._named(step, corrected)
        self._emitted.append(cached.mean)
        return replace(cached.cell, tokens=cell.tokens)

    def looked_at(self, step: int, cell: Cell) -> Cell:
        other = copy.copy(self)  # it names its constants where this one does
        other._emitted = list(self._emitted)
        return other.correct(step, cell)

    def _average(self, step: int) -> Tensor:
        return self._rule.stats.mean(step, self._site, self._rule.per)

    def _uncorrected(self, cell: Cell) -> _Cached:
        """What the cell emits without a correction of its own: in a gap, the feature that was corrected last."""
        if self._cached is not None and self._cached.cell.reads == cell.reads:
            return self._cached
        mean = torch.stack([weight * self._emitted[source] for source, weight in cell.reads]).sum(0)
        since = cell.reads[0][0]
        if not cell.is_reuse and self._rule.form == "relative":
            raise PlanError(
                f"The relative form of EOC corrects a reused feature, and step {len(self._emitted)} of "
                f"{self._site.name} is a forecast: use form='additive', or a base with plain reuse."
            )
        return _Cached(cell, torch.ones_like(mean), torch.zeros_like(mean), mean, since)

    def _corrected(self, step: int, cached: _Cached) -> _Cached:
        theta, truth = self._rule.theta, self._average(step)
        if self._rule.form == "relative":
            change = 1 + theta * (truth - self._average(step - 1))
            return replace(cached, factor=cached.factor * change, mean=cached.mean * change, since=step)
        expected = self._average(cached.since) if cached.cell.is_reuse else cached.mean
        missed = theta * (truth - expected)
        return replace(cached, offset=cached.offset + missed, mean=cached.mean + missed, since=step)

    def _helps(self, step: int, truth: Tensor, cached: Tensor, corrected: Tensor) -> bool:
        judge = self._rule.judge
        if isinstance(judge, tuple):
            return step in judge
        return judge == "all" or bool((truth - corrected).abs().sum() < (truth - cached).abs().sum())

    def _named(self, step: int, cached: _Cached) -> _Cached:
        """The correction as a constant of the plan, and the cell that names it."""
        field = "gain" if self._rule.form == "relative" else "shift"
        name = f"{self._site.name}/{step}/{field}"
        self.constants[name] = cached.factor - 1 if field == "gain" else cached.offset
        gain, shift = (name, None) if field == "gain" else (None, name)
        return replace(cached, cell=Cell(cached.cell.reads, gain, shift))
