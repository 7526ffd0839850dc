"""Other libraries' caches at a number of computed steps: by a mask if they take one, else by their threshold."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

from peer_caches import by_pattern, dbcache, first_block, mag, static
from peer_runs import BARE, Cache, Called, Captioned, Running, Start, Subject
from torch.utils.flop_counter import FlopCounterMode
from tuned_others import bisect, spread

from forecache.zoo import DigitsText

PutOn = Callable[[Called], Start]
THRESHOLDS = (0.02, 8.0)
FEW = 10
"""Samples on which thresholds are set and operations counted; some caches decide by the features."""


class Peers:
    """The caches that are installed, on a bundled model, as `peer_runs` puts them on."""

    def __init__(self, model: Any, steps: int) -> None:
        kind = Captioned if isinstance(model, DigitsText) else Subject
        self._subject = kind(model.transformer, model.scheduler, steps, model)
        self._steps = steps
        self._bare = self._flops(self._subject.under(Cache(BARE, "forecache", lambda called: lambda: None)))

    def caches(self, count: int) -> Iterator[tuple[str, Callable[[], Running]]]:
        """Names, and functions that put the cache on; they raise LookupError if no threshold gives that many steps."""
        mask = by_pattern(spread(self._steps, count))
        masked = {
            "cache-dit static": static(mask),
            "cache-dit static + Taylor 1": static(mask, "TaylorSeerCalibratorConfig", 1),
            "cache-dit static + FoCa": static(mask, "FoCaCalibratorConfig"),
            "cache-dit static + DMD": static(mask, "DMDCalibratorConfig"),
        }
        for name, put_on in masked.items():
            yield from self._installed(name, "cache-dit", lambda put_on=put_on: put_on)
        dynamic: dict[str, tuple[str, Callable[[float], PutOn]]] = {
            "cache-dit DBCache": ("cache-dit", lambda threshold: dbcache(residual_diff_threshold=threshold)),
            "diffusers FirstBlockCache": ("diffusers", first_block),
            "diffusers MagCache": ("diffusers", mag),
        }
        for name, (package, with_threshold) in dynamic.items():
            at_count = functools.partial(self._at, with_threshold, count)
            yield from self._installed(name, package, at_count)

    def about(self, running: Running) -> dict[str, Any]:
        """How many times fewer MACs a run has than one without a cache, and which steps the middle block computes."""
        kinds = "".join("#" if attention else "." for attention, _ in running.counted(self._subject.few(FEW)))
        return {"fewer_macs": self._bare / self._flops(running), "schedule": kinds}

    def _installed(
        self, name: str, package: str, put_on: Callable[[], PutOn]
    ) -> Iterator[tuple[str, Callable[[], Running]]]:
        if Cache(name, package, lambda called: lambda: None).version is None:
            print(f"{package} is not installed: {name} is left out. pip install 'forecache[peers]'")
            return

        yield name, lambda: self._subject.under(Cache(name, package, put_on()))

    def _at(self, with_threshold: Callable[[float], PutOn], count: int) -> PutOn:
        """The cache with the smallest threshold that computes no more steps; LookupError if that computes fewer."""

        def computed(threshold: float) -> int:
            running = self._subject.under(Cache("tried", "forecache", with_threshold(threshold)))
            return sum(attention for attention, _ in running.counted(self._subject.few(FEW)))

        low, high = map(math.log, THRESHOLDS)
        at_most = math.exp(-bisect(lambda minus: computed(math.exp(-minus)) <= count, -high, -low, 8))
        if (steps := computed(at_most)) != count:
            raise LookupError(f"The threshold that computes at most {count} steps computes {steps}.")
        return with_threshold(at_most)

    def _flops(self, running: Running) -> float:
        with FlopCounterMode(display=False) as counter:
            running(self._subject.few(FEW))
        return float(counter.get_total_flops())
