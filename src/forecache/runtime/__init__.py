"""Sessions: plans that run on models, and the only mutable state of the library."""

from forecache.runtime.apply import apply, disable, enable
from forecache.runtime.guards import Guards
from forecache.runtime.session import Session
from forecache.runtime.stats import Stats

__all__ = ["Guards", "Session", "Stats", "apply", "disable", "enable"]
