"""Time, MACs and memory of plans on one model, interleaved in one process so that their ratios can be trusted."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from forecache.plan.plan import Plan
from forecache.runtime.apply import apply
from forecache.runtime.stats import Stats
from forecache.sampling.clock import timed


@dataclass(frozen=True)
class Timing:
    """What one plan did: the images of its last run, the seconds of every run, the session's count."""

    images: Tensor
    seconds: tuple[float, ...]
    stats: Stats | None

    @property
    def median(self) -> float:
        """Median seconds of a run."""
        return statistics.median(self.seconds)


def run(
    target: Any,
    generate: Callable[[], Tensor],
    plans: Mapping[str, Plan | None],
    *,
    repeats: int = 1,
    on_run: Callable[[str], None] | None = None,
) -> dict[str, Timing]:
    """Time ``generate`` under every plan, ``repeats`` rounds of all plans in turn.

    target: what a plan is applied to. plans: by name; None is the bare model. on_run: called with the name of the plan
    that starts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    last: dict[str, tuple[Tensor, Stats | None]] = {}
    for _ in range(repeats):
        for name, plan in plans.items():
            if on_run is not None:
                on_run(name)
            if plan is None:
                images, elapsed = timed(generate)
                stats = None
            else:
                with apply(target, plan) as session:
                    images, elapsed = timed(generate)
                stats = session.stats
            seconds[name].append(elapsed)
            last[name] = (images, stats)
    return {name: Timing(images, tuple(seconds[name]), stats) for name, (images, stats) in last.items()}
