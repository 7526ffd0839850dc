"""Statistics of a session: generations, model calls, cells, bytes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from forecache.io.text import mib


@dataclass(frozen=True)
class Stats:
    """The statistics of a session, over all of its generations and threads.

    generations: generations that began.
    calls: model calls.
    computed: cells (step, site) that were computed as a whole.
    skipped: cells that were estimated.
    peak_cache_bytes: peak memory of kept features, in bytes, of the thread that kept most.
    partial: cells of which some tokens were computed; 0 by default.
    fallbacks: estimates, of one sample at one site, that `Guards.max_error` turned into reuse; 0 by default.
    """

    generations: int
    calls: int
    computed: int
    skipped: int
    peak_cache_bytes: int
    partial: int = 0
    fallbacks: int = 0

    def __str__(self) -> str:
        runs = f"{_counted(self.generations, 'generation')}, {_counted(self.calls, 'model call')}"
        share = self.computed / max(1, self.computed + self.skipped + self.partial)
        partial = f"some tokens of {self.partial}, " if self.partial else ""
        fallbacks = f"{self.fallbacks} estimates fell back to reuse, " if self.fallbacks else ""
        return (
            f"{runs}, {share:.1%} of features computed, "
            f"{partial}{fallbacks}{mib(self.peak_cache_bytes)} of cache at the peak"
        )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def merged(stats: Sequence[Stats]) -> Stats:
    """The statistics of models that take turns in one run, whose caches never exist at the same time."""
    return Stats(
        generations=max(part.generations for part in stats),
        calls=sum(part.calls for part in stats),
        computed=sum(part.computed for part in stats),
        skipped=sum(part.skipped for part in stats),
        peak_cache_bytes=max(part.peak_cache_bytes for part in stats),
        partial=sum(part.partial for part in stats),
        fallbacks=sum(part.fallbacks for part in stats),
    )


@dataclass
class Counters:
    """The counters behind `Stats` for one model; any number of threads count.

    fallbacks: the number of fallbacks as a tensor on its device, so that no GPU is waited for; None for none yet.
    calls_elsewhere: calls of the model that no call of the session's pipeline made.
    """

    generations: int = 0
    calls: int = 0
    computed: int = 0
    partial: int = 0
    peak: int = 0
    fallbacks: Tensor | None = None
    calls_elsewhere: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add_call(self, computed: int, partial: int, peak: int) -> None:
        """Count a model call: its computed and partial cells, and the peak memory of its thread so far, in bytes."""
        with self._lock:
            self.calls += 1
            self.computed += computed
            self.partial += partial
            self.peak = max(self.peak, peak)

    def add_generation(self) -> None:
        with self._lock:
            self.generations += 1

    def add_fallbacks(self, count: Tensor) -> None:
        with self._lock:
            self.fallbacks = count if self.fallbacks is None else self.fallbacks + count.to(self.fallbacks.device)

    def stats(self, num_sites: int) -> Stats:
        """The statistics so far of a model with this number of sites."""
        with self._lock:
            skipped = self.calls * num_sites - self.computed - self.partial
            fallbacks = 0 if self.fallbacks is None else int(self.fallbacks)
            return Stats(self.generations, self.calls, self.computed, skipped, self.peak, self.partial, fallbacks)
