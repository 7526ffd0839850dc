"""Figures with their intervals, and whether two of them differ."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from forecache.errors import InputError
from forecache.evaluate.metrics import METRICS, Metric
from forecache.io.text import short

Z = 1.96
"""Standard errors on either side of a 95 % interval."""


@dataclass(frozen=True)
class Estimate:
    """A value that was measured on ``count`` samples, and its 95 % interval, if a bootstrap was asked for.

    draws: the metric on resamples of the samples (recall: without each of 20 groups, spread likewise). Their spread is
    the standard error; their mean is not used, since a resample holds fewer distinct samples than the set, and a biased
    metric (FID) is shifted on it. seed: of the resampling, which draws the same places in every set of the same size.
    """

    metric: str
    value: float
    count: int
    draws: tuple[float, ...] = ()
    seed: int | None = None

    @property
    def kind(self) -> Metric:
        return METRICS[self.metric]

    @property
    def error(self) -> float | None:
        """The bootstrap standard error, None without draws."""
        return statistics.stdev(self.draws) if len(self.draws) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The value less and plus 1.96 standard errors, within the range of the metric."""
        if self.error is None:
            return None
        low, high = self.value - Z * self.error, self.value + Z * self.error
        return max(low, self.kind.least), min(high, self.kind.most)

    @property
    def text(self) -> str:
        """The value with as many digits as its metric is given with."""
        return f"{self.value:.{self.kind.digits}f}"

    def __str__(self) -> str:
        return self.text if self.error is None else f"{self.text} ± {Z * self.error:.{self.kind.digits}f}"

    def document(self, *, draws: bool = True) -> dict[str, Any]:
        """For a JSON file; `Estimate.read` reads it where draws are in it."""
        found = asdict(self) | {"interval": list(self.interval) if self.interval else None}
        found |= {"resamples": len(self.draws)}
        found["draws"] = [float(f"{draw:.8g}") for draw in self.draws]
        if not draws:
            del found["draws"]
        return found

    @classmethod
    def read(cls, document: dict[str, Any]) -> Estimate:
        """The figure of a `document`; InputError if it is none."""
        try:
            metric, count, seed = document["metric"], document["count"], document["seed"]
            if type(count) is not int or count < 1 or not (seed is None or type(seed) is int):
                raise ValueError("its count or its seed is not a number of something")
            value, *draws = (_number(each) for each in (document["value"], *document.get("draws", ())))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"This is not a figure of an evaluation: {short(document)} ({error}).") from error
        if metric not in METRICS:
            raise InputError(f"There is no metric {short(metric)}; there are {', '.join(METRICS)}.")
        return cls(metric, value, count, tuple(draws), seed)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{short(value)} is no finite number")
    return float(value)


@dataclass(frozen=True)
class Difference:
    """How much one figure is above another, and the standard error of that, None where an interval is missing."""

    value: float
    error: float | None

    @property
    def real(self) -> bool:
        """Whether it is larger than its 95 % interval; never without one."""
        return self.error is not None and abs(self.value) > Z * self.error


def comparable(a: Estimate, b: Estimate) -> bool:
    """Whether a difference of the two means anything: one metric, and one number of samples where it is biased."""
    return a.metric == b.metric and (a.count == b.count or not a.kind.biased)


def difference(a: Estimate, b: Estimate) -> Difference:
    """a - b with its standard error; InputError if the two are not `comparable`.

    Figures of one size and one bootstrap seed were resampled at the same places, so that the spread of the differences
    of their draws is the error also where samples come in pairs (the same noise and label in both sets), which makes it
    much smaller than for independent sets. Otherwise the sets are taken for independent.
    """
    if not comparable(a, b):
        raise InputError(
            f"{a.metric} of {a.count} and {b.metric} of {b.count} samples do not compare: one metric and, where it is "
            "biased by their number, equally many samples are needed."
        )
    value = a.value - b.value
    if a.error is None or b.error is None:
        return Difference(value, None)
    if (a.count, a.seed, len(a.draws)) == (b.count, b.seed, len(b.draws)):
        return Difference(value, statistics.stdev(x - y for x, y in zip(a.draws, b.draws, strict=True)))
    return Difference(value, math.hypot(a.error, b.error))
