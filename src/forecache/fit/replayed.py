"""The decisions of a rule in a run whose signals were recorded without a cache, from numbers alone.

What the cache does to a run is left out: a rule that skips looks at samples that are a little off, and here at those of
the run without a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecache.errors import StatisticsError
from forecache.parts.bounds import Bounds, Decision
from forecache.parts.decide import Decider, FilteredInput, FirstBlocks, ModulatedInput, Probe, TransformationRate
from forecache.parts.signals import Signals

Table = NDArray[np.float64]
Run = Callable[[int, list[int], Decision | None], bool]
"""(step, computed steps so far, what bounds leave of the choice) -> whether the step is computed."""


def computed_counts(decider: Decider, bounds: Bounds, signals: Signals, fixed: Collection[int]) -> list[int]:
    """The number of computed steps of every measured sample, each deciding alone.

    fixed: steps that are computed anyway. Raises StatisticsError for a rule that looks at what was not measured.
    """
    tables = _tables(decider, signals)
    return [
        len(computed_steps(decider, bounds, [table[sample] for table in tables], fixed))
        for sample in range(len(signals.samples))
    ]


def computed_steps(decider: Decider, bounds: Bounds, tables: list[Table], fixed: Collection[int]) -> list[int]:
    """The computed steps of a run. tables: its signals, as `_tables` has them."""
    run = _run(decider, tables)
    num_steps = len(tables[0])
    computed: list[int] = []
    for step in range(num_steps):
        if run(step, computed, bounds.forced(step, computed, num_steps, fixed)):
            computed.append(step)
    return computed


def _tables(decider: Any, signals: Signals) -> list[Table]:
    """The tables that a rule looks at, each by sample."""
    if isinstance(decider, FirstBlocks) and decider.head == 1:
        return [signals.pairs("residuals")]
    if isinstance(decider, ModulatedInput):
        return [signals.steps("modulated")]
    if isinstance(decider, TransformationRate):
        return [signals.pairs("inputs"), signals.pairs("outputs")]
    if isinstance(decider, FilteredInput) and decider.power == signals.power:
        return [signals.steps("filtered")]
    if isinstance(decider, Probe) and decider.depth == 1:
        return [signals.steps("stream"), signals.steps("probe")]
    raise StatisticsError(
        f"Statistics cannot tell what {decider!r} decides: they know one first block, a spectrum of power "
        f"{signals.power:g}, and the rules of forecache: give the model or the pipeline in their place, and conditions."
    )


def _run(decider: Any, tables: list[Table]) -> Run:
    """The decisions of one run, step by step."""
    if isinstance(decider, FirstBlocks):
        return _first_blocks(decider, *tables)
    if isinstance(decider, TransformationRate):
        return _transformation_rate(decider, *tables)
    threshold = decider.threshold
    if isinstance(decider, ModulatedInput):
        own = np.asarray(np.polyval(decider.coefficients, tables[0]), dtype=np.float64)
        return _accumulated(own, lambda total: threshold > 0 and total < threshold)
    own = tables[0] if isinstance(decider, FilteredInput) else np.abs(tables[1] - tables[0])
    return _accumulated(own, lambda total: total < threshold)


def _accumulated(changes: Table, skips: Callable[[float], bool]) -> Run:
    total = 0.0

    def run(step: int, computed: list[int], forced: Decision | None) -> bool:
        nonlocal total
        total += float(changes[step])
        computes = step == 0 or (forced is Decision.COMPUTE if forced is not None else not skips(total))
        total = 0.0 if computes else total
        return computes

    return run


def _first_blocks(decider: FirstBlocks, residuals: Table) -> Run:
    def run(step: int, computed: list[int], forced: Decision | None) -> bool:
        if forced is not None or not computed or decider.threshold == 0:
            return forced is not Decision.SKIP
        newest = computed[-1]
        return bool(residuals[newest, step] / residuals[newest, newest] > decider.threshold)

    return run


def _transformation_rate(decider: TransformationRate, inputs: Table, outputs: Table) -> Run:
    total = 0.0

    def run(step: int, computed: list[int], forced: Decision | None) -> bool:
        nonlocal total
        if len(computed) < 2 or forced is Decision.COMPUTE:
            computes = forced is not Decision.SKIP
        else:
            newest, before = computed[-1], computed[-2]
            rate = outputs[before, newest] / inputs[before, newest]
            total += float(rate * inputs[step - 1, step] / outputs[newest, newest])
            computes = not total < decider.threshold if forced is None else False
        total = 0.0 if computes else total
        return computes

    return run
