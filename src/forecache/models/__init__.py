"""Model families: the sites of a transformer, and how they are computed."""

from forecache.models.registry import register

__all__ = ["register"]
