"""The comparison page: a plan is selected, and the same images are shown with it and without a cache."""

from forecache.compare.comparer import Comparer, Comparison

__all__ = ["Comparer", "Comparison"]
