"""The reference models that ship with the package, and how they were made."""

from forecache.zoo.digits import Digits, load_digits, router_path, statistics_path

__all__ = ["Digits", "load_digits", "router_path", "statistics_path"]
