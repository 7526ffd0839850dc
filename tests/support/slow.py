"""Instances of a law that `make test` leaves to `make test-all`."""

from collections.abc import Iterable

import pytest


def slow_but(names: Iterable, *short) -> list:
    """Parameters for `pytest.mark.parametrize`: those in ``short`` always run, the others are slow."""
    values = {name: name if isinstance(name, tuple) else (name,) for name in names}
    return [name if name in short else pytest.param(*values[name], marks=pytest.mark.slow) for name in values]
