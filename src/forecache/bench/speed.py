"""How long the steps and runs of plans take on one model, in one process, round by round in turn.

A shared machine gets slower and faster while it is measured. So every ratio is formed within a round, from runs that
followed one another, and the median over the rounds counts; quartiles say how far to trust it.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import torch

from forecache.bench.subjects import Subject
from forecache.environment import environment
from forecache.errors import InputError
from forecache.plan.cost import Cost
from forecache.plan.plan import Plan
from forecache.runtime.apply import apply
from forecache.runtime.stats import Stats

BARE = "no cache"
Kind = Literal["full", "skipped", "mixed"]
KINDS: tuple[Kind, ...] = ("full", "skipped", "mixed")
"""Of a step: every site is computed, none is, or some are or some of their tokens."""


@dataclass(frozen=True)
class Spread:
    """Many measurements of one thing: their median and quartiles."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = list(values)
        low, _, high = statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
        return cls(statistics.median(found), low, high, len(found))


@dataclass(frozen=True)
class Timed:
    """One plan, timed; the bare model has neither plan nor cost.

    runs: seconds of the whole run of every round. time_ratio: the bare run of the same round over it. steps: seconds of
    a step, by kind. step_ratios: the same over a step of the bare run of the same round. each_step: median seconds of
    every step.
    cache_bytes: the peak that the session counted.
    """

    name: str
    plan: Plan | None
    cost: Cost | None
    runs: tuple[float, ...]
    time_ratio: Spread
    steps: Mapping[Kind, Spread]
    step_ratios: Mapping[Kind, Spread]
    each_step: tuple[float, ...] = field(repr=False)
    cache_bytes: int = 0

    @property
    def run(self) -> Spread:
        """Seconds of a whole run."""
        return Spread.of(self.runs)

    def over(self, other: Timed) -> Spread:
        """Its run over the run of another plan in the same round."""
        return Spread.of(own / theirs for own, theirs in zip(self.runs, other.runs, strict=True))

    @property
    def realised(self) -> float:
        """The share of the speed-up that MACs promise which the clock shows: time ratio over MAC ratio."""
        return self.time_ratio.median / (self.cost.speedup if self.cost else 1.0)

    def figures(self) -> dict[str, Any]:
        """The row for a JSON file."""
        cost, plan = self.cost, self.plan
        return {
            "name": self.name,
            "method": plan.provenance.get("method") if plan else None,
            "picture": plan.picture() if plan else None,
            "macs": cost.macs if cost else None,
            "macs_uncached": cost.macs_uncached if cost else None,
            "macs_ratio": cost.speedup if cost else 1.0,
            "time_ratio": asdict(self.time_ratio),
            "realised": self.realised,
            "run_seconds": list(self.runs),
            "step_seconds": {kind: asdict(spread) for kind, spread in self.steps.items()},
            "step_over_bare_step": {kind: asdict(spread) for kind, spread in self.step_ratios.items()},
            "each_step_seconds": list(self.each_step),
            "each_step_macs": list(cost.step_macs) if cost else None,
            "cache_bytes_predicted": cost.cache_bytes if cost else 0,
            "cache_bytes": self.cache_bytes,
        }


def kinds(plan: Plan | None, num_steps: int) -> list[Kind]:
    """The kind of every step of a plan; the bare model's are full."""
    if plan is None:
        return ["full"] * num_steps
    found = [{cell.sign for cell in cells} for cells in zip(*plan.rows, strict=True)]
    return ["full" if signs == {"#"} else "skipped" if signs <= set(".~+") else "mixed" for signs in found]


def measure(
    subject: Subject,
    plans: Mapping[str, Plan],
    *,
    rounds: int = 5,
    compiled: bool = False,
    on_run: Callable[[str], None] | None = None,
) -> list[Timed]:
    """Time the bare model and every plan; the first row is the bare model.

    Every turn is a session of two generations of which the second counts, as of a pipeline that stays.

    plans: by name, all of one number of steps. compiled: `model.compile()` first. on_run: called with the name of the
    plan whose turn begins.
    """
    lengths = {plan.num_steps for plan in plans.values()}
    if len(lengths) != 1:
        raise InputError(f"Plans that are compared have one number of steps; these have {sorted(lengths)}.")
    if rounds < 1:
        raise InputError(f"At least one round is timed; {rounds} were asked for.")
    num_steps = lengths.pop()
    everything: dict[str, Plan | None] = {BARE: None, **plans}
    seconds: dict[str, list[list[float]]] = {name: [] for name in everything}
    stats: dict[str, Stats | None] = {}
    if compiled:
        subject.model.compile()
    for _, (name, plan) in itertools.product(range(rounds), everything.items()):
        if on_run is not None:
            on_run(name)
        told = Told(subject)
        target = SimpleNamespace(transformer=subject.model, scheduler=told)
        with apply(target, plan) if plan is not None else nullcontext() as session:
            one_run(subject, num_steps, told)
            seconds[name].append(one_run(subject, num_steps, told))
        stats[name] = session.stats if session is not None else None
    return [_row(subject, name, plan, seconds, stats[name]) for name, plan in everything.items()]


class Told:
    """Tells the timesteps of a run as a pipeline's scheduler does, so that no call waits for a GPU to read its own."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.timesteps: list[float] = []

    def set_timesteps(self, count: int) -> None:
        self.timesteps = [float(each[0]) for each in self._subject.timesteps(count)]


@torch.no_grad()
def one_run(subject: Subject, num_steps: int, told: Told) -> list[float]:
    """Seconds of every call of one run on inputs that stay the same: what a call takes does not depend on values."""
    told.set_timesteps(num_steps)
    timesteps = subject.timesteps(num_steps)
    clock = Clock(subject.model.device)
    clock.mark()
    for timestep in timesteps:
        subject.model(**subject.inputs, timestep=timestep, return_dict=False)
        clock.mark()
    return clock.seconds()


class Clock:
    """Seconds between marks; on a GPU by its own events, so that the calls between them are not held up."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._marks: list[Any] = []

    def mark(self) -> None:
        if self._device is None:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append(event)

    def seconds(self) -> list[float]:
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if self._device is None:
            return [after - before for before, after in pairs]
        torch.cuda.synchronize(self._device)
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]


def _row(
    subject: Subject, name: str, plan: Plan | None, timed: Mapping[str, list[list[float]]], stats: Stats | None
) -> Timed:
    runs, bare = timed[name], timed[BARE]
    of_kind: dict[Kind, list[int]] = {}
    for step, kind in enumerate(kinds(plan, len(runs[0]))):
        of_kind.setdefault(kind, []).append(step)
    return Timed(
        name,
        plan,
        subject.cost(plan) if plan is not None else None,
        tuple(map(sum, runs)),
        Spread.of(sum(reference) / sum(run) for run, reference in zip(runs, bare, strict=True)),
        {kind: Spread.of(run[step] for run in runs for step in steps) for kind, steps in of_kind.items()},
        {
            kind: Spread.of(
                statistics.median(run[step] for step in steps) / statistics.median(reference)
                for run, reference in zip(runs, bare, strict=True)
            )
            for kind, steps in of_kind.items()
        },
        tuple(statistics.median(run[step] for run in runs) for step in range(len(runs[0]))),
        stats.peak_cache_bytes if stats is not None else 0,
    )


def document(subject: Subject, rows: Sequence[Timed], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The figures with settings, model, hardware and versions, for a JSON file."""
    parameters = sum(each.numel() for each in subject.model.parameters())
    return {
        "settings": dict(settings),
        "model": {
            "name": subject.name,
            "class": type(subject.model).__name__,
            "parameters": parameters,
            "dtype": str(subject.model.dtype).removeprefix("torch."),
            "device": str(subject.model.device),
            "rows": subject.rows,
        },
        "environment": environment(),
        "rows": [row.figures() for row in rows],
    }


def table(rows: Sequence[Timed]) -> list[str]:
    """The rows as lines of markdown; what the columns mean is said in `LEGEND`."""
    lines = [
        "| plan | schedule | fewer MACs | less time | realised | full step | skipped step | mixed step | cache, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        picture = row.plan.picture().split("\n") if row.plan else []
        cells = [
            row.name,
            f"`{picture[0]}`{' *' if len(picture) > 1 else ''}" if picture else "every step computed",
            f"{row.cost.speedup:.2f}x" if row.cost else "",
            _ratio(row.time_ratio) if row.cost else f"{row.run.median:.3f} s a run",
            f"{row.realised:.0%}" if row.cost else "",
            *(_share(row, kind) for kind in KINDS),
            _cache(row),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


LEGEND = (
    "Less time: runs of the bare model over the plan's in the same round, median (quartiles). Realised: less time over "
    "fewer MACs. Steps: share of a step of the bare model; full, skipped: every site is computed, none is. * differs "
    "from site to site. Cache: counted at the peak; where `plan.cost` predicts another figure, it stands beside it."
)


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f}x ({spread.low:.2f} to {spread.high:.2f})"


def _cache(row: Timed) -> str:
    if row.cost is None:
        return ""
    predicted = f" (predicted {row.cost.cache_bytes / 2**20:.2f})" if row.cost.cache_bytes != row.cache_bytes else ""
    return f"{row.cache_bytes / 2**20:.2f}{predicted}"


def _share(row: Timed, kind: Kind) -> str:
    if kind not in row.steps:
        return ""
    ratio = row.step_ratios[kind]
    if row.plan is None:
        return f"{row.steps[kind].median * 1e3:.2f} ms"
    return f"{ratio.median:.1%} ({100 * ratio.low:.1f} to {100 * ratio.high:.1f})"
