"""Lanes: one generation in one lane of one thread, its progress and what it keeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from forecache.plan.ops import Op
from forecache.plan.plan import Plan
from forecache.runtime.cache import FeatureCache
from forecache.runtime.calls import NOTHING, Call, CallSignature, LastSample, Told
from forecache.runtime.deciding import Deciding
from forecache.runtime.drift import Drift, computed_from
from forecache.runtime.executable import Executable
from forecache.runtime.executor import StepExecutor
from forecache.runtime.per_sample import Samples
from forecache.runtime.run import Announced, Run
from forecache.runtime.stats import Record
from forecache.runtime.storage import CacheMeter

UNNAMED = "default"
"""The lane of calls that nothing names."""


@dataclass(eq=False)
class Lane:
    """One generation in one lane: its progress, and what it keeps.

    executable: the steps of the generation.
    executor: runs them.
    cache: the kept features.
    signature: signature of its calls.
    run: the calls of the generation.
    is_announced: whether a scheduler announced how many they are.
    cache_bytes: peak memory of the generation, in bytes, where there is a budget; else 0.
    first_timestep, timestep: timesteps of the first and the last call; None if unknown.
    doubtful: calls just before the first one that may belong to the same run, and may be a run that was stopped.
    step: number of the next step.
    computed: the steps so far at which every site was computed.
    last_sample: sample of the last call; None before the first.
    record: of the generation that the lane belongs to; None for a call that is no step of one.
    deciding: the steps of a plan that decides while it runs; None for any other.
    leader: the lane that decides for this one; None for a lane that decides itself.
    samples: the samples that decide each for itself, from the second call on; None where the lane decides for all.
    drift: how far the generation has left what was calibrated; None where nothing limits it.
    inside: shapes of the tensors that the first site or block is called with; None before the first call.
    """

    executable: Executable
    executor: StepExecutor
    cache: FeatureCache
    signature: CallSignature
    run: Run
    is_announced: bool
    cache_bytes: int
    first_timestep: float | None
    timestep: float | None = None
    doubtful: int = 0
    step: int = 0
    computed: list[int] = field(default_factory=list)
    last_sample: LastSample | None = None
    record: Record | None = None
    deciding: Deciding | None = None
    leader: Lane | None = None
    samples: Samples | None = None
    drift: Drift | None = None
    inside: Sequence[torch.Size] | None = None

    @property
    def plan(self) -> Plan:
        """The plan of the generation, with what was decided so far."""
        plan = self.executable.plan if self.deciding is None else self.deciding.plan
        return plan if self.left_at is None or self.step < self.left_at else computed_from(plan, self.left_at)

    @property
    def rows(self) -> Sequence[tuple[Op, ...]]:
        """The operations of the generation, or of its steps so far where these are decided while it runs."""
        rows = self.executable.rows if self.deciding is None else self.deciding.rows
        if self.left_at is None or self.step < self.left_at:
            return rows
        return [(*row[: self.left_at], *[Op()] * (self.num_steps - self.left_at)) for row in rows]

    @property
    def left_at(self) -> int | None:
        """The step from which all is computed, because the generation has left what was calibrated; None for none."""
        if self.drift is None or self.drift.computed_from is None:
            return None
        return max(0, self.drift.computed_from - self.run.indices.start)

    @property
    def looks(self) -> Mapping[int, Sequence[Op]]:
        """The operations of estimates beside computed steps, by step."""
        return self.executable.looks

    @property
    def num_steps(self) -> int:
        """Model calls of the generation."""
        return self.executable.num_steps

    @property
    def is_done(self) -> bool:
        """Whether no step is left."""
        return self.step == self.num_steps

    @property
    def is_complete(self) -> bool:
        """Whether its run may be over: no step is left, or as many as calls before it are doubtful."""
        return self.step in (self.num_steps, self.num_steps - self.doubtful)

    @property
    def is_short(self) -> bool:
        """Whether it stopped in the middle, and no scheduler announced how long it should have been."""
        return self.step > 0 and not self.is_complete and not self.is_announced

    def clear(self) -> None:
        """Drop the kept features, scores and ages."""
        self.cache.clear()
        if self.samples is not None:
            self.samples.clear()
        self.executor.chooser.clear()


@dataclass(eq=False)
class ThreadState:
    """The lanes of one thread, or of one request that a host has begun.

    rising: whether the time of the model goes up while it samples.
    lanes: by name.
    lane: name of the lane that model calls belong to now.
    run: the model's calls in the run, where a host says which step a call is; None where calls are told apart here.
    step: number of the step, in the whole run, that the next call is; None for the one after the last of its lane.
    announced: gives the run from the timestep of its first call; None if no host announced one.
    told: what the host tells of the next call.
    is_keyed: whether the run has a key of its host's.
    unnamed_turn: timestep of the last call that nothing named, and the number of calls at it before.
    meter: counts the bytes of all lanes.
    payback: the correction in hindsight of the run; None before its first step, and where there is none.
    look_bytes: bytes of estimates that wait for the scheduler's step.
    thread: the thread.
    """

    rising: bool = False
    lanes: dict[str, Lane] = field(default_factory=dict)
    lane: str = UNNAMED
    run: Run | None = None
    step: int | None = None
    announced: Announced | None = None
    told: Told = NOTHING
    is_keyed: bool = False
    unnamed_turn: tuple[float | None, int] = (None, -1)
    meter: CacheMeter = field(default_factory=CacheMeter)
    payback: Any = None
    look_bytes: int = 0
    thread: threading.Thread = field(default_factory=threading.current_thread)

    def drop(self) -> None:
        """Drop every lane."""
        for lane in self.lanes.values():
            lane.clear()
        self.lanes.clear()
        self.payback = None
        self.forget_looks()
        self.unnamed_turn = (None, -1)

    def hold_look(self, size: int) -> None:
        """Count the bytes of an estimate that waits for the scheduler's step."""
        self.look_bytes += size
        self.meter.held += size
        self.meter.peak = max(self.meter.peak, self.meter.held)

    def forget_looks(self) -> None:
        """Count no estimates any more."""
        self.meter.held -= self.look_bytes
        self.look_bytes = 0

    def begin(self, known: Run | Announced | None) -> None:
        """Start a new generation, of which this is known; see `forecache.runtime.host.Runs.begin`."""
        self.drop()
        is_run = isinstance(known, Run)
        self.run, self.step, self.announced = known if is_run else None, None, None if is_run else known

    def is_before(self, timestep: float, other: float) -> bool:
        """Whether a run comes to one timestep before it comes to the other."""
        return timestep < other if self.rising else timestep > other


class Local(threading.local):
    """Thread-local state of a session on one model.

    state: lanes of the thread; None before its first call.
    executor: executor of the model call in progress; None outside of one.
    call: the model call in progress.
    lane: lane of the model call in progress.
    compiler: compiles the steps of the call in progress; None where they run eagerly.
    hosted: blocks in progress, one inside another, in which the calls of this thread are a host's.
    is_bare: whether the call in progress runs without the plan.
    """

    state: ThreadState | None = None
    executor: StepExecutor | None = None
    call: Call | None = None
    lane: Lane | None = None
    compiler: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    hosted: int = 0
    is_bare: bool = False
