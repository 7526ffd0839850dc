"""EOC: reused features, moved along their mean drift (arXiv 2501.19243)."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from typing import Annotated, Literal

from forecache.errors import PlanError
from forecache.methods.ingredients import statistics_of
from forecache.methods.parameters import Range
from forecache.methods.registry import register
from forecache.parts.corrections import Drift, Form
from forecache.parts.statistics import Resolution, Statistics
from forecache.plan.method import Method


@register
def eoc(
    base: Method,
    stats: Statistics | str | os.PathLike[str],
    theta: Annotated[float | None, Range(slider=(-10, 10, 0.01))] = None,
    *,
    form: Form = "relative",
    judge: Literal["prior", "all"] | Collection[int] = "prior",
    per: Resolution | None = None,
) -> Method:
    """Reused feature, moved along its mean drift (EOC, arXiv 2501.19243).

    base: schedule; the additive form takes a forecast as well
    stats: statistics of this model, scheduler and number of steps, from `forecache.calibrate`
    theta: strength; by default 0.01 (its authors' code) in the relative form and 1 in the additive one
    form: ``relative`` is its authors' code, cached * (1 + theta * E); ``additive`` is ours, cached + theta * (sum of E)
    judge: skipped steps to correct: ``prior`` where the averages say that it helps (ours; the paper's rule is not
        known here), ``all``, or the steps
    per: priors with a mean per ``token`` (its authors' code), or per ``channel``, smaller by the number of tokens; by
        default as the statistics have them
    """
    if base.correction is not None:
        raise PlanError(f"{base.name} is corrected already: eoc() takes a base without another correction.")
    stats = statistics_of(stats)
    strength = (0.01 if form == "relative" else 1.0) if theta is None else theta
    steps = judge if isinstance(judge, str) else tuple(judge)
    return replace(base, correction=Drift(stats, strength, form, steps, per or stats.resolution))
