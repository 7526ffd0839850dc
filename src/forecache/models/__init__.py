"""Model families: which sites a transformer has, and how each is computed."""

from forecache.models.registry import register

__all__ = ["register"]
