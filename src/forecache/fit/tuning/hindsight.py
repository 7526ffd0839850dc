"""Hindsight of a tuned plan: what each gap pays back, found as the plan's weights are refined."""

from __future__ import annotations

from dataclasses import replace

from forecache.fit.hindsight import TRIED, alone, bounded_shares
from forecache.fit.tuning.refine import Jacobian
from forecache.fit.tuning.trial_runner import TrialRunner
from forecache.fit.tuning.trials import Trial
from forecache.parts.hindsight import gaps


def most_samplings(computed: int, noises: int) -> int:
    """The largest number of times that the samples are generated for a plan with so many computed steps."""
    return computed + 2 * (noises + 1)


def with_hindsight(runner: TrialRunner, trial: Trial) -> Trial:
    """The trial with a share of hindsight for every gap, if that makes its mean PSNR over all noises better.

    The moves of all gaps are measured under the trial's own forecast, so that what its feedback and its weights pay
    back already is not paid twice. The same share for all gaps is judged beside the measured ones.
    """
    count = len(gaps([sign == "#" for sign in trial.pattern]))
    if not count:
        return trial
    plan = runner.plan(trial.pattern, trial.forecast)
    jacobian = Jacobian(runner.images(plan), runner.reference_images)
    for gap in range(count):
        probe = replace(trial.forecast, thetas=alone(gap, count))
        jacobian.add(runner.images(runner.plan(trial.pattern, probe)), TRIED)
    equations = runner.world.totals(jacobian.normal_equations())
    fitted = bounded_shares(equations[:, :-1], equations[:, -1])
    tried = [thetas for thetas in dict.fromkeys([fitted, (TRIED,) * count]) if any(thetas)]
    judged = [runner.judge(replace(trial, forecast=replace(trial.forecast, thetas=thetas))) for thetas in tried]
    return max([trial, *judged], key=lambda candidate: candidate.psnr)
