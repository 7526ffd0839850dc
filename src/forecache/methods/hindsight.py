"""Correction in hindsight (ours): a computed step moves the sample by what the gap before it was off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from forecache.errors import PlanError
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts.hindsight import Hindsight
from forecache.plan.method import Method


@register
def hindsight(
    base: Method,
    theta: Annotated[float, Range(least=0, most=2, slider=(0, 1, 0.05))] = 0.5,
    *,
    thetas: Sequence[float] | None = None,
) -> Method:
    """Sample moved, at a computed step, by what the gap before it is then known to have been off (ours).

    A computed step after a gap is estimated as well, for the price of one skipped step. What the gap's estimates are
    then known to have been off is taken out of the sample, and of a multistep solver's history, through the sampler's
    own linear response: see `forecache.parts.hindsight`. It needs a deterministic scheduler without clipping: DDIM,
    Euler of flow matching, DPM-Solver or UniPC.

    base: any method whose schedule is the same for all sites and is known before the run
    theta: share of it that is paid back, 0 to 2; 0 changes nothing
    thetas: one share a gap that a computed step follows, in order; by default theta for all of them
    """
    if base.hindsight is not None:
        raise PlanError(f"{base.name} is corrected in hindsight already: hindsight() takes a base without it.")
    return replace(base, hindsight=Hindsight(theta, None if thetas is None else tuple(thetas)))
