"""Estimates: values of metrics with their intervals, and whether two of them differ."""

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
    """The value of a metric on a set of samples, with a 95 % interval if it was resampled.

    metric: its name
    value: in the metric's unit
    count: number of samples
    draws: the metric on every resample (recall: without each of 20 groups, rescaled); empty without a bootstrap
    seed: seed of the resampling, which draws the same indices for every set of the same size

    The standard deviation of the draws is the standard error. Their mean is not used: a resample holds fewer distinct
    samples than the set, which shifts a biased metric (FID).
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
        """The value minus and plus 1.96 standard errors, within the range of the metric; None without draws."""
        if self.error is None:
            return None
        low, high = self.value - Z * self.error, self.value + Z * self.error
        return max(low, self.kind.least), min(high, self.kind.most)

    @property
    def text(self) -> str:
        """The value with the digits of its metric."""
        return f"{self.value:.{self.kind.digits}f}"

    def __str__(self) -> str:
        return self.text if self.error is None else f"{self.text} ± {Z * self.error:.{self.kind.digits}f}"

    def document(self, *, draws: bool = True) -> dict[str, Any]:
        """The estimate for a JSON file; `Estimate.read` restores it if it has draws."""
        values = asdict(self) | {"interval": list(self.interval) if self.interval else None}
        values |= {"resamples": len(self.draws)}
        values["draws"] = [float(f"{draw:.8g}") for draw in self.draws]
        if not draws:
            del values["draws"]
        return values

    @classmethod
    def read(cls, document: dict[str, Any]) -> Estimate:
        """The estimate of a `document`; InputError for anything else."""
        try:
            metric, count, seed = document["metric"], document["count"], document["seed"]
            if type(count) is not int or count < 1 or not (seed is None or type(seed) is int):
                raise ValueError("its count or its seed is not a whole number")
            value, *draws = map(_number, (document["value"], *document.get("draws", ())))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"This is not an estimate of an evaluation: {short(document)} ({error}).") from error
        if metric not in METRICS:
            raise InputError(f"There is no metric {short(metric)}; there are {', '.join(METRICS)}.")
        return cls(metric, value, count, tuple(draws), seed)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{short(value)} is not a finite number")
    return float(value)


@dataclass(frozen=True)
class Difference:
    """The difference of two estimates.

    value: the first minus the second
    error: standard error; None if one of the two has no draws
    """

    value: float
    error: float | None

    @property
    def real(self) -> bool:
        """Whether it is larger than half its 95 % interval; False without an interval."""
        return self.error is not None and abs(self.value) > Z * self.error


def comparable(a: Estimate, b: Estimate) -> bool:
    """Whether two estimates can be compared: one metric, and as many samples if the metric is biased."""
    return a.metric == b.metric and (a.count == b.count or not a.kind.biased)


def difference(a: Estimate, b: Estimate) -> Difference:
    """a - b with its standard error; InputError if the two are not `comparable`.

    Estimates of one size and one bootstrap seed were resampled at the same indices, so the standard deviation of the
    differences of their draws is the error. That holds for paired samples too (same noise and label in both sets), for
    which it is much smaller than for independent sets. Other sets are assumed to be independent.
    """
    if not comparable(a, b):
        raise InputError(
            f"{a.metric} of {a.count} and {b.metric} of {b.count} samples do not compare: one metric is needed and, if "
            "their number biases it, equally many samples."
        )
    value = a.value - b.value
    if a.error is None or b.error is None:
        return Difference(value, None)
    if (a.count, a.seed, len(a.draws)) == (b.count, b.seed, len(b.draws)):
        return Difference(value, statistics.stdev(x - y for x, y in zip(a.draws, b.draws, strict=True)))
    return Difference(value, math.hypot(a.error, b.error))
