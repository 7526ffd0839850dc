"""The same images without a cache and with a plan, one pair at a time: the comparison page without the page."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from forecache.compare.choices import BUNDLED, Choices
from forecache.errors import InputError
from forecache.evaluate import psnr
from forecache.models.find import grid
from forecache.plan.cost import Cost
from forecache.plan.plan import Plan
from forecache.sampling import runs
from forecache.sampling.sources import Sampling, Source, everything, own_guidance
from forecache.zoo.open import open_source

OnStep = Callable[[int, int], None]
"""Called after every step with how many are done, and of how many."""
OnWait = Callable[[int], None]
"""Called while others are before one, with how many, whenever that changes."""
WAITING = 16
"""Comparisons that may wait beside the one that is made; a further one is refused."""
GAIN = 8
"""How often a difference is taken so that it can be seen."""


class _StoppedError(Exception):
    """Nobody waits for these images any more; raised between two steps, and never seen outside of here."""


@dataclass(frozen=True)
class Pair:
    """What was made of `Choices`. cost: of the plan, None where shapes do not tell it; the rest as in `runs`."""

    choices: Choices
    settings: runs.Settings
    plan: Plan
    cost: Cost | None
    uncached: runs.Run
    cached: runs.Run

    @property
    def psnr(self) -> tuple[float, ...]:
        """dB to the uncached image, one an image; inf where they are equal."""
        return tuple(psnr(self.cached.images, self.uncached.images).tolist())

    @property
    def time_ratio(self) -> float:
        """Seconds without the plan over seconds with it."""
        return self.uncached.seconds / self.cached.seconds

    @property
    def difference(self) -> Tensor:
        """`GAIN` times what the images (B, C, H, W) differ by, clipped to 1."""
        return ((self.cached.images - self.uncached.images).abs() * GAIN).clamp(max=1)

    @property
    def command(self) -> str:
        """The command that makes the same images."""
        return self.choices.command(self.settings)

    def figures(self) -> list[tuple[str, str, str, str]]:
        """The lines of the table: what, without a cache, with the plan, and how the two compare."""
        stats, cost = self.cached.stats, self.cost
        times = (f"{self.uncached.seconds:.2f} s", f"{self.cached.seconds:.2f} s", f"{self.time_ratio:.2f}x as fast")
        lines = [("time", *times)]
        if cost is not None:
            lines.append(("MACs", _big(cost.macs_uncached), _big(cost.macs), f"{cost.speedup:.2f}x fewer"))
        if stats is not None:
            lines.append(("cache at the peak", "0", f"{stats.peak_cache_bytes / 2**20:.1f} MiB", ""))
        share = f"{self.plan.computed_share:.1%}"
        return [*lines, ("features computed", "100.0%", share, ""), ("PSNR", "", *_range(self.psnr))]

    def save(self, folder: Path) -> list[Path]:
        """Write the plan file, and the file of its constants if it has any, to a folder; gives their paths."""
        self.plan.save(folder / "plan.json")
        return sorted(folder.glob("plan.*"), reverse=True)  # plan.json is the first


def _big(macs: int) -> str:
    return f"{macs / 1e12:.4g} T" if macs >= 1e12 else f"{macs / 1e9:.4g} G"


def _range(values: Sequence[float]) -> tuple[str, str]:
    """The mean over the images that are not equal, and the range."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "equal images", ""
    mean, least, most = sum(finite) / len(finite), min(finite), max(finite)
    equal = f", {len(values) - len(finite)} equal" if len(finite) < len(values) else ""
    return f"{mean:.1f} dB", f"{least:.1f} to {most:.1f} dB{equal}"


class Studio:
    """Makes pairs, one at a time, and for each person one at a time.

    models: the names that may be picked, as `sources.open_source` takes them; each is loaded when it is first picked,
    and stays. Any number of threads may call `make`; they take turns, in the order of their calls.
    """

    def __init__(self, models: Sequence[str] = BUNDLED, device: str = "auto", dtype: str = "auto") -> None:
        self.models = tuple(dict.fromkeys(models))
        self._place = device, dtype
        self._sources: dict[str, Source] = {}
        self._visits: dict[str, threading.Event] = {}  # who is here, the oldest first; set: to be stopped
        self._change = threading.Condition()

    def make(
        self, choices: Choices, who: str = "", on_step: OnStep | None = None, on_wait: OnWait | None = None
    ) -> Pair | None:
        """The pair, or None if `stop` was called for this person meanwhile.

        InputError for a second one of the same person, and where `WAITING` others wait.
        """
        with self._visit(who) as stopped:
            try:
                self._wait(who, stopped, on_wait)
                return self._make(choices, on_step, stopped)
            except _StoppedError:
                return None

    def stop(self, who: str) -> bool:
        """What is made for this person ends after the step that runs; gives whether anything was made."""
        with self._change:
            stopped = self._visits.get(who)
            if stopped is not None:
                stopped.set()
                self._change.notify_all()
            return stopped is not None

    def source(self, model: str) -> Source:
        """The model of this name; InputError for one that may not be picked."""
        if model not in self.models:
            raise InputError(f"There is no model {model[:80]!r} here; there are {', '.join(self.models)}.")
        if model not in self._sources:
            opened = open_source(model, *self._place)
            first = tuple(everything(opened)[:1]) or ("a",)
            opened.generate(first, Sampling(2, own_guidance(opened), 0))  # the first call is a slow one
            self._sources[model] = opened
        return self._sources[model]

    def _make(self, choices: Choices, on_step: OnStep | None, stopped: threading.Event) -> Pair:
        source = self.source(choices.model)
        settings = choices.settings(source)
        plan = choices.method().plan(grid(source.target, choices.steps))
        done = itertools.count(1)

        def step(_: int) -> None:
            if stopped.is_set():
                raise _StoppedError
            if on_step is not None:
                on_step(next(done), 2 * choices.steps)

        uncached = runs.generate(source, None, settings, step)
        cached = runs.generate(source, plan, settings, step)
        return Pair(choices, settings, plan, runs.cost(source, plan, cached), uncached, cached)

    @contextmanager
    def _visit(self, who: str) -> Iterator[threading.Event]:
        """One at a time a person; one that was stopped is waited for."""
        with self._change:
            ended = self._change.wait_for(lambda: who not in self._visits or not self._visits[who].is_set(), timeout=60)
            if not ended:
                raise InputError("What you stopped has not ended yet: try again in a moment.")
            if who in self._visits:
                raise InputError("Your last comparison is still on its way: wait for it, or cancel it.")
            if len(self._visits) > WAITING:
                raise InputError(f"{WAITING} comparisons wait already: try again in a moment.")
            self._visits[who] = stopped = threading.Event()
        try:
            yield stopped
        finally:
            with self._change:
                del self._visits[who]
                self._change.notify_all()

    def _wait(self, who: str, stopped: threading.Event, on_wait: OnWait | None) -> None:
        """Until this visit is the oldest: the models are one thread's at a time. Who was stopped waits no longer."""
        told = 0
        with self._change:
            while not stopped.is_set() and (before := list(self._visits).index(who)):
                if on_wait is not None and before != told:
                    on_wait(told := before)
                self._change.wait()
        if stopped.is_set():
            raise _StoppedError
