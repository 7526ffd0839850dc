"""Tuning: which steps to compute and how to forecast the others, found together on the user's model.

gram          Gram matrices of the features, from one pass without a cache
fitted        a forecast with weights fitted to them
forecasts     the table of forecasts that tuning chooses from
surrogate     the expected error of the images under a schedule, learned from samples
optimal       the best schedule under that model, by dynamic programming
proposals     which schedule to sample with next
trials        what was sampled with, and its file
trial_runner  samples under a schedule, and their PSNR
refine        weights adjusted by their effect on the images
budgets       MACs, milliseconds or quality as a number of computed steps
plan_search   proposes, samples and learns until the budget of samples is used up
samplers      the samplers to choose from
across        the same over samplers and numbers of steps, with every sampler without a cache beside it
retarget      a tuned plan for another number of steps, guidance or resolution
tuner         the function
"""

from __future__ import annotations

from forecache.fit.tuning.budgets import AtLeast, Calls, Milliseconds
from forecache.fit.tuning.forecasts import ForecastSpec
from forecache.fit.tuning.result import Tuned, Uncached
from forecache.fit.tuning.retarget import Retargeted, retarget
from forecache.fit.tuning.settings import Settings
from forecache.fit.tuning.trials import Trial
from forecache.fit.tuning.tuner import tune

__all__ = [
    "AtLeast",
    "Calls",
    "ForecastSpec",
    "Milliseconds",
    "Retargeted",
    "Settings",
    "Trial",
    "Tuned",
    "Uncached",
    "retarget",
    "tune",
]
