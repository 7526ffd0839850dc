"""What learns from a model's own sampling runs: statistics, routers, patterns, tuned plans."""

from forecache.fit import gains, scores, tuning
from forecache.fit.calibrate import calibrate, calibration_bytes
from forecache.fit.gains import Gains, gains_bytes, measure_gains
from forecache.fit.hindsight import PaidBack, fit_hindsight
from forecache.fit.routers import train_router
from forecache.fit.search import Candidate, SearchResult, search
from forecache.fit.thresholds import Threshold, threshold_for
from forecache.fit.tuning import Calls, Tuned, retarget, tune

__all__ = [
    "Calls",
    "Candidate",
    "Gains",
    "PaidBack",
    "SearchResult",
    "Threshold",
    "Tuned",
    "calibrate",
    "calibration_bytes",
    "fit_hindsight",
    "gains",
    "gains_bytes",
    "measure_gains",
    "retarget",
    "scores",
    "search",
    "threshold_for",
    "train_router",
    "tune",
    "tuning",
]
