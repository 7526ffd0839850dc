"""EOC: what was reused, moved along the mean drift (arXiv 2501.19243)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

from forecache.errors import PlanError
from forecache.parts.corrections import Drift, Form
from forecache.parts.statistics import Resolution, Statistics
from forecache.plan.method import Method


def eoc(
    base: Method,
    stats: Statistics,
    theta: float | None = None,
    *,
    form: Form = "relative",
    judge: Literal["prior", "all"] | Collection[int] = "prior",
    per: Resolution | None = None,
) -> Method:
    """What was reused, moved along the feature's mean drift (EOC, arXiv 2501.19243), on the schedule of ``base``.

    stats: of this model, scheduler and number of steps, from `forecache.calibrate`. form: ``relative`` is the paper's,
    cached * (1 + theta * E); ``additive`` is ours, cached + theta * (sum of E), and also works on a forecast.
    theta: 0.01 (the paper's) for the relative form and 1 for the additive one by default. judge: which skipped steps
    are corrected: ``prior`` where the averages say that it helps (ours; the paper's rule is not published), ``all``,
    or the steps. per: priors with a mean per ``token`` (the paper's), or per ``channel``, smaller by the number of
    tokens; by default what the statistics hold.
    """
    theta = (0.01 if form == "relative" else 1.0) if theta is None else theta
    chosen = judge if isinstance(judge, str) else tuple(judge)
    resolution = per or stats.resolution
    described = f", theta={theta:g}, form='{form}'"
    described += f", judge={judge!r}" if isinstance(judge, str) else f", judge={list(judge)}"
    described += f", per='{resolution}'"
    if base.correction is not None:
        raise PlanError(f"{base.name} is corrected already: eoc() takes a base without another one.")
    return replace(base, name=f"eoc({base.name}{described})", correction=Drift(stats, theta, form, chosen, resolution))
