"""The feature cache of one lane: the features and sums of features that later steps of a generation read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from forecache.models.blocks import Gate
from forecache.parts.grid import is_reuse, sum_to_one
from forecache.plan.ops import Op, TokenChoice
from forecache.runtime.constants import DeviceConstants
from forecache.runtime.program import SkippedSpan
from forecache.runtime.storage import CacheMeter, CacheOptions, FeatureStorage, StoredFeature


class FeatureCache:
    """The store of an eager step: per site, as many slots as its row of the plan ever fills at once.

    num_slots: slots of every site.
    constants: the plan's constants on the device.
    options: dtype and device of kept features.
    meter: counts bytes; the lanes of a thread share it.
    """

    def __init__(
        self, num_slots: Sequence[int], constants: DeviceConstants, options: CacheOptions, meter: CacheMeter
    ) -> None:
        self.constants, self.meter = constants, meter
        self.storage = FeatureStorage(options.dtype, options.device)
        self._slots: list[list[StoredFeature | None]] = [[None] * number for number in num_slots]

    def clear(self) -> None:
        """Drop all features."""
        for slots in self._slots:
            for slot, entry in enumerate(slots):
                if entry is not None:
                    self.meter.held -= entry.feature.nbytes
                    slots[slot] = None

    def taken(self) -> list[tuple[int, int, Tensor]]:
        """All features with their sites and slots; from now on another holds them."""
        found = [
            (site, slot, self.read(site, slot))
            for site, slots in enumerate(self._slots)
            for slot, entry in enumerate(slots)
            if entry is not None
        ]
        self.clear()
        return found

    def entry(self, site: int, slot: int) -> StoredFeature | None:
        return self._slots[site][slot]

    def read(self, site: int, slot: int) -> Tensor:
        return self.storage.get(self._slots[site][slot])

    def read_in_turn(self, places: Sequence[tuple[int, int]]) -> Iterable[Tensor]:
        return self.storage.in_turn([self._slots[site][slot] for site, slot in places])

    def weighted_sum(self, site: int, op: Op) -> Tensor:
        slots = self._slots[site]
        return weighted_sum([self.storage.get(slots[slot]) for slot, _ in op.reads], op.reads)

    def weights(self, site: int, op: Op) -> Sequence[float]:
        return op.weights

    def gain(self, site: int, op: Op, like: Tensor) -> Tensor:
        assert op.gain is not None
        return self.constants.weighted_sum(((op.gain, 1.0),), like)

    def shift(self, site: int, op: Op, like: Tensor) -> Tensor:
        return self.constants.weighted_sum(op.shift, like)

    def random(self, site: int, choice: TokenChoice, like: Tensor) -> Tensor:
        return self.constants.random(choice.random, like)

    def weighted_gates(self, span: SkippedSpan, gates: Sequence[Gate] | Tensor) -> Iterable[Gate] | Tensor:
        return gates if span.is_reuse else self.constants.weighted_gates(span, gates)

    def gated_shifts(self, span: SkippedSpan, gates: Tensor, like: Tensor) -> Tensor | None:
        return self.constants.gated_shifts(span, gates, like)

    def keep(self, site: int, op: Op, sums: Sequence[Tensor]) -> None:
        self.keep_stored(site, op, (self.storage.put(total) for total in sums))
        self.meter.peak = max(self.meter.peak, self.meter.held)  # scores and ages are held, too

    def keep_as_is(self, site: int, op: Op, slot: int, output: Tensor) -> bool:
        if not self.storage.is_plain or output.is_inference():
            return False
        if op.frees:
            self.free([(site, freed) for freed in op.frees])
        meter = self.meter
        self._slots[site][slot] = StoredFeature(output, output._version, output.dtype, output.device)
        meter.held += output.nbytes
        meter.peak = max(meter.peak, meter.held)
        return True

    def keep_stored(self, site: int, op: Op, entries: Iterable[StoredFeature]) -> None:
        """Free the slots that no later step reads, then fill slots with stored sums, one for every `Op.keeps`.

        entries: an iterator may store them one by one, after the slots are free.
        """
        self.free([(site, slot) for slot in op.frees])
        for kept, entry in zip(op.keeps, entries, strict=False):
            self._slots[site][kept.slot] = entry
            self.meter.held += entry.feature.nbytes

    def free(self, places: Sequence[tuple[int, int]]) -> None:
        """Drop features; the last read has checked that nothing wrote into them."""
        held, sites = self.meter.held, self._slots
        for site, slot in places:
            entry = sites[site][slot]
            assert entry is not None, "a slot was freed before it was filled"
            held -= entry.feature.nbytes
            sites[site][slot] = None
        self.meter.held = held


def weighted_sum(features: Sequence[Tensor], reads: Sequence[tuple[int, float]]) -> Tensor:
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
