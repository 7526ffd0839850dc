"""Timing: clocks for a CPU or a GPU, and alternating rounds of what is compared.

A shared machine gets slower and faster while it is measured. So whatever is compared runs in turn in one process, after
a warm-up; every ratio is formed within a round, from runs that followed one another; the median over the rounds counts,
and the quartiles say how far to trust it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
ROUNDS = 3
"""Timed rounds where a command compares runs by the way."""


def timed(call: Callable[[], Result]) -> tuple[Result, float]:
    """The result of a call and its latency in seconds; a GPU is synchronised before and after."""
    _synchronize()
    started = time.perf_counter()
    result = call()
    _synchronize()
    return result, time.perf_counter() - started


def seconds_of(call: Callable[[], object]) -> float:
    """The latency of a call in seconds; a GPU is synchronised before and after."""
    return timed(call)[1]


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Clock:
    """Seconds between marks. On a GPU the marks are its own events, so that the calls between them are not held up."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Records this moment."""
        if self._device is None:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """The seconds between each mark and the next; waits for the GPU."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if self._device is None:
            return [after - before for before, after in pairs]
        torch.cuda.synchronize(self._device)
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of several measurements of one thing.

    median: of the measurements, in their unit.
    low: lower quartile.
    high: upper quartile.
    count: number of measurements.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one measurement."""
        measured = list(values)
        low, _, high = statistics.quantiles(measured, n=4, method="inclusive") if len(measured) > 1 else measured * 3
        return cls(statistics.median(measured), low, high, len(measured))

    @classmethod
    def of_ratios(cls, values: Iterable[float], references: Iterable[float]) -> Spread:
        """The spread of each value over the reference of the same round."""
        return cls.of(value / reference for value, reference in zip(values, references, strict=True))


@dataclass(frozen=True)
class Turns:
    """Latencies of several runs that took turns after a warm-up.

    samples: images of one run.
    seconds: by name of the run, one latency a round.
    """

    samples: int
    seconds: Mapping[str, tuple[float, ...]]

    def spread(self, name: str) -> Spread:
        """The latencies of a run in seconds."""
        return Spread.of(self.seconds[name])

    def ratio(self, name: str, reference: str) -> Spread:
        """How many times less time a run takes than a reference, within a round."""
        return Spread.of_ratios(self.seconds[reference], self.seconds[name])

    def document(self) -> dict[str, Any]:
        """The latencies for a JSON file."""
        seconds = {name: asdict(self.spread(name)) for name in self.seconds}
        return {"samples": self.samples, "warmed_up": True, "in_turn": True, "seconds": seconds}


def alternate(
    calls: Mapping[str, Callable[[], Result]],
    rounds: int,
    *,
    warmup: int = 1,
    on_call: Callable[[str], None] | None = None,
    on_round: Callable[[dict[str, list[Result]]], None] | None = None,
) -> dict[str, list[Result]]:
    """The results of every call, one for each round; in a round all calls run in turn.

    rounds: rounds that count. warmup: rounds before these, whose results are dropped. on_call: called with the name of
    the call that starts. on_round: called after each round that counts with the results so far, all of one length, so
    that a measurement that is stopped has its whole rounds.
    """
    results: dict[str, list[Result]] = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name, call in calls.items():
            if on_call is not None:
                on_call(name)
            result = call()
            if number >= warmup:
                results[name].append(result)
        if number >= warmup and on_round is not None:
            on_round(results)
    return results
