"""The same images without a cache and with a plan, one comparison at a time; the page only displays them."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from forecache.compare.selection import Selection
from forecache.errors import InputError
from forecache.evaluate import psnr
from forecache.io.text import mib
from forecache.models.find import grid
from forecache.plan.cost import Cost
from forecache.plan.plan import Plan
from forecache.sampling import runs
from forecache.sampling.costs import cost
from forecache.sampling.sources import Sampling, Source, all_conditions, own_guidance
from forecache.sampling.timing import ROUNDS, Spread, Turns
from forecache.zoo import bundled
from forecache.zoo.open import open_source

OnStep = Callable[[int, int], None]
"""Called after every step with the number of finished steps and their total."""
OnWait = Callable[[int], None]
"""Called while a comparison waits, with the number of comparisons before it, whenever that number changes."""
MAX_WAITING = 16
"""Comparisons that may wait beside the running one; a further one is refused."""
PATIENCE = 10.0
"""Most seconds of sampling without a cache and with the plan for which times are measured, in more rounds."""
GAIN = 8
"""Factor by which differences of images are amplified so that they can be seen."""


class _StoppedError(Exception):
    """The comparison was cancelled. Raised between two steps and caught in this module."""


@dataclass(frozen=True)
class Comparison:
    """The images and the measurements of one selection.

    selection: the selection that was compared.
    settings: the sampling settings that it stands for.
    plan: the plan of the cached run; one that decides while it runs is undecided here.
    cost: the cost of what was run; None where the model's cost is not known from shapes.
    uncached: the run without a plan.
    cached: the run with the plan.
    timing: times of further runs of both, in turn; None if one pair took longer than `PATIENCE`, or if cancelled.
    """

    selection: Selection
    settings: runs.Settings
    plan: Plan
    cost: Cost | None
    uncached: runs.Run
    cached: runs.Run
    timing: Turns | None

    @property
    def ran(self) -> Plan:
        """The plan of what the cached run did, where its plan decided while it ran."""
        return self.cached.ran(self.plan)

    @property
    def psnr(self) -> tuple[float, ...]:
        """PSNR of every image to its uncached one, in dB; inf where the two are equal."""
        return tuple(psnr(self.cached.images, self.uncached.images).tolist())

    @property
    def time_ratio(self) -> Spread | None:
        """Seconds without the plan divided by seconds with it, within a round; None if no times were measured."""
        return self.timing.ratio(runs.WITH_PLAN, runs.UNCACHED_NAME) if self.timing is not None else None

    @property
    def difference(self) -> Tensor:
        """Absolute difference of the images (B, C, H, W), amplified by `GAIN` and clipped to 1."""
        return ((self.cached.images - self.uncached.images).abs() * GAIN).clamp(max=1)

    @property
    def command(self) -> str:
        """The `forecache sample` command that makes the same images."""
        return self.selection.command(self.settings)

    def figures(self) -> list[tuple[str, str, str, str]]:
        """Rows of the table of results: quantity, without a cache, with the plan, and their ratio."""
        stats, cost = self.cached.stats, self.cost
        rows = [self._times()]
        if cost is not None:
            rows.append(("MACs", _macs(cost.macs_uncached), _macs(cost.macs), f"{cost.speedup:.2f}x fewer"))
        if stats is not None:
            rows.append(("peak cache memory", "0", mib(stats.peak_cache_bytes), ""))
        share = f"{self.ran.computed_share:.1%}"
        return [*rows, ("features computed", "100.0%", share, ""), ("PSNR", "", *_psnr_summary(self.psnr))]

    def _times(self) -> tuple[str, str, str, str]:
        """The row of times: medians and the ratio with its quartiles, of runs in turn."""
        if self.timing is None or (ratio := self.time_ratio) is None:
            is_long = self.uncached.seconds + self.cached.seconds > PATIENCE
            reason = f"both runs together took over {PATIENCE:g} s" if is_long else "it was cancelled"
            return "time", "", "", f"not measured: {reason}"
        seconds = (self.timing.spread(name).median for name in (runs.UNCACHED_NAME, runs.WITH_PLAN))
        spread = f"{ratio.median:.2f}x as fast ({ratio.low:.2f} to {ratio.high:.2f}, {ratio.count} rounds)"
        bare, cached = (f"{value:.2f} s" for value in seconds)
        return "time", bare, cached, spread

    def save(self, folder: Path) -> list[Path]:
        """Write the plan file, and its constants file if it has one, to a folder; returns their paths."""
        self.plan.save(folder / "plan.json")
        return sorted(folder.glob("plan.*"), reverse=True)  # plan.json is the first


def _check(stopped: threading.Event) -> None:
    """Raises _StoppedError if the comparison was cancelled."""
    if stopped.is_set():
        raise _StoppedError


def _macs(macs: int) -> str:
    return f"{macs / 1e12:.4g} T" if macs >= 1e12 else f"{macs / 1e9:.4g} G"


def _psnr_summary(values: Sequence[float]) -> tuple[str, str]:
    """The mean PSNR of the images that differ, and their range."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "equal images", ""
    mean, lowest, highest = sum(finite) / len(finite), min(finite), max(finite)
    equal = f", {len(values) - len(finite)} equal" if len(finite) < len(values) else ""
    return f"{mean:.1f} dB", f"{lowest:.1f} to {highest:.1f} dB{equal}"


class Comparer:
    """Samples comparisons one at a time, and at most one per user.

    models: the names that may be selected, as `open_source` takes them. A model is loaded when it is first selected
        and stays loaded.
    device, dtype: of every model, as in `open_source`.

    `compare` may be called from any number of threads; the calls run in the order in which they arrive.
    """

    def __init__(self, models: Sequence[str] = bundled.models(), device: str = "auto", dtype: str = "auto") -> None:
        self.models = tuple(dict.fromkeys(models))
        self._placement = device, dtype
        self._sources: dict[str, Source] = {}
        self._requests: dict[str, threading.Event] = {}  # by user, the oldest first; an event that is set cancels
        self._changed = threading.Condition()

    def compare(
        self, selection: Selection, user: str = "", on_step: OnStep | None = None, on_wait: OnWait | None = None
    ) -> Comparison | None:
        """The comparison of a selection, or None if `stop` was called for this user meanwhile.

        Raises InputError for a second comparison of the same user, and if `MAX_WAITING` comparisons wait already.
        """
        with self._request(user) as stopped:
            try:
                self._wait_for_turn(user, stopped, on_wait)
                return self._sample(selection, on_step, stopped)
            except _StoppedError:
                return None

    def stop(self, user: str) -> bool:
        """Cancel this user's comparison after the step in progress; returns whether there was one."""
        with self._changed:
            stopped = self._requests.get(user)
            if stopped is not None:
                stopped.set()
                self._changed.notify_all()
            return stopped is not None

    def source(self, model: str) -> Source:
        """The model of this name, loaded and warmed up. Raises InputError for a model that may not be selected."""
        if model not in self.models:
            raise InputError(f"There is no model {model[:80]!r} here; there are {', '.join(self.models)}.")
        if model not in self._sources:
            opened = open_source(model, *self._placement)
            condition = tuple(all_conditions(opened)[:1]) or ("a",)
            opened.generate(condition, Sampling(2, own_guidance(opened), 0))  # a model's first call is slower
            self._sources[model] = opened
        return self._sources[model]

    def _sample(self, selection: Selection, on_step: OnStep | None, stopped: threading.Event) -> Comparison:
        source = self.source(selection.model)
        settings = selection.settings(source)
        plan = selection.method().plan(grid(source.target, selection.steps))
        finished = itertools.count(1)

        def step(_: int) -> None:
            _check(stopped)
            if on_step is not None:
                on_step(next(finished), 2 * selection.steps)

        uncached = runs.generate(source, None, settings, step)
        cached = runs.generate(source, plan, settings, step)
        timing = None
        if uncached.seconds + cached.seconds <= PATIENCE:
            pair = {runs.UNCACHED_NAME: None, runs.WITH_PLAN: plan}
            with suppress(_StoppedError):  # the images are finished
                timing = runs.time_in_turn(source, pair, settings, ROUNDS, lambda _: _check(stopped))
        return Comparison(
            selection, settings, plan, cost(source, cached.ran(plan), cached.call), uncached, cached, timing
        )

    @contextmanager
    def _request(self, user: str) -> Iterator[threading.Event]:
        """Registers the user's comparison; waits for the user's cancelled one to end before."""
        with self._changed:
            ended = self._changed.wait_for(
                lambda: user not in self._requests or not self._requests[user].is_set(), timeout=60
            )
            if not ended:
                raise InputError("The comparison that you cancelled has not ended yet: try again in a moment.")
            if user in self._requests:
                raise InputError("Your last comparison is still running: wait for it, or cancel it.")
            if len(self._requests) > MAX_WAITING:
                raise InputError(f"{MAX_WAITING} comparisons are waiting already: try again in a moment.")
            self._requests[user] = stopped = threading.Event()
        try:
            yield stopped
        finally:
            with self._changed:
                del self._requests[user]
                self._changed.notify_all()

    def _wait_for_turn(self, user: str, stopped: threading.Event, on_wait: OnWait | None) -> None:
        """Blocks until this request is the oldest one, or is cancelled; one thread at a time uses the models."""
        reported = 0
        with self._changed:
            while not stopped.is_set() and (before := list(self._requests).index(user)):
                if on_wait is not None and before != reported:
                    on_wait(reported := before)
                self._changed.wait()
        if stopped.is_set():
            raise _StoppedError
