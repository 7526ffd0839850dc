"""Where kept features lie: as they were given out, rounded to another dtype, or on another device.

Features that lie on the host while a GPU samples travel on a stream of their own, each started while the one before it
is used, so that no more than two are on the GPU at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forecache.errors import RunError
from forecache.parts.grid import is_reuse, sum_to_one


class Kept(NamedTuple):
    """A feature as it is kept, its version then (None if it counts none), and the dtype and device that it had."""

    feature: Tensor
    version: int | None
    dtype: torch.dtype
    device: torch.device

    @property
    def cast(self) -> torch.dtype | None:
        """What the feature has to be cast to, if it is kept in another dtype."""
        return None if self.feature.dtype is self.dtype else self.dtype


class Shelf:
    """Puts features away and gets them back as they were.

    dtype, device: how and where they are kept; None is as and where they are.
    """

    def __init__(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> None:
        self.dtype, self.device = dtype, device
        self._coming: dict[int, tuple[Tensor, Any]] = {}

    def put(self, feature: Tensor, dtype: torch.dtype | None = None) -> Kept:
        """Keep a feature; dtype: what it had, if it is rounded already."""
        rounded = feature.to(self.dtype or feature.dtype)
        lying = rounded if self.device in (None, feature.device) else self._sent(rounded, self.device)
        return Kept(lying, _version(lying), dtype or feature.dtype, feature.device)

    def get(self, entry: Kept | None, following: Kept | None = None) -> Tensor:
        """The feature in its dtype and on its device. following: what will be asked for next."""
        feature, _, dtype, device = checked(entry)
        if feature.device != device:
            feature = self._arrived(feature, device)
            if following is not None and following.feature.device != following.device:
                self._start(following.feature, following.device)
        return feature if feature.dtype is dtype else feature.to(dtype)

    def in_turn(self, entries: Sequence[Kept | None]) -> Iterable[Tensor]:
        """Features in the order in which they are used, as `get` gives them: each sets off while one before it is used.

        This is what a skipped step does most, so features that lie as they were given out take no detour.
        """
        if self.dtype is None and self.device is None:
            return [checked(entry).feature for entry in entries]
        return (self.get(*pair) for pair in zip(entries, [*entries[1:], None], strict=True))

    def all(self, entries: Sequence[Kept | None]) -> list[Tensor]:
        """Many features on their device, all on their way at once, in the dtype that they are kept in."""
        found = [checked(entry) for entry in entries]
        for feature, _, _, device in found:
            if feature.device != device:
                self._start(feature, device)
        return [
            feature if feature.device == device else self._arrived(feature, device) for feature, _, _, device in found
        ]

    def _sent(self, feature: Tensor, device: torch.device) -> Tensor:
        if not feature.is_cuda or device.type != "cpu":
            return feature.to(device)
        stream = _stream(feature.device)
        stream.wait_stream(torch.cuda.current_stream(feature.device))
        lying = torch.empty(feature.shape, dtype=feature.dtype, pin_memory=True)
        with torch.cuda.stream(stream):
            lying.copy_(feature, non_blocking=True)
        feature.record_stream(stream)
        return lying

    def _start(self, feature: Tensor, device: torch.device) -> None:
        if id(feature) in self._coming:
            return
        if device.type != "cuda":
            self._coming[id(feature)] = feature.to(device), None
            return
        stream = _stream(device)  # also the one that brought it here, so that it has come before it leaves
        with torch.cuda.stream(stream):
            self._coming[id(feature)] = feature.to(device, non_blocking=True), stream.record_event()

    def _arrived(self, feature: Tensor, device: torch.device) -> Tensor:
        self._start(feature, device)
        moved, event = self._coming.pop(id(feature))
        if event is not None:
            current = torch.cuda.current_stream(device)
            current.wait_event(event)
            moved.record_stream(current)
        return moved


@cache
def _stream(device: torch.device) -> Any:
    """One for all: the allocator keeps memory for every stream that has had some."""
    return torch.cuda.Stream(device)


def _version(feature: Tensor) -> int | None:
    """Goes up with every write into the tensor; inference tensors do not count them."""
    return None if feature.is_inference() else feature._version


def checked(entry: Kept | None) -> Kept:
    """The entry, whose feature nobody has written into; else RunError."""
    assert entry is not None, "a slot was read before it was filled"
    if entry.version is not None and entry.feature._version != entry.version:
        raise RunError(
            "A kept feature was changed in place after its module gave it out, so it cannot be reused: choose sites "
            "whose output the model does not write into, such as the modules inside."
        )
    return entry


def combine(features: Sequence[Tensor], reads: Sequence[tuple[int, float]]) -> Tensor:
    """The weighted sum of features, as a new tensor; a single one of weight 1 is handed out as it is."""
    first, *rest = features
    weights = [weight for _, weight in reads]
    if is_reuse(reads):
        return first
    if len(rest) == 1 and sum_to_one(weights):  # g1 + (w1 - 1) (g1 - g0), read once
        return torch.lerp(rest[0], first, weights[0])
    total = first * weights[0]
    for feature, weight in zip(rest, weights[1:], strict=True):
        total.add_(feature, alpha=weight)
    return total


def plus(base: Tensor, terms: Sequence[tuple[Tensor, float | Tensor]]) -> Tensor:
    """A feature and multiples of others, as a new tensor; with no others it is handed out as it is."""
    for number, (feature, weight) in enumerate(terms):
        if isinstance(weight, Tensor):  # in a graph, where products and sums become one pass
            wide = torch.promote_types(base.dtype, torch.float32)
            base = (base.to(wide) + feature.to(wide) * weight).to(base.dtype)
        else:
            base = base.add_(feature, alpha=weight) if number else torch.add(base, feature, alpha=weight)
    return base
