"""Forwards in the place of a model's own, and the contract with what others have put on the model."""

from forecache.models.mount.replace import mounted

__all__ = ["mounted"]
