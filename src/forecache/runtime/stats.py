"""What a session has done, in numbers."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from torch import Tensor

from forecache.io.text import mib


@dataclass(frozen=True)
class Stats:
    """What a session has done. computed, skipped: cells (step, site) over all generations; partial: those in between.

    peak_cache_bytes: bytes of kept features at the peak, of the thread that kept most. fallbacks: estimates of one
    sample at one site that `Guards.max_error` turned into reuse.
    """

    generations: int
    calls: int
    computed: int
    skipped: int
    peak_cache_bytes: int
    partial: int = 0
    fallbacks: int = 0

    def __str__(self) -> str:
        share = self.computed / max(1, self.computed + self.skipped + self.partial)
        partial = f"some tokens of {self.partial}, " if self.partial else ""
        fallbacks = f"{self.fallbacks} estimates fell back to reuse, " if self.fallbacks else ""
        return (
            f"{self.generations} generations, {self.calls} model calls, {share:.1%} of features computed, "
            f"{partial}{fallbacks}{mib(self.peak_cache_bytes)} of cache at the peak"
        )


@dataclass
class Tally:
    """The same while it is counted, by any number of threads."""

    generations: int = 0
    calls: int = 0
    computed: int = 0
    partial: int = 0
    peak: int = 0
    fallen: Tensor | None = None
    elsewhere: int = 0
    """Calls of the model that were none of the pipeline's that the plan is on."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, computed: int, partial: int, peak: int) -> None:
        """One model call: cells that were computed, and in part; the most bytes that its thread has held so far."""
        with self._lock:
            self.calls += 1
            self.computed += computed
            self.partial += partial
            self.peak = max(self.peak, peak)

    def start(self) -> None:
        """One generation."""
        with self._lock:
            self.generations += 1

    def fell(self, fallen: Tensor) -> None:
        """So many estimates fell back to reuse."""
        with self._lock:
            self.fallen = fallen if self.fallen is None else self.fallen + fallen.to(self.fallen.device)

    def stats(self, sites: int) -> Stats:
        """What was counted, of a model with so many sites."""
        with self._lock:
            skipped = self.calls * sites - self.computed - self.partial
            fallen = 0 if self.fallen is None else int(self.fallen)
            return Stats(self.generations, self.calls, self.computed, skipped, self.peak, self.partial, fallen)
