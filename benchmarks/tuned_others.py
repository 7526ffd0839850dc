"""What a tuned plan is compared with: the published methods at the same cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import forecache as fc
from forecache import zoo
from forecache.sampling import sources
from forecache.sampling.sources import Source


def even(steps: int, count: int) -> str:
    chosen = {round(number * steps / count - 1e-9) for number in range(count)}
    return "".join("#" if step in chosen else "." for step in range(steps))


def spread(steps: int, count: int) -> str:
    """FORA's schedule, if an interval gives so many computed steps, else even ones."""
    interval = -(-steps // count)
    return (("#" + "." * (interval - 1)) * count)[:steps] if -(-steps // interval) == count else even(steps, count)


def falling(steps: int, count: int) -> str:
    """ProCache's constraint, intervals that never grow: the longest first, as even as they go."""
    left, intervals = steps, []
    for number in range(count):
        intervals.append(-(-left // (count - number)))
        left -= intervals[-1]
    return "".join("#" + "." * (interval - 1) for interval in intervals)


class Others:
    """The published methods at a number of computed steps, and ours without a search. statistics: None without them."""

    def __init__(self, source: Source, model: str, steps: int, statistics: fc.Statistics | None) -> None:
        self._source, self._model, self._steps, self._statistics = source, model, steps, statistics
        self._grid = fc.grid(source.target, steps)

    def plans(self, count: int) -> Iterator[tuple[str, Callable[[], fc.Plan]]]:
        """Names, and what makes the plan."""
        steps, interval = self._steps, -(-self._steps // count)
        is_fora = -(-steps // interval) == count
        base = fc.explicit(pattern=spread(steps, count))
        said = f"N = {interval}" if is_fora else "even steps"
        never_grow = fc.explicit(pattern=falling(steps, count))
        methods = {
            f"ours: FORA, {said}": base,
            f"ours: GOC 0.8, {said}": fc.goc(base, 0.8),
            f"ours: Taylor 1, {said}": fc.taylorseer(base, 1),
            f"ours: Taylor 2, {said}": fc.taylorseer(base, 2),
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
        """Fewer steps are computed, and so many tokens in the others that the MACs are those of ``count``."""
        steps, target = self._steps, self._source.target
        inputs = sources.call_inputs(self._source, 2)
        interval = next(each for each in range(2, steps) if -(-steps // each) < count)

        def made(share: float) -> fc.Plan:
            return fc.toca(fc.fora(interval), share).plan(self._grid)

        wanted = fc.explicit(pattern=even(steps, count)).plan(self._grid).cost(target, inputs=inputs).macs
        share = halved(lambda share: made(share).cost(target, inputs=inputs).macs <= wanted, 0.02, 0.98)
        return made(share)

    def _smoothcache(self, count: int) -> fc.Plan:
        """The smallest threshold under which no more cells are computed."""
        assert self._statistics is not None
        statistics = self._statistics

        def made(threshold: float) -> fc.Plan:
            return fc.smoothcache(statistics, -threshold).plan(self._grid)

        share = count / self._steps
        return made(halved(lambda threshold: made(threshold).computed_share <= share, -5.0, 0.0))


def halved(is_enough: Callable[[float], bool], low: float, high: float, times: int = 12) -> float:
    """The largest number for which it is enough."""
    for _ in range(times):
        middle = (low + high) / 2
        low, high = (middle, high) if is_enough(middle) else (low, middle)
    return low
