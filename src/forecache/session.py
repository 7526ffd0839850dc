"""A session: the runs of one plan on one model. All mutable state lives here, and leaves with it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from forecache._errors import AlreadyAppliedError, PlanError, RunError
from forecache.adapters import Layout, Streams, find, is_mounted, layout_for, mounted, optimized, replaced
from forecache.generations import Generations, Lane
from forecache.graphs import Borrowed, Place, Pure, graphs
from forecache.history import Lent, Made
from forecache.placed import Placed
from forecache.plan import Plan
from forecache.program import Program
from forecache.tally import Stats

COMPILE_FIRST = (
    "a model that samples by a plan keeps books between its steps: call torch.compile(model, fullgraph=True) before "
    "forecache.apply and give apply what it returned, or leave fullgraph out"
)
"""What a compiler is told that meets a session's forward and must not break its graph there."""


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
        optimized: nn.Module | None = None,
        cache_dtype: torch.dtype | None = None,
        cache_device: torch.device | None = None,
        max_cache_bytes: int | None = None,
    ) -> None:
        self.plan = plan
        self._layout = layout
        self._scheduler = scheduler
        self._optimized = optimized
        self._cache_dtype = cache_dtype
        layout.check_tokens(plan.rows)
        self._program = Program(layout, plan)
        placed = Placed(plan.constants, cache_dtype, cache_device)
        self._generations = Generations(layout, plan, self._program, placed, scheduler, max_cache_bytes)
        self._local = self._generations.local
        self._graphs = graphs(layout)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        model = self._layout.model
        if any(is_mounted(module) for module in model.modules()):
            raise AlreadyAppliedError(
                f"This {type(model).__name__} already samples by a plan: leave its `with forecache.apply(...)` block "
                "before applying another."
            )
        inside = [(module, self._inside(each)) for module, each in self._layout.forwards(self._value, self._collapse)]
        with ExitStack() as stack:
            stack.enter_context(mounted([*inside, (model, self._around(model.forward))]))
            if self._optimized is not None:
                stack.enter_context(mounted([(self._optimized, self._compiled(self._optimized, model))]))
            if self._scheduler is not None:
                watch = self._generations.watch(self._scheduler.set_timesteps)
                stack.enter_context(replaced(self._scheduler, "set_timesteps", watch))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        generations = self._generations
        short = [lane for run in generations.threads for lane in run.lanes.values() if generations.is_short(lane)]
        for run in generations.threads:
            run.drop()
        if kind is None and short:
            raise generations.too_short(short[0])

    @property
    def stats(self) -> Stats:
        """What has been done so far, over all threads."""
        runs = list(self._generations.threads)
        calls, computed = sum(run.calls for run in runs), sum(run.computed for run in runs)
        partial = sum(run.partial for run in runs)
        skipped = calls * len(self._program.rows) - computed - partial
        peak = max((run.meter.peak for run in runs), default=0)
        return Stats(sum(run.generations for run in runs), calls, computed, skipped, peak, partial)

    def new_run(self) -> None:
        """The next model call of this thread starts a new generation; what the last one kept is dropped."""
        self._generations.running().drop()

    @contextmanager
    def lane(self, name: str) -> Iterator[None]:
        """Model calls in this block have a history of their own, for pipelines that call the model twice a step.

        with session.lane("uncond"):
            uncond = model(x, t, null_label)
        """
        run = self._generations.running()
        before, run.lane = run.lane, name
        try:
            yield
        finally:
            run.lane = before

    def _value(self, site: int, compute: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor:
        past = self._local.current
        if past is None:
            raise RunError("A block was called outside of its model: sample through the model that the plan is on.")
        return past.value(site, compute, args, kwargs)

    def _collapse(
        self, block: int, streams: Streams, args: Sequence[Any], kwargs: Mapping[str, Any], /
    ) -> Streams | None:
        """What a block hands on that is skipped as a whole: the first of a run of them speaks for all."""
        past = self._local.current
        return None if past is None else past.collapsed(block, streams, args, kwargs)

    def _around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The model's forward as one step of the plan."""
        place = Place(self._local, self._layout, self._program.gates, self._cache_dtype)
        disable: Callable[..., Any] = torch.compiler.disable
        begin, end, fail = disable(self._lend), disable(self._take), disable(self._fail)

        def step(*args: Any, **kwargs: Any) -> Any:
            """Of all that is called here, the compiler sees one function."""
            run, lent = begin(args, kwargs)
            try:
                output, made = run(place, forward, args, kwargs, lent)
                end(made)
            except BaseException:
                fail()
                raise
            return output

        pure = disable(step, recursive=False, reason=COMPILE_FIRST)

        def eager(*args: Any, **kwargs: Any) -> Any:
            history = self._begin(args, kwargs).history
            self._local.current = history
            try:
                output = forward(*args, **kwargs)
                self._end(history.missed())
            except BaseException:
                self._fail()
                raise
            finally:
                self._local.current = None
            return output

        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or self._local.compiler is not None:
                return pure(*args, **kwargs)
            return eager(*args, **kwargs)

        return call

    def _inside(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A site's or block's forward, which a compiler sees as a part of a step or not at all."""
        hidden = torch.compiler.disable(forward, reason="forecache: compile the whole model, not its blocks")

        @functools.wraps(forward)
        def inside(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() and not isinstance(self._local.current, Borrowed):
                return hidden(*args, **kwargs)
            return forward(*args, **kwargs)

        return inside

    def _compiled(self, optimized: Any, model: nn.Module) -> Callable[..., Any]:
        """The forward of what torch.compile(model) gave: the model's own call, with steps compiled as that was."""

        @functools.wraps(optimized.forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            before, self._local.compiler = self._local.compiler, optimized.dynamo_ctx
            try:
                return model(*args, **kwargs)
            finally:
                self._local.compiler = before

        return call

    def _begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Lane:
        generations = self._generations
        lane = self._local.lane = generations.begin(generations.running(), args, kwargs)
        lane.history.begin(self._program.steps[lane.step], lane.inputs[0] if lane.inputs else None)
        return lane

    def _lend(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Pure, Lent]:
        """The step of this call as a pure function, compiled if that is our part, and what it reads."""
        lane = self._begin(args, kwargs)
        run = self._graphs.of(lane.step, self._program.steps[lane.step], self._local.compiler)
        return run, lane.history.lend()

    def _take(self, made: Made) -> None:
        self._end(made.missed)
        assert self._local.lane is not None
        self._local.lane.history.take(made)
        self._local.lane = None

    def _end(self, missed: int | None) -> None:
        if missed is not None:
            raise RunError(
                f"{self.plan.grid.sites[missed].name} did not run in this model call: a site must run once in every "
                "call; choose other sites."
            )
        run, lane = self._generations.running(), self._local.lane
        assert lane is not None
        step = self._program.steps[lane.step]
        run.calls += 1
        run.computed += step.computed
        run.partial += step.partial
        lane.step += 1

    def _fail(self) -> None:
        """Nothing of a generation outlives an exception."""
        self._local.current = self._local.lane = None
        self._generations.running().drop()


def apply(
    target: Any,
    plan: Plan,
    *,
    cache_dtype: torch.dtype | None = None,
    cache_device: str | torch.device | None = None,
    max_cache_bytes: int | None = None,
) -> Session:
    """A session in which ``target`` samples by ``plan``: ``with forecache.apply(pipe, plan) as session: ...``

    target: a diffusers pipeline, a diffusers transformer, what torch.compile gave for one, or any module that has the
    plan's sites. cache_dtype: keep features in this dtype, such as torch.bfloat16 for a float32 model; half the bytes,
    rounded. cache_device: keep them there, such as "cpu" beside a GPU that is full; they are brought back one ahead of
    their use. max_cache_bytes: a generation whose plan needs more is refused before its first model call.

    Raises PlanMismatchError for a plan of another model, AlreadyAppliedError for a second session on the model;
    in the block, StepCountError for a run that is longer or shorter than the plan, CacheBudgetError for one over the
    budget.
    """
    if cache_dtype is not None and not cache_dtype.is_floating_point:
        raise PlanError(f"Features are kept in a floating point dtype, such as torch.bfloat16, not {cache_dtype}.")
    scheduler = getattr(target, "scheduler", None)
    return Session(
        layout_for(find(target), plan.grid),
        plan,
        scheduler if callable(getattr(scheduler, "set_timesteps", None)) else None,
        optimized=optimized(target),
        cache_dtype=cache_dtype,
        cache_device=_device(cache_device),
        max_cache_bytes=max_cache_bytes,
    )


def _device(name: str | torch.device | None) -> torch.device | None:
    """The device of this name, as tensors that lie there have it; PlanError where there is none."""
    if name is None:
        return None
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise PlanError(f"Features cannot be kept on the device {str(name)!r}: {str(error).splitlines()[0]}") from error
