"""The arguments of a model call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Arguments(NamedTuple):
    """The arguments of one call of a module: ``module(*args, **kwargs)``."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
