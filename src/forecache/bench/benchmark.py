"""A benchmark: presets and plan files timed on one model, with the record of how they were timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forecache.bench import speed
from forecache.bench.subjects import Subject, open_subject, preset
from forecache.environment import environment
from forecache.io import files
from forecache.models.levels import FINEST, AskedSites
from forecache.plan.plan import Plan

DEFAULT_PRESETS = ("all-computed", "fora-25", "fora-50", "fora-75", "goc-50", "taylor-50")
"""Timed where neither presets nor plans are named."""


@dataclass(frozen=True)
class Setup:
    """The settings of a benchmark.

    presets: names of `subjects.PRESETS`.
    plans: plans by name; they have one number of steps.
    steps: sampling steps. None: those of the plans, else 20.
    batch: images in a model call.
    guidance: two samples an image, as classifier-free guidance needs.
    rounds: timed rounds.
    compiled: compile the model with torch first.
    asked: what sites are, for presets.
    """

    presets: Sequence[str] = ()
    plans: Mapping[str, Plan] | None = None
    steps: int | None = None
    batch: int = 1
    guidance: bool = True
    rounds: int = 5
    compiled: bool = False
    asked: AskedSites = FINEST

    @property
    def num_steps(self) -> int:
        """The number of sampling steps."""
        return self.steps or next((plan.num_steps for plan in (self.plans or {}).values()), 20)

    def open(self, model: str, device: str = "auto", dtype: str = "auto") -> Subject:
        """The model to time, with the inputs of one call."""
        return open_subject(model, self.batch * (2 if self.guidance else 1), device, dtype)

    def all_plans(self, subject: Subject) -> dict[str, Plan]:
        """Every plan to time, by name. Raises InputError for an unknown preset."""
        plans, grid = dict(self.plans or {}), subject.grid(self.num_steps, self.asked)
        names = self.presets or (() if plans else DEFAULT_PRESETS)
        return {name: preset(name, self.num_steps).plan(grid) for name in names} | plans


@dataclass(frozen=True)
class Benchmark:
    """A finished benchmark.

    title: model, settings and hardware in one line.
    rows: the bare model first, then every plan.
    document: the rows with settings, model, hardware and versions, for JSON.
    """

    title: str
    rows: Sequence[speed.PlanSpeed]
    document: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Write bench.json and bench.md."""
        files.write_json(folder / "bench.json", self.document)
        lines = [*speed.table(self.rows), "", f"{self.title}. {speed.LEGEND}"]
        files.write(folder / "bench.md", "\n".join(lines) + "\n")


def run(
    subject: Subject,
    plans: Mapping[str, Plan],
    setup: Setup,
    *,
    command: str = "",
    on_run: Callable[[str], None] | None = None,
    on_round: Callable[[Benchmark], None] | None = None,
) -> Benchmark:
    """Time the bare model and the plans in turn.

    on_run: called with the name of a plan before each of its runs. on_round: called after each round with the benchmark
    of the rounds so far.
    """
    settings = {
        "command": command, "steps": setup.num_steps, "batch": setup.batch, "guidance": setup.guidance,
        "compiled": setup.compiled, **({"sites": setup.asked.words} if setup.asked.words else {}),
    }  # fmt: skip

    def benchmark(rows: Sequence[speed.PlanSpeed]) -> Benchmark:
        rounds = rows[0].run.count
        title = _title(subject, setup, rounds)
        return Benchmark(title, rows, speed.document(subject, rows, settings | {"rounds": rounds}))

    on_rows = None if on_round is None else lambda rows: on_round(benchmark(rows))
    options = {"rounds": setup.rounds, "compiled": setup.compiled, "on_run": on_run, "on_round": on_rows}
    return benchmark(speed.measure(subject, plans, **options))


def _title(subject: Subject, setup: Setup, rounds: int) -> str:
    machine = environment()
    hardware = machine["gpu"]
    if subject.model.device.type != "cuda":
        hardware = f"{machine['cpu']}, {machine['threads']} threads"
    return f"{subject.name}, {setup.num_steps} steps, {subject.rows} samples a call, {rounds} rounds, {hardware}"
