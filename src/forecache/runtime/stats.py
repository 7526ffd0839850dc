"""Statistics of a session: generations, model calls, cells, bytes; and a picture of the last generation."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from forecache.errors import ForecacheError
from forecache.io.text import mib
from forecache.models.arguments import Arguments
from forecache.models.find import measure
from forecache.models.layout import Layout
from forecache.plan.cost import count_request, macs
from forecache.plan.ops import Op
from forecache.plan.plan import Plan


@dataclass(frozen=True)
class Stats:
    """The statistics of a session, over all of its generations and threads. ``print(session.stats)`` shows them.

    generations: generations that began.
    calls: model calls.
    computed: cells (step, site) that were computed as a whole.
    skipped: cells that were estimated.
    peak_cache_bytes: peak memory of kept features, in bytes, of the thread that kept most.
    partial: cells of which some tokens were computed; 0 by default.
    fallbacks: estimates, of one sample at one site, that `Guards.max_error` turned into reuse; 0 by default.
    drifted: generations that `Guards.max_drift` computed to their end; 0 by default.
    last: the generation that began last; None before the first.
    """

    generations: int
    calls: int
    computed: int
    skipped: int
    peak_cache_bytes: int
    partial: int = 0
    fallbacks: int = 0
    drifted: int = 0
    last: LastGeneration | None = field(default=None, compare=False, repr=False)

    def counts(self) -> dict[str, int]:
        """The numbers by name, for a file."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}

    def __str__(self) -> str:
        runs = f"{_counted(self.generations, 'generation')}, {_counted(self.calls, 'model call')}"
        share = self.computed / max(1, self.computed + self.skipped + self.partial)
        partial = f"some tokens of {self.partial}, " if self.partial else ""
        fallbacks = f"{self.fallbacks} estimates fell back to reuse, " if self.fallbacks else ""
        drifted = f"{_counted(self.drifted, 'generation')} left what was calibrated, " if self.drifted else ""
        total = (
            f"{runs}, {share:.1%} of features computed, "
            f"{partial}{fallbacks}{drifted}{mib(self.peak_cache_bytes)} of cache at the peak"
        )
        return total if self.last is None else f"{total}\n{self.last}"


@dataclass(frozen=True)
class Stretch:
    """Consecutive model calls of a generation in one lane that one executable ran.

    layout: layout of the model.
    lane: name of the lane.
    plan: the plan of the calls.
    rows: the operations of the plan, [site][step].
    calls: model calls that were made.
    inputs: arguments of the first call, on the meta device; None where they could not be kept.
    looks: the operations of estimates beside computed steps, by step; none by default.
    """

    layout: Layout
    lane: str
    plan: Plan
    rows: Sequence[tuple[Op, ...]]
    calls: int
    inputs: Arguments | None
    looks: Mapping[int, Sequence[Op]] = field(default_factory=dict)

    @property
    def signs(self) -> str:
        """One sign a model call that was made."""
        return "".join(map(_sign, list(zip(*self.plan.rows, strict=True))[: self.calls]))

    def macs(self) -> tuple[int, int] | None:
        """MACs of the calls, and of the same calls with everything computed; None where they cannot be counted."""
        if self.inputs is None:
            return None
        try:
            looks = list(zip(*self.looks.values(), strict=True)) or [()] * len(self.rows)
            rows = [(*ops, *more) for ops, more in zip(self.rows, looks, strict=True)]
            request = count_request(rows, self.layout.spans)
            parts = measure(self.layout.model, self.plan.grid, 0, self.inputs, request)
        except ForecacheError:
            return None
        steps: Sequence[Sequence[Op]] = list(zip(*self.rows, strict=True))[: self.calls]
        looks = [ops for step, ops in self.looks.items() if step < self.calls]
        full = parts.fixed_macs + sum(parts.site_macs)
        return sum(macs(parts, ops, self.layout.spans) for ops in [*steps, *looks]), full * len(steps)


@dataclass(frozen=True)
class LastGeneration:
    """The generation that began last, as far as it has come.

    stretches: its model calls, in the order in which they began.
    seconds: from its first call to the end of its last; None unless the session is timed.
    """

    stretches: tuple[Stretch, ...]
    seconds: float | None = None

    @property
    def picture(self) -> str:
        """One sign a model call, a line a lane; lanes that did the same share a line.

        ``#`` is computed, ``.`` reused, ``~`` forecast, ``+`` corrected, ``o`` computed for some tokens. A digit is a
        call in which sites differ: the tenths of them that were computed.
        """
        return "\n".join(dict.fromkeys(self._lanes.values()))

    @cached_property
    def _lanes(self) -> dict[str, str]:
        lanes: dict[str, str] = {}
        for stretch in self.stretches:
            lanes[stretch.lane] = lanes.get(stretch.lane, "") + stretch.signs
        return lanes

    @cached_property
    def macs(self) -> tuple[int, int] | None:
        """MACs of the model calls, and of the same calls without a plan; None where they cannot be counted.

        They are counted when they are read first, from the shapes of the calls.
        """
        counts = [stretch.macs() for stretch in self.stretches]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts) or not known:
            return None
        return sum(used for used, _ in known), sum(full for _, full in known)

    @property
    def computed_calls(self) -> int:
        """Model calls in which every site was computed."""
        return sum(lane.count("#") for lane in self._lanes.values())

    @property
    def skipped_calls(self) -> int:
        """Model calls in which no site was computed."""
        return sum(lane.count(sign) for lane in self._lanes.values() for sign in ".~+")

    def __str__(self) -> str:
        calls = sum(map(len, self._lanes.values()))
        mixed = calls - self.computed_calls - self.skipped_calls
        words = [f"{self.computed_calls} computed", f"{self.skipped_calls} skipped"]
        words += [f"{mixed} in part"] if mixed else []
        if self.macs is not None:
            used, full = self.macs
            words.append(f"{full / max(1, used):.2f}x fewer MACs ({1 - used / max(1, full):.0%} saved)")
        if self.seconds is not None:
            words.append(f"{self.seconds:.3g} s")
        lines = self.picture.splitlines()
        lanes = f" in each of {len(self._lanes)} lanes" if len(self._lanes) > 1 and len(lines) == 1 else ""
        return f"last: {(chr(10) + ' ' * 6).join(lines)}{lanes}\n      {', '.join(words)}"


def _sign(cells: Sequence[Any]) -> str:
    """The sign of a step: that of its cells, for computed and skipped ones together the tenths that are computed."""
    signs = {cell.sign for cell in cells}
    computed = sum(cell.computed for cell in cells)
    if 0 < computed < len(cells):
        return str(min(9, 10 * computed // len(cells)))
    return next(sign for sign in "o+~.#" if sign in signs)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def merged(stats: Sequence[Stats], take_turns: bool = True) -> Stats:
    """The statistics of the models of one run.

    take_turns: whether they are called one after the other, so that their caches never exist at the same time; by
        default they are.
    """
    peaks = [part.peak_cache_bytes for part in stats]
    last = [part.last for part in stats if part.last is not None]
    times = [generation.seconds for generation in last if generation.seconds is not None]
    stretches = tuple(stretch for generation in last for stretch in generation.stretches)
    return Stats(
        generations=max(part.generations for part in stats),
        calls=sum(part.calls for part in stats),
        computed=sum(part.computed for part in stats),
        skipped=sum(part.skipped for part in stats),
        peak_cache_bytes=max(peaks) if take_turns else sum(peaks),
        partial=sum(part.partial for part in stats),
        fallbacks=sum(part.fallbacks for part in stats),
        drifted=sum(part.drifted for part in stats),
        last=LastGeneration(stretches, sum(times) if times else None) if last else None,
    )


PLAIN = (int, float, complex, str, bool, type(None), torch.dtype, torch.device)
"""Arguments of a model call that are kept as they are."""


def shapes_of(arguments: Arguments) -> Arguments | None:
    """The arguments of a call with their tensors on the meta device; None if it has objects that may hold data."""
    leaves = tree_leaves((list(arguments.args), dict(arguments.kwargs)))
    if not all(isinstance(leaf, (Tensor, *PLAIN)) for leaf in leaves):
        return None

    def empty(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    return Arguments(*tree_map_only(Tensor, empty, (tuple(arguments.args), dict(arguments.kwargs))))


class Ran(Protocol):
    """A lane, as far as it has come."""

    @property
    def plan(self) -> Plan: ...
    @property
    def rows(self) -> Sequence[tuple[Op, ...]]: ...
    @property
    def looks(self) -> Mapping[int, Sequence[Op]]: ...
    @property
    def step(self) -> int: ...


@dataclass
class Record:
    """What a generation has done so far; `Counters` make one a generation.

    began, ended: times of its first call and of the end of its last, in seconds; 0 unless the session is timed.
    """

    began: float = 0.0
    ended: float = 0.0
    _lanes: list[tuple[str, Ran, Arguments | None]] = field(default_factory=list)

    def add(self, name: str, lane: Ran, arguments: Arguments) -> None:
        """Add a lane, which begins with a call of these arguments."""
        self._lanes.append((name, lane, shapes_of(arguments)))

    def divide(self, lane: Ran, samples: Sequence[tuple[Ran, Arguments]]) -> None:
        """Put the samples of a lane in its place, each with the arguments of its calls alone."""
        place, name = next((at, own) for at, (own, other, _) in enumerate(self._lanes) if other is lane)
        self._lanes[place : place + 1] = [
            (f"{name}, image {number}", sample, shapes_of(arguments))
            for number, (sample, arguments) in enumerate(samples)
        ]

    def end_call(self, device: torch.device | None) -> None:
        """Note the end of a model call, after its device has finished it."""
        synchronize(device)
        self.ended = time.perf_counter()

    def generation(self, layout: Layout) -> LastGeneration:
        """The generation so far."""
        stretches = tuple(
            Stretch(layout, name, lane.plan, lane.rows, lane.step, inputs, lane.looks)
            for name, lane, inputs in self._lanes
        )
        return LastGeneration(stretches, self.ended - self.began if self.ended else None)


def synchronize(device: torch.device | None) -> None:
    """Wait until a device has finished what it was given; the CPU always has."""
    module = None if device is None else getattr(torch, device.type, None)
    if (wait := getattr(module, "synchronize", None)) is not None:
        wait()


@dataclass
class Counters:
    """The counters behind `Stats` for one model; any number of threads count.

    timed: whether the seconds of generations are measured; False by default.
    fallbacks: the number of fallbacks as a tensor on its device, so that no GPU is waited for; None for none yet.
    drifted: generations that left what was calibrated.
    calls_elsewhere: calls of the model that no call of the session's pipeline made.
    """

    timed: bool = False
    generations: int = 0
    calls: int = 0
    computed: int = 0
    partial: int = 0
    peak: int = 0
    fallbacks: Tensor | None = None
    drifted: int = 0
    calls_elsewhere: int = 0
    _last: Record | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add_call(self, computed: int, partial: int, peak: int) -> None:
        """Count a model call: its computed and partial cells, and the peak memory of its thread so far, in bytes."""
        with self._lock:
            self.calls += 1
            self.computed += computed
            self.partial += partial
            self.peak = max(self.peak, peak)

    def begin_generation(self, device: torch.device | None) -> Record:
        """The record of a generation that begins now. device: of its calls."""
        record = Record()
        if self.timed:
            synchronize(device)
            record.began = time.perf_counter()
        with self._lock:
            self.generations += 1
            self._last = record
        return record

    def add_drifted(self) -> None:
        """Count a generation that has left what was calibrated."""
        with self._lock:
            self.drifted += 1

    def add_fallbacks(self, count: Tensor) -> None:
        with self._lock:
            self.fallbacks = count if self.fallbacks is None else self.fallbacks + count.to(self.fallbacks.device)

    def stats(self, layout: Layout) -> Stats:
        """The statistics so far of the layout's model."""
        with self._lock:
            skipped = self.calls * len(layout.sites) - self.computed - self.partial
            fallbacks = 0 if self.fallbacks is None else int(self.fallbacks)
            last = None if self._last is None else self._last.generation(layout)
            counts = (
                self.generations,
                self.calls,
                self.computed,
                skipped,
                self.peak,
                self.partial,
                fallbacks,
                self.drifted,
            )
            return Stats(*counts, last)
