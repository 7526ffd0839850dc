"""Gains that are measured: what an error of any estimate does to the samples, by back-propagation through a run.

sampler       the linear response of a sampler
record        the record of an uncached run
measure       vector-Jacobian products of the run, and their inner products with the features
gains         the numbers that are kept, their file, and the error of any schedule and forecast
solve         schedules and weights that are best under them
"""

from __future__ import annotations

from forecache.fit.gains import solve
from forecache.fit.gains.gains import Gains
from forecache.fit.gains.measure import gains_bytes, measure_gains

__all__ = ["Gains", "gains_bytes", "measure_gains", "solve"]
