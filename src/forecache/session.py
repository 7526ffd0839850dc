"""A session: the runs of one plan on one model. All mutable state lives here, and leaves with it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from forecache import _modelcall
from forecache._errors import AlreadyAppliedError, PlanError, RunError, StepCountError
from forecache._modelcall import Inputs
from forecache.adapters import Arguments, Layout, Streams, find, is_mounted, layout_for, mounted, replaced
from forecache.history import History, Meter, Placed
from forecache.plan import Plan
from forecache.program import INSIDE, Budget, Program
from forecache.tally import Stats


@dataclass
class _Lane:
    """One generation in one lane: how far it is, and what it keeps."""

    history: History
    inputs: Inputs | None
    step: int = 0
    first_timestep: float | None = None
    timestep: float | None = None
    length_known: bool = False


@dataclass
class _Run:
    """The state of one thread: its lanes, and what it has done."""

    lanes: dict[str, _Lane] = field(default_factory=dict)
    lane: str = "default"
    current: _Lane | None = None
    timesteps: list[float] | None = None
    checked: set[str] = field(default_factory=set)
    meter: Meter = field(default_factory=Meter)
    generations: int = 0
    calls: int = 0
    computed: int = 0
    partial: int = 0


class Session:
    """``with apply(model, plan) as session:`` - the model samples by the plan inside the block, and as before after it.

    A generation is noticed and started clean by itself: when a pipeline sets its scheduler's timesteps, when the
    timestep goes up, when shape, dtype or device change, or by `new_run`. Every thread has its own state.
    """

    def __init__(
        self,
        layout: Layout,
        plan: Plan,
        scheduler: Any = None,
        *,
        cache_dtype: torch.dtype | None = None,
        max_cache_bytes: int | None = None,
    ) -> None:
        self.plan = plan
        self._budget = Budget(max_cache_bytes, cache_dtype) if max_cache_bytes is not None else None
        self._layout = layout
        self._scheduler = scheduler
        layout.check_tokens(plan.rows)
        self._program = Program(layout, plan)
        self._placed = Placed(plan.constants, cache_dtype)
        self._timestep = _modelcall.timestep_of(layout.model.forward)
        self._local = threading.local()
        self._runs: list[_Run] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        model = self._layout.model
        if any(is_mounted(module) for module in model.modules()):
            raise AlreadyAppliedError(
                f"This {type(model).__name__} already samples by a plan: leave its `with forecache.apply(...)` block "
                "before applying another."
            )
        with ExitStack() as stack:
            stack.enter_context(
                mounted([*self._layout.forwards(self._value, self._collapse), (model, self._around(model.forward))])
            )
            if self._scheduler is not None:
                watch = self._watch(self._scheduler.set_timesteps)
                stack.enter_context(replaced(self._scheduler, "set_timesteps", watch))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        short = [lane for run in self._runs for lane in run.lanes.values() if self._is_short(lane)]
        for run in self._runs:
            _drop(run)
        if kind is None and short:
            raise self._too_short(short[0])

    @property
    def stats(self) -> Stats:
        """What has been done so far, over all threads."""
        runs = list(self._runs)
        calls, computed = sum(run.calls for run in runs), sum(run.computed for run in runs)
        partial = sum(run.partial for run in runs)
        skipped = calls * len(self._program.rows) - computed - partial
        peak = max((run.meter.peak for run in runs), default=0)
        return Stats(sum(run.generations for run in runs), calls, computed, skipped, peak, partial)

    def new_run(self) -> None:
        """The next model call of this thread starts a new generation; what the last one kept is dropped."""
        _drop(self._run())

    @contextmanager
    def lane(self, name: str) -> Iterator[None]:
        """Model calls in this block have a history of their own, for pipelines that call the model twice a step.

        with session.lane("uncond"):
            uncond = model(x, t, null_label)
        """
        run = self._run()
        before, run.lane = run.lane, name
        try:
            yield
        finally:
            run.lane = before

    def _run(self) -> _Run:
        run = getattr(self._local, "run", None)
        if run is None:
            run = self._local.run = _Run()
            self._runs.append(run)
        return run

    def _value(self, site: int, compute: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor:
        lane = self._run().current
        if lane is None:
            raise RunError("A block was called outside of its model: sample through the model that the plan is on.")
        return lane.history.value(site, compute, args, kwargs)

    def _collapse(
        self, block: int, streams: Streams, args: Sequence[Any], kwargs: Mapping[str, Any], /
    ) -> Streams | None:
        """What a block hands on that is skipped as a whole: the first of a run of them speaks for all."""
        lane = self._run().current
        found = self._program.steps[lane.step].runs[block] if lane is not None else None
        if lane is None or found is None:
            return None
        if found is INSIDE:
            return streams
        gates = self._program.gates[found.blocks](*args, **kwargs)
        return lane.history.collapsed(found, streams, gates)

    def _around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The model's forward as one step of the plan."""

        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            run = self._run()
            lane = run.current = self._begin(run, args, kwargs)
            step = self._program.steps[lane.step]
            lane.history.begin(step.ops, lane.inputs[0] if lane.inputs else None)
            try:
                output = forward(*args, **kwargs)
                if (missed := lane.history.missed()) is not None:
                    raise RunError(
                        f"{self.plan.grid.sites[missed].name} did not run in this model call: a site must run once in "
                        "every call; choose other sites."
                    )
            except BaseException:
                _drop(run)
                raise
            finally:
                run.current = None
            run.calls += 1
            run.computed += step.computed
            run.partial += step.partial
            lane.step += 1
            return output

        return call

    def _begin(self, run: _Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Lane:
        """The lane of this call, at the step that the call is; a new generation starts with an empty history."""
        timestep = self._timestep(args, kwargs)
        inputs = _modelcall.inputs(args, kwargs)
        lane = run.lanes.get(run.lane)
        if lane is not None and not self._goes_on(lane, inputs, timestep):
            if self._is_short(lane):
                _drop(run)
                raise self._too_short(lane)
            lane.history.clear()
            lane = None
        if lane is None:
            if self._budget is not None:
                self._budget.check(self._layout.model, self._program, self.plan.grid, Arguments(args, kwargs))
            self._program.refresh()
            history = History(self._layout, self._program.rows, run.meter, self._placed)
            lane = run.lanes[run.lane] = _Lane(history, inputs, first_timestep=timestep)
            lane.length_known = self._check_length(run, timestep)
            run.generations += run.lane == next(iter(run.lanes))
        lane.timestep = timestep
        return lane

    def _goes_on(self, lane: _Lane, inputs: Inputs | None, timestep: float | None) -> bool:
        if lane.inputs != inputs:
            return False
        done = lane.step == self.plan.num_steps
        if timestep is None or lane.timestep is None or lane.first_timestep is None:
            return not done
        if timestep > lane.timestep or (done and timestep == lane.first_timestep):
            return False
        if done:
            raise StepCountError(
                f"The plan has {self.plan.num_steps} steps, and this run makes one more model call (timestep "
                f"{timestep:g}): make the plan for this run's number of calls, "
                "method.plan(forecache.grid(model, num_steps=...)). If the model is called several times a step, "
                "name the calls with session.lane(name)."
            )
        return True

    def _check_length(self, run: _Run, timestep: float | None) -> bool:
        """Whether a watched scheduler has told the number of calls of this generation; an error if it is not ours."""
        timesteps = run.timesteps
        if timesteps is None or run.lane in run.checked:
            return False
        run.checked.add(run.lane)  # the scheduler spoke of one generation
        if timestep is not None and timestep in timesteps:
            timesteps = timesteps[timesteps.index(timestep) :]  # image-to-image starts in the middle
        if len(timesteps) != self.plan.num_steps:
            raise StepCountError(
                f"The plan has {self.plan.num_steps} steps, but the pipeline is going to call the model "
                f"{len(timesteps)} times: make the plan with forecache.grid(pipe, num_steps={len(timesteps)}), or "
                f"sample with num_inference_steps={self.plan.num_steps}."
            )
        return True

    def _is_short(self, lane: _Lane) -> bool:
        """Stopped in the middle, and nobody told how long it should have been."""
        return 0 < lane.step < self.plan.num_steps and not lane.length_known

    def _too_short(self, lane: _Lane) -> StepCountError:
        return StepCountError(
            f"The last run made {lane.step} model calls, the plan has {self.plan.num_steps} steps: make the plan with "
            f"forecache.grid(model, num_steps={lane.step}). If the run was stopped on purpose, call session.new_run()."
        )

    def _watch(self, set_timesteps: Callable[..., Any]) -> Callable[..., Any]:
        """The scheduler's set_timesteps, which every pipeline calls when a generation starts."""

        @functools.wraps(set_timesteps)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = set_timesteps(*args, **kwargs)
            run = self._run()
            _drop(run)
            run.timesteps = [float(each) for each in self._scheduler.timesteps]
            run.checked.clear()
            return result

        return watched


def apply(
    target: Any, plan: Plan, *, cache_dtype: torch.dtype | None = None, max_cache_bytes: int | None = None
) -> Session:
    """A session in which ``target`` samples by ``plan``: ``with forecache.apply(pipe, plan) as session: ...``

    target: a diffusers pipeline, a diffusers transformer, or any module that has the plan's sites. cache_dtype: keep
    features in this dtype, such as torch.bfloat16 for a float32 model; half the bytes, rounded. max_cache_bytes: a
    generation whose plan needs more is refused before its first model call.

    Raises PlanMismatchError for a plan of another model, AlreadyAppliedError for a second session on the model;
    in the block, StepCountError for a run that is longer or shorter than the plan, CacheBudgetError for one over the
    budget.
    """
    if cache_dtype is not None and not cache_dtype.is_floating_point:
        raise PlanError(f"Features are kept in a floating point dtype, such as torch.bfloat16, not {cache_dtype}.")
    scheduler = getattr(target, "scheduler", None)
    watched = scheduler if callable(getattr(scheduler, "set_timesteps", None)) else None
    layout = layout_for(find(target), plan.grid)
    return Session(layout, plan, watched, cache_dtype=cache_dtype, max_cache_bytes=max_cache_bytes)


def _drop(run: _Run) -> None:
    for lane in run.lanes.values():
        lane.history.clear()
    run.lanes.clear()
