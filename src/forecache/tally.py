"""What a session has done, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """What a session has done. computed, skipped: cells (step, site) over all generations; partial: those in between.

    peak_cache_bytes: bytes of kept features at the peak, of the thread that kept most.
    """

    generations: int
    calls: int
    computed: int
    skipped: int
    peak_cache_bytes: int
    partial: int = 0

    def __str__(self) -> str:
        share = self.computed / max(1, self.computed + self.skipped + self.partial)
        partial = f"some tokens of {self.partial}, " if self.partial else ""
        return (
            f"{self.generations} generations, {self.calls} model calls, {share:.1%} of features computed, {partial}"
            f"{self.peak_cache_bytes / 2**20:.1f} MiB of cache at the peak"
        )
