"""The arguments of a model call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """The arguments of one call of a module: ``module(*args, **kwargs)``."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def tensors(self) -> Iterator[Tensor]:
        """The arguments that are tensors themselves, positional ones first."""
        return (value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor))
