"""Untuned methods at the cost of a tuned plan: the papers', and ours at intervals that the papers do not use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import forecache as fc
from forecache import zoo
from forecache.sampling import sources
from forecache.sampling.sources import Source


def even(steps: int, count: int) -> str:
    """The pattern with evenly spread computed steps."""
    computed = {round(number * steps / count - 1e-9) for number in range(count)}
    return "".join("#" if step in computed else "." for step in range(steps))


def spread(steps: int, count: int) -> str:
    """FORA's pattern, if an interval gives that number of computed steps, else the even one."""
    interval = -(-steps // count)
    return (("#" + "." * (interval - 1)) * count)[:steps] if -(-steps // interval) == count else even(steps, count)


def falling(steps: int, count: int) -> str:
    """A pattern under ProCache's constraint that intervals never grow: the longest first, as even as possible."""
    left, intervals = steps, []
    for number in range(count):
        intervals.append(-(-left // (count - number)))
        left -= intervals[-1]
    return "".join("#" + "." * (interval - 1) for interval in intervals)


class Others:
    """The published methods at a number of computed steps, and ours without a search.

    statistics: of the model; None leaves out the methods that need them.
    """

    def __init__(self, source: Source, model: str, steps: int, statistics: fc.Statistics | None) -> None:
        self._source, self._model, self._steps, self._statistics = source, model, steps, statistics
        self._grid = fc.grid(source.target, steps)

    def plans(self, count: int) -> Iterator[tuple[str, Callable[[], fc.Plan]]]:
        """Names, and functions that make the plans."""
        steps, interval = self._steps, -(-self._steps // count)
        is_fora = -(-steps // interval) == count
        base = fc.explicit(pattern=spread(steps, count))
        spacing = f"N = {interval}" if is_fora else "even steps"
        never_grow = fc.explicit(pattern=falling(steps, count))
        methods = {
            f"ours: FORA, {spacing}": base,
            f"ours: GOC 0.8, {spacing}": fc.goc(base, 0.8),
            f"ours: Taylor 1, {spacing}": fc.taylorseer(base, 1),
            f"ours: Taylor 2, {spacing}": fc.taylorseer(base, 2),
            "intervals that never grow (ProCache's rule), reuse": never_grow,
            "ProCache: one step less, some tokens in the gaps": fc.procache(falling(steps, count - 1)),
        }
        if self._statistics is not None:
            methods["EOC additive 0.3, per channel"] = fc.eoc(
                base, self._statistics, 0.3, form="additive", per="channel"
            )
        if (self._model, steps, count) == ("digits", 20, 13):
            methods["L2C, router 40 %"] = fc.l2c(zoo.record("digits").router_path(40))
        for name, method in methods.items():
            yield name, lambda method=method: method.plan(self._grid)
        yield "ToCa: some tokens at every skipped step", lambda: self._toca(count)
        if self._statistics is not None:
            yield "SmoothCache", lambda: self._smoothcache(count)

    def _toca(self, count: int) -> fc.Plan:
        """Fewer computed steps, and a share of tokens in the others that makes the MACs those of ``count``."""
        steps, target = self._steps, self._source.target
        inputs = sources.call_inputs(self._source, 2)
        interval = next(interval for interval in range(2, steps) if -(-steps // interval) < count)

        def with_share(share: float) -> fc.Plan:
            return fc.toca(fc.fora(interval), share).plan(self._grid)

        wanted = fc.explicit(pattern=even(steps, count)).plan(self._grid).cost(target, inputs=inputs).macs
        share = bisect(lambda share: with_share(share).cost(target, inputs=inputs).macs <= wanted, 0.02, 0.98)
        return with_share(share)

    def _smoothcache(self, count: int) -> fc.Plan:
        """SmoothCache with the smallest threshold that computes no more cells."""
        assert self._statistics is not None
        statistics = self._statistics

        def with_threshold(threshold: float) -> fc.Plan:
            return fc.smoothcache(statistics, -threshold).plan(self._grid)

        share = count / self._steps
        return with_threshold(bisect(lambda threshold: with_threshold(threshold).computed_share <= share, -5.0, 0.0))


def bisect(is_enough: Callable[[float], bool], low: float, high: float, times: int = 12) -> float:
    """The largest number that is enough, by bisection."""
    for _ in range(times):
        middle = (low + high) / 2
        low, high = (middle, high) if is_enough(middle) else (low, middle)
    return low
