"""The parts that a method is made of: functions of step and site, and measured data as files."""

from forecache.parts import bounds, corrections, decide, forecasts, gates, patterns, schedules, tokens
from forecache.parts.grid import Action, Cell, Gate, Schedule, Selector, Site, Tokens

__all__ = [
    "Action",
    "Cell",
    "Gate",
    "Schedule",
    "Selector",
    "Site",
    "Tokens",
    "bounds",
    "corrections",
    "decide",
    "forecasts",
    "gates",
    "patterns",
    "schedules",
    "tokens",
]
