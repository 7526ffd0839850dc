"""Tuning: which steps to compute and how to forecast the others, found together on the user's model.

products          how alike the features of two steps are, from one pass without a cache
surrogate         what a schedule's error is expected to do to the images: a model that is fitted to measured ones
optimal           the best schedule under that model, by dynamic programming
budgets           MACs, milliseconds or quality as a number of computed steps
samples           each batch made by one of several processes
polish            weights moved by what that does to the images
tuner             propose, sample, learn, until the budget of samples is used up
"""

from __future__ import annotations

from forecache.fit.tuning.budgets import AtLeast, Milliseconds
from forecache.fit.tuning.result import Tuned
from forecache.fit.tuning.settings import Settings
from forecache.fit.tuning.trials import Trial
from forecache.fit.tuning.tuner import tune

__all__ = ["AtLeast", "Milliseconds", "Settings", "Trial", "Tuned", "tune"]
