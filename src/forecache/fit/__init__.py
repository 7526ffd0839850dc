"""What learns from a model's own sampling runs: statistics, routers, patterns, tuned plans."""

from forecache.fit import scores, tuning
from forecache.fit.calibrate import calibrate, calibration_bytes
from forecache.fit.routers import train_router
from forecache.fit.search import Candidate, SearchResult, search
from forecache.fit.tuning import Tuned, tune

__all__ = [
    "Candidate",
    "SearchResult",
    "Tuned",
    "calibrate",
    "calibration_bytes",
    "scores",
    "search",
    "train_router",
    "tune",
    "tuning",
]
