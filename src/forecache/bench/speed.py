"""Speed of plans on one model: latency of full, skipped and mixed steps and of whole runs, beside what MACs promise.

All plans run in alternating rounds in one process (`sampling.timing`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import torch

from forecache.bench.subjects import Subject
from forecache.environment import environment
from forecache.errors import InputError
from forecache.io.text import MIB, dtype_name
from forecache.plan.cost import Cost
from forecache.plan.plan import Plan
from forecache.runtime.apply import apply
from forecache.runtime.stats import Stats
from forecache.sampling.timing import Clock, Spread, alternate

BARE = "no cache"
Kind = Literal["full", "skipped", "mixed"]
KINDS: tuple[Kind, ...] = ("full", "skipped", "mixed")
"""Kinds of a step: every site is computed, none is, or some sites or some tokens are."""


@dataclass(frozen=True)
class PlanSpeed:
    """The speed of one plan, or of the bare model, which has neither plan nor cost.

    name: of the plan in tables.
    plan: what ran; None for the bare model.
    cost: what was predicted; None for the bare model.
    runs: latency of the whole run in every round, in seconds.
    time_ratio: latency of the bare model's run over the plan's, within a round.
    steps: latency of a step, by kind, in seconds.
    step_ratios: latency of a step over that of a step of the bare model, by kind, within a round.
    each_step: median latency of every step, in seconds.
    cache_bytes: peak of the cache, as the session counted it.
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
        """Latency of a whole run, in seconds."""
        return Spread.of(self.runs)

    def over(self, other: PlanSpeed) -> Spread:
        """Latency of its run over that of another plan's, within a round."""
        return Spread.of_ratios(self.runs, other.runs)

    @property
    def realised(self) -> float:
        """Share of the promised speed-up that was measured: time ratio over MAC ratio."""
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
    """The kind of every step of a plan; all are full without one."""
    if plan is None:
        return ["full"] * num_steps
    steps = [{cell.sign for cell in cells} for cells in zip(*plan.rows, strict=True)]
    return ["full" if signs == {"#"} else "skipped" if signs <= set(".~+") else "mixed" for signs in steps]


def measure(
    subject: Subject,
    plans: Mapping[str, Plan],
    *,
    rounds: int = 5,
    compiled: bool = False,
    on_run: Callable[[str], None] | None = None,
    on_round: Callable[[list[PlanSpeed]], None] | None = None,
) -> list[PlanSpeed]:
    """The speed of the bare model, which is the first row, and of every plan.

    In every round each plan has a session of two generations, of which the second counts: so it is for a pipeline that
    keeps its plan.

    plans: by name, all with the same number of steps. compiled: call ``model.compile()`` first. on_run: called with the
    name of the plan that starts. on_round: called after each round with the speeds over the rounds so far. Raises
    InputError for plans of different lengths or less than one round.
    """
    lengths = {plan.num_steps for plan in plans.values()}
    if len(lengths) != 1:
        raise InputError(f"Plans that are compared have one number of steps; these have {sorted(lengths)}.")
    if rounds < 1:
        raise InputError(f"At least one round is timed; {rounds} were asked for.")
    num_steps = lengths.pop()
    rows: dict[str, Plan | None] = {BARE: None, **plans}
    stats: dict[str, Stats | None] = {}
    if compiled:
        subject.model.compile()

    def second_generation(name: str) -> list[float]:
        plan, scheduler = rows[name], AnnouncingScheduler(subject)
        target = SimpleNamespace(transformer=subject.model, scheduler=scheduler)
        with apply(target, plan) if plan is not None else nullcontext() as session:
            one_run(subject, num_steps, scheduler)
            seconds = one_run(subject, num_steps, scheduler)
        stats[name] = session.stats if session is not None else None
        return seconds

    def measured(seconds: Mapping[str, Sequence[Sequence[float]]]) -> list[PlanSpeed]:
        return [_row(subject, name, plan, seconds[name], seconds[BARE], stats[name]) for name, plan in rows.items()]

    calls = {name: partial(second_generation, name) for name in rows}
    on_seconds = None if on_round is None else lambda seconds: on_round(measured(seconds))
    return measured(alternate(calls, rounds, warmup=0, on_call=on_run, on_round=on_seconds))


class AnnouncingScheduler:
    """Announces the timesteps of a run as a pipeline's scheduler does, so that no call waits for a GPU to read its own.

    timesteps: of the run that was announced last.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.timesteps: list[float] = []

    def set_timesteps(self, count: int) -> None:
        """Announces a run of ``count`` steps."""
        self.timesteps = [float(timestep[0]) for timestep in self._subject.timesteps(count)]


@torch.no_grad()
def one_run(subject: Subject, num_steps: int, scheduler: AnnouncingScheduler) -> list[float]:
    """The latency of every call of one run, in seconds; the inputs, on which it does not depend, stay the same."""
    scheduler.set_timesteps(num_steps)
    timesteps = subject.timesteps(num_steps)
    clock = Clock(subject.model.device)
    clock.mark()
    for timestep in timesteps:
        subject.model(**subject.inputs, timestep=timestep, return_dict=False)
        clock.mark()
    return clock.seconds()


def _row(
    subject: Subject,
    name: str,
    plan: Plan | None,
    runs: Sequence[Sequence[float]],
    bare: Sequence[Sequence[float]],
    stats: Stats | None,
) -> PlanSpeed:
    of_kind: dict[Kind, list[int]] = {}
    for step, kind in enumerate(kinds(plan, len(runs[0]))):
        of_kind.setdefault(kind, []).append(step)
    return PlanSpeed(
        name,
        plan,
        subject.cost(plan) if plan is not None else None,
        tuple(map(sum, runs)),
        Spread.of_ratios(map(sum, bare), map(sum, runs)),
        {kind: Spread.of(run[step] for run in runs for step in steps) for kind, steps in of_kind.items()},
        {kind: step_ratios(runs, bare, steps) for kind, steps in of_kind.items()},
        tuple(statistics.median(run[step] for run in runs) for step in range(len(runs[0]))),
        stats.peak_cache_bytes if stats is not None else 0,
    )


def step_ratios(runs: Sequence[Sequence[float]], bare: Sequence[Sequence[float]], steps: Sequence[int]) -> Spread:
    """The latency of some steps over that of a step of the bare model, medians within each round.

    runs, bare: seconds of every step, one sequence for each round.
    """
    medians = [statistics.median(run[step] for step in steps) for run in runs]
    return Spread.of_ratios(medians, map(statistics.median, bare))


def document(subject: Subject, rows: Sequence[PlanSpeed], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The rows with settings, model, hardware and versions, for a JSON file."""
    parameters = sum(parameter.numel() for parameter in subject.model.parameters())
    return {
        "settings": dict(settings),
        "model": {
            "name": subject.name,
            "class": type(subject.model).__name__,
            "parameters": parameters,
            "dtype": dtype_name(subject.model.dtype),
            "device": str(subject.model.device),
            "rows": subject.rows,
        },
        "environment": environment(),
        "rows": [row.figures() for row in rows],
    }


def table(rows: Sequence[PlanSpeed]) -> list[str]:
    """The rows as lines of a markdown table, whose columns `LEGEND` explains."""
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
    "Less time: latency of the bare model's run over the plan's in the same round, median (quartiles). Realised: less "
    "time over fewer MACs. Steps: share of a step of the bare model; full: every site is computed, skipped: none is. "
    "*: the schedule differs between sites. Cache: counted at the peak; another prediction of `plan.cost` is in "
    "brackets."
)


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f}x ({spread.low:.2f} to {spread.high:.2f})"


def _cache(row: PlanSpeed) -> str:
    if row.cost is None:
        return ""
    predicted = f" (predicted {row.cost.cache_bytes / MIB:.2f})" if row.cost.cache_bytes != row.cache_bytes else ""
    return f"{row.cache_bytes / MIB:.2f}{predicted}"


def _share(row: PlanSpeed, kind: Kind) -> str:
    if kind not in row.steps:
        return ""
    ratio = row.step_ratios[kind]
    if row.plan is None:
        return f"{row.steps[kind].median * 1e3:.2f} ms"
    return f"{ratio.median:.1%} ({100 * ratio.low:.1f} to {100 * ratio.high:.1f})"
