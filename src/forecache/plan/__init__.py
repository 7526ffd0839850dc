"""Plans: filled grids as data, with their exact cost, saved as files."""

from forecache.plan.cost import Cost
from forecache.plan.method import Method
from forecache.plan.plan import Plan

__all__ = ["Cost", "Method", "Plan"]
