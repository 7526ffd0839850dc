"""Storage of kept features: in their own dtype or a smaller one, on their own device or on another.

Features that are stored on the host while a GPU samples travel on a stream of their own. Each transfer starts while the
feature before it is used, so that at most two are on the GPU at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forecache.errors import RunError
from forecache.models.rounded import restored, rounded
from forecache.runtime.drift import DriftLimit


@dataclass(frozen=True)
class CacheOptions:
    """The settings of a session: how features are kept, how many bytes they may take, how far estimates may lie off.

    dtype: dtype of kept features; None, the default, keeps each in its own.
    device: device of kept features; None, the default, keeps each on its own.
    max_bytes: largest number of bytes that a generation may keep; None, the default, is no limit.
    max_error: see `Guards`; None, the default, is no limit.
    per_sample: whether every sample of a batch decides for itself; False by default.
    process_group: the processes of torch.distributed that sample a request together; None, the default, for this one
        alone, or those of diffusers' context parallelism.
    drift: how far a run may leave what was calibrated, see `Guards`; None, the default, is no limit.
    """

    dtype: torch.dtype | None = None
    device: torch.device | None = None
    max_bytes: int | None = None
    max_error: float | None = None
    drift: DriftLimit | None = None
    per_sample: bool = False
    process_group: Any = None


@dataclass
class CacheMeter:
    """The bytes that the lanes of one thread hold.

    held: bytes held now.
    peak: the most bytes held so far.
    """

    held: int = 0
    peak: int = 0


class StoredFeature(NamedTuple):
    """A feature as it is stored.

    feature: the tensor, in the storage's dtype and on its device; of eight bits as `models.rounded` has it.
    version: the tensor's version when it was stored; None for an inference tensor, which counts none.
    dtype: dtype of the feature when it was computed.
    device: device of the feature when it was computed.
    """

    feature: Tensor
    version: int | None
    dtype: torch.dtype
    device: torch.device

    @property
    def cast(self) -> torch.dtype | None:
        """The dtype to cast the feature to when it is read; None if it is stored in its own."""
        return None if self.feature.dtype is self.dtype else self.dtype


class FeatureStorage:
    """Stores features and gives them back in the dtype and on the device that they had.

    dtype: dtype of stored features; None stores each in its own.
    device: device of stored features; None stores each on its own.
    is_plain: whether features are stored as they were computed.
    """

    def __init__(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> None:
        self.dtype, self.device = dtype, device
        self.is_plain = dtype is None and device is None
        self._transfers: dict[int, tuple[Tensor, Any]] = {}

    def put(self, feature: Tensor, dtype: torch.dtype | None = None) -> StoredFeature:
        """Store a feature; dtype: the one that it had, if it is rounded already."""
        small = rounded(feature, self.dtype) if dtype is None else feature
        stored = small if self.device in (None, feature.device) else self._sent(small, self.device)
        return StoredFeature(stored, _version(stored), dtype or feature.dtype, feature.device)

    def get(self, entry: StoredFeature | None, following: StoredFeature | None = None) -> Tensor:
        """The feature in its dtype and on its device; following: the entry that will be asked for next."""
        feature, _, dtype, device = unchanged(entry)
        if feature.device != device:
            feature = self._arrived(feature, device)
            if following is not None and following.feature.device != following.device:
                self._start(following.feature, following.device)
        return feature if feature.dtype is dtype else restored(feature, dtype, self.dtype)

    def in_turn(self, entries: Sequence[StoredFeature | None]) -> Iterable[Tensor]:
        """Features in their order of use, as `get` gives them; each transfer starts while the feature before is used.

        Skipped steps do little else, so features that are stored as they were computed take no detour.
        """
        if self.is_plain:
            return [
                entry.feature
                if entry is not None and entry.version is not None and entry.feature._version == entry.version
                else unchanged(entry).feature
                for entry in entries
            ]
        return (self.get(*pair) for pair in zip(entries, [*entries[1:], None], strict=True))

    def all(self, entries: Sequence[StoredFeature | None]) -> list[Tensor]:
        """Features on their device, all transferred at once, in the storage's dtype."""
        stored = [unchanged(entry) for entry in entries]
        for feature, _, _, device in stored:
            if feature.device != device:
                self._start(feature, device)
        return [
            feature if feature.device == device else self._arrived(feature, device) for feature, _, _, device in stored
        ]

    def _sent(self, feature: Tensor, device: torch.device) -> Tensor:
        if not feature.is_cuda or device.type != "cpu":
            return feature.to(device)
        stream = _stream(feature.device)
        stream.wait_stream(torch.cuda.current_stream(feature.device))
        stored = torch.empty(feature.shape, dtype=feature.dtype, pin_memory=True)
        with torch.cuda.stream(stream):
            stored.copy_(feature, non_blocking=True)
        feature.record_stream(stream)
        return stored

    def _start(self, feature: Tensor, device: torch.device) -> None:
        if id(feature) in self._transfers:
            return
        if device.type != "cuda":
            self._transfers[id(feature)] = feature.to(device), None
            return
        stream = _stream(device)  # also the stream that brought it here, so that it arrives before it leaves
        with torch.cuda.stream(stream):
            self._transfers[id(feature)] = feature.to(device, non_blocking=True), stream.record_event()

    def _arrived(self, feature: Tensor, device: torch.device) -> Tensor:
        self._start(feature, device)
        moved, event = self._transfers.pop(id(feature))
        if event is not None:
            current = torch.cuda.current_stream(device)
            current.wait_event(event)
            moved.record_stream(current)
        return moved


@cache
def _stream(device: torch.device) -> Any:
    """One stream for all storages of a device: the allocator keeps memory for every stream that has had some."""
    return torch.cuda.Stream(device)


def _version(feature: Tensor) -> int | None:
    """The tensor's version, which goes up with every write into it; None for inference tensors, which count none."""
    return None if feature.is_inference() else feature._version


def unchanged(entry: StoredFeature | None) -> StoredFeature:
    """The entry; RunError if something has written into its feature since it was stored."""
    assert entry is not None, "a slot was read before it was filled"
    if entry.version is not None and entry.feature._version != entry.version:
        raise RunError(
            "A kept feature was changed in place after its module gave it out, so it cannot be reused: choose sites "
            "whose output the model does not write into, such as the modules inside."
        )
    return entry
