"""Corrections: calibrated knowledge added to the estimates of skipped cells.

N tokens, D width.
"""

from __future__ import annotations

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
        """Raises StatisticsError if they are not of this grid's model, scheduler and steps."""
        ...


class Walk(Protocol):
    """One row of the grid, corrected from left to right."""

    @property
    def constants(self) -> Mapping[str, Tensor]:
        """The tensors that the row's cells name."""
        ...

    def amend(self, step: int, cell: Cell) -> Cell:
        """The cell with its correction. Called for every step in order, computed ones too."""
        ...


class Correction(Protocol):
    """Adds a gain and a shift to estimates."""

    @property
    def steps(self) -> Sequence[int]:
        """The steps that it was asked to correct, if they were listed."""
        ...

    def walk(self, site: Site, grid: Grid) -> Walk:
        """Starts the row of a site; raises StatisticsError if it was calibrated on another grid."""
        ...


@dataclass(frozen=True)
class Drift:
    """The estimate is moved along the mean drift of the feature (EOC, arXiv 2501.19243).

    With A the average feature without a cache and E(c) = A(c) - A(c-1) its trend:

    * ``relative`` (published): cached * (1 + theta * E(c)), element by element.
    * ``additive`` (ours): cached + theta * (the sum of E over the calls since the cached one). On a forecast of several
      features it is theta times what the forecast misses on the averages.

    The result overwrites the cache: in a gap of several steps the next correction starts from it, and a step that is
    not corrected gives it out again. In a partial cell the tokens that are not computed are corrected; the next
    correction starts from the amended feature. judge: ``all`` corrects everywhere; ``prior`` where the averages say
    that it helps, that is where A(c) is closer to the corrected average than to the cached one (sum of absolute
    values); or a tuple of steps. per: ``token`` keeps the prior's shape (N, D), ``channel`` its mean over tokens (D,).
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

    def walk(self, site: Site, grid: Grid) -> Walk:
        self.stats.check(grid)
        if self.per == "token":
            self.stats.mean(0, site)  # the error of compact statistics, before anything is built
        return _Drifting(self, site)


@dataclass(frozen=True)
class _Standing:
    """What the cache holds inside a gap: the correction so far, what it gives on the averages, and since which step."""

    cell: Cell
    factor: Tensor
    offset: Tensor
    mean: Tensor
    since: int


class _Drifting:
    """One row under `Drift`: what each step gives out on the averages, and the corrections that this needs."""

    def __init__(self, rule: Drift, site: Site) -> None:
        self._rule, self._site = rule, site
        self._emitted: list[Tensor] = []
        self._standing: _Standing | None = None
        self.constants: dict[str, Tensor] = {}

    def amend(self, step: int, cell: Cell) -> Cell:
        truth = self._average(step)
        if cell.computed:
            self._standing = None
            self._emitted.append(truth)
            return cell
        standing = self._cached(cell)
        corrected = self._corrected(step, standing)
        if self._judged(step, truth, standing.mean, corrected.mean):
            self._standing = standing = self._named(step, corrected)
        self._emitted.append(standing.mean)
        return replace(standing.cell, tokens=cell.tokens)

    def _average(self, step: int) -> Tensor:
        return self._rule.stats.mean(step, self._site, self._rule.per)

    def _cached(self, cell: Cell) -> _Standing:
        """What would be given out without a new correction: in a gap, what the last correction left in the cache."""
        if self._standing is not None and self._standing.cell.reads == cell.reads:
            return self._standing
        mean = torch.stack([weight * self._emitted[source] for source, weight in cell.reads]).sum(0)
        since = cell.reads[0][0]
        if not cell.is_reuse and self._rule.form == "relative":
            raise PlanError(
                f"The relative form of EOC corrects a reused feature, and step {len(self._emitted)} of "
                f"{self._site.name} is a forecast: use form='additive', or a base with plain reuse."
            )
        return _Standing(cell, torch.ones_like(mean), torch.zeros_like(mean), mean, since)

    def _corrected(self, step: int, standing: _Standing) -> _Standing:
        theta, truth = self._rule.theta, self._average(step)
        if self._rule.form == "relative":
            change = 1 + theta * (truth - self._average(step - 1))
            return replace(standing, factor=standing.factor * change, mean=standing.mean * change, since=step)
        read = self._average(standing.since) if standing.cell.is_reuse else standing.mean
        missed = theta * (truth - read)
        return replace(standing, offset=standing.offset + missed, mean=standing.mean + missed, since=step)

    def _judged(self, step: int, truth: Tensor, cached: Tensor, corrected: Tensor) -> bool:
        judge = self._rule.judge
        if isinstance(judge, tuple):
            return step in judge
        return judge == "all" or bool((truth - corrected).abs().sum() < (truth - cached).abs().sum())

    def _named(self, step: int, standing: _Standing) -> _Standing:
        """The correction as a constant of the plan, and the cell that names it."""
        field = "gain" if self._rule.form == "relative" else "shift"
        name = f"{self._site.name}/{step}/{field}"
        self.constants[name] = standing.factor - 1 if field == "gain" else standing.offset
        gain, shift = (name, None) if field == "gain" else (None, name)
        return replace(standing, cell=Cell(standing.cell.reads, gain, shift))
