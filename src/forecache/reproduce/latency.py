"""Latency of a table's rows: generations of a few images, timed in rounds in which all rows run in turn.

latency.json, versioned JSON:

    {"format": "forecache-reproduction-latency", "version": 1, "images": 8, "rounds": 5, "environment": {...},
     "plans": {"FORA 50 %": "9f86...", ...}, "seconds": {"FORA 50 %": [1.79, 1.81, ...], ...}}
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forecache.environment import environment
from forecache.errors import InputError
from forecache.io import files
from forecache.io.document import Document
from forecache.plan.plan import Plan
from forecache.reproduce.table import Latency, Table, TableRow
from forecache.runtime.apply import apply
from forecache.sampling.sources import Condition, Sampling, Source
from forecache.sampling.timing import alternate, seconds_of

DOCUMENT = Document("forecache-reproduction-latency", 1)
KEYS = {"images": int, "rounds": int, "environment": dict, "plans": dict, "seconds": dict}


@dataclass(frozen=True)
class Spread:
    """The latency of a row.

    mean: of the rounds, in seconds.
    deviation: sample standard deviation, in seconds; 0 for one round.
    ratio: mean ratio to the row's base in the same round; None for a row without one.
    """

    mean: float
    deviation: float
    ratio: float | None


def measure(
    source: Source, conditions: Sequence[Condition], how: Sampling, plans: Mapping[str, Plan | None], latency: Latency,
    on_round: Callable[[int], None] = lambda _: None,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of a generation under every plan, one a round, after a round that warms up."""
    wanted = [conditions[index % len(conditions)] for index in range(latency.images)]
    done = 0

    def generation(plan: Plan | None) -> Callable[[], float]:
        def run() -> float:
            nonlocal done
            with nullcontext() if plan is None else apply(source.target, plan):
                seconds = seconds_of(lambda: source.generate(wanted, how))
            done += 1
            on_round(done)
            return seconds

        return run

    return alternate({name: generation(plan) for name, plan in plans.items()}, latency.rounds)


def write(path: Path, latency: Latency, digests: Mapping[str, str], seconds: Mapping[str, Sequence[float]]) -> None:
    """Write the seconds of all rounds. digests: of the rows' plans, empty without a cache."""
    values = {
        "images": latency.images,
        "rounds": latency.rounds,
        "environment": environment(),
        "plans": dict(digests),
        "seconds": {name: list(row) for name, row in seconds.items()},
    }
    files.write_json(path, DOCUMENT.wrap(values), indent=1)


def read(path: Path, latency: Latency) -> tuple[dict[str, str], dict[str, list[float]]]:
    """Digests and seconds of a file; both empty if there is none, it is damaged, or it was measured otherwise."""
    try:
        values = DOCUMENT.fields(files.document(path, 2**20), KEYS)
        if (values["images"], values["rounds"]) != (latency.images, latency.rounds):
            return {}, {}
        seconds = {name: [_seconds(value) for value in row] for name, row in values["seconds"].items()}
        if set(seconds) != set(values["plans"]) or any(len(row) != latency.rounds for row in seconds.values()):
            return {}, {}
        return {name: str(digest) for name, digest in values["plans"].items()}, seconds
    except (OSError, ValueError, TypeError, AttributeError, InputError):
        return {}, {}


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not value > 0:
        raise InputError(f"Seconds are positive numbers, not {value!r}.")
    return float(value)


def spreads(table: Table, seconds: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    """The latency of every row that was timed."""
    latencies = {}
    for row in table.rows:
        if row.name not in seconds:
            continue
        own, base = seconds[row.name], base_of(table, row)
        ratio = None
        if base is not None and base.name in seconds:
            ratio = statistics.fmean(a / b for a, b in zip(own, seconds[base.name], strict=True))
        deviation = statistics.stdev(own) if len(own) > 1 else 0.0
        latencies[row.name] = Spread(statistics.fmean(own), deviation, ratio)
    return latencies


def base_of(table: Table, row: TableRow) -> TableRow | None:
    """The row whose plan is the base of this row's correction; None if the table has none."""
    base = row.recipe.get("base") if row.recipe is not None else None
    return next((other for other in table.rows if base is not None and other.recipe == base), None)
