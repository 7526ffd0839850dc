"""Writes of a module into its arguments, which a skipped call would not do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

Place = int | str
"""The position or the name of an argument."""


class Given(NamedTuple):
    """A tensor before a call.

    tensor: the tensor.
    version: its version, which goes up with every write; None for an inference tensor, which counts none.
    copied: a copy of it; None where none was needed.
    """

    tensor: Tensor
    version: int | None
    copied: Tensor | None


class Writes:
    """The writes of one module into its arguments, over the calls of a session.

    Versions show the writes of torch's own operations. Kernels that torch does not know leave them as they are, and
    inference tensors have none: so values are compared, too, at the first call.

    needed: arguments whose values before a call are asked for after it; of inference tensors they are always copied.
    allowed: arguments that it may write into, because nobody reads them afterwards.
    places: the arguments that a call has written into.
    beyond: those of them that are neither ``needed`` nor ``allowed``, nor share memory with one that is.
    """

    def __init__(self, needed: Set[Place] = frozenset(), allowed: Set[Place] = frozenset()) -> None:
        self.places: set[Place] = set()
        self.beyond: set[Place] = set()
        self._needed, self._allowed = needed, allowed
        self._is_new = True

    def before(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[Place, Given]:
        """The tensors among the arguments of a call that starts."""
        pairs: Iterable[tuple[Place, Any]] = (*enumerate(args), *kwargs.items())
        return {place: self._given(place, value) for place, value in pairs if isinstance(value, Tensor)}

    def _given(self, place: Place, tensor: Tensor) -> Given:
        version = None if tensor.is_inference() else tensor._version
        is_known = place in self.places and place not in self._allowed
        is_copied = self._is_new or is_known or (version is None and place in self._needed)
        return Given(tensor, version, tensor.clone() if is_copied and not tensor.is_meta else None)

    def after(self, before: Mapping[Place, Given]) -> set[Place]:
        """The arguments that the call, which has ended, has written into."""
        written = {place for place, given in before.items() if self._is_written(given)}
        self._is_new = False
        if written:
            self.places |= written
            own = self._needed | self._allowed
            memory = {_address(given.tensor) for place, given in before.items() if place in own}
            others = written - own
            self.beyond |= {place for place in others if _address(before[place].tensor) not in memory}
        return written

    def _is_written(self, given: Given) -> bool:
        tensor, version, copied = given
        if version is not None and tensor._version != version:
            return True
        return self._is_new and copied is not None and not _is_equal(tensor, copied)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_equal(tensor: Tensor, other: Tensor) -> bool:
    """Whether values are equal, or both are no number."""
    return torch.equal(tensor, other) or bool(torch.isclose(tensor, other, 0, 0, equal_nan=True).all())
