"""A session: the runs of one plan on one model. All mutable state lives here, and leaves with it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from forecache._errors import AlreadyAppliedError, RunError
from forecache.adapters import Layout, Streams, is_mounted, mounted, replaced
from forecache.course import Courses, Keeping
from forecache.ends import Ends, calls_of
from forecache.generations import Generations, Lane, Local
from forecache.graphs import Borrowed, Place, Pure
from forecache.history import Lent, Made
from forecache.plan import Plan
from forecache.tally import Stats, Tally

COMPILE_FIRST = (
    "a model that samples by a plan keeps books between its steps: call torch.compile(model, fullgraph=True) before "
    "forecache.apply and give apply what it returned, or leave fullgraph out"
)
"""What a compiler is told that meets a session's forward and must not break its graph there."""


_OPEN: WeakKeyDictionary[nn.Module, list[Session]] = WeakKeyDictionary()
"""The sessions that are open, by the model that they are on."""


class Session:
    """``with apply(model, plan) as session:`` - the model samples by the plan inside the block, and as before after it.

    A generation is noticed and started clean by itself: when a pipeline is called or sets its scheduler's timesteps,
    when the timestep goes up, when shape, dtype or device change, or by `new_run`. Every thread has its own state. A
    session on a pipeline is for the calls of that pipeline: another one with the same transformer samples as before.
    """

    def __init__(
        self,
        layout: Layout,
        plan: Plan,
        ends: Ends = Ends(),  # noqa: B008 - it is frozen
        keeping: Keeping = Keeping(),  # noqa: B008
        *,
        max_error: float | None = None,
        resample: bool = False,
    ) -> None:
        self.plan = plan
        self._layout = layout
        self._ends = ends
        self._local = Local()
        self._tally = Tally()
        self._courses = Courses(layout, plan, self._local, keeping, max_error, resample)
        self._generations = Generations(layout, self._courses, self._local, self._tally, ends)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._check_free()
        ends, model = self._ends, self._layout.model
        inside = [(each, self._inside(each, run)) for each, run in self._layout.forwards(self._value, self._collapse)]
        with ExitStack() as stack:
            stack.enter_context(mounted([*inside, (model, self._around(model.forward))]))
            if ends.optimized is not None:
                stack.enter_context(mounted([(ends.optimized, self._compiled(ends.optimized, model))]))
            if ends.scheduler is not None:
                watch = self._generations.watch(ends.scheduler.set_timesteps, self._is_ours)
                stack.enter_context(replaced(ends.scheduler, "set_timesteps", watch))
            if callable(named := getattr(model, "cache_context", None)):
                stack.enter_context(replaced(model, "cache_context", self._named(named)))
            if ends.pipe is not None:
                stack.enter_context(calls_of(ends.pipe, self._generation))
            opened = _OPEN.setdefault(model, [])
            opened.append(self)
            stack.callback(opened.remove, self)
            self._stack = stack.pop_all()
        return self

    def _check_free(self) -> None:
        """Only sessions on pipelines share a model, one each."""
        model, pipe = self._layout.model, self._ends.pipe
        others = [each._ends.pipe for each in _OPEN.get(model, [])]
        apart = pipe is not None and all(each is not None and each is not pipe for each in others)
        if (others and not apart) or (not others and any(map(is_mounted, model.modules()))):
            raise AlreadyAppliedError(
                f"This {type(model).__name__} already samples by a plan: leave its `with forecache.apply(...)` block, "
                "or call forecache.disable, before applying another."
            )

    def close(self) -> None:
        """The model is as it was, and what was kept is dropped. Raises StepCountError if a run stopped too early."""
        self._leave()
        if (stopped := self._generations.stopped) is not None:
            raise self._generations.too_short(stopped)

    def _leave(self) -> None:
        self._stack.close()
        for run in list(self._generations.threads):
            self._generations.drop(run)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._leave()
            return
        self.close()
        if self._tally.elsewhere and not self._tally.calls:
            raise RunError(
                f"The plan is on a {type(self._ends.pipe).__name__}, and its transformer was called "
                f"{self._tally.elsewhere} times in this block, but never by that pipeline, so the plan did nothing: "
                "call the pipeline, or apply the plan to the transformer itself, forecache.apply(pipe.transformer, "
                "plan), for a loop of your own."
            )

    @property
    def stats(self) -> Stats:
        """What has been done so far, over all threads."""
        return self._tally.stats(len(self.plan.grid.sites))

    @contextmanager
    def _generation(self) -> Iterator[None]:
        """One call of the pipeline: nothing is kept from before it, and nothing after it."""
        run = self._generations.running()
        run.announce(None)
        self._local.calling += 1
        try:
            yield
            short = [lane for lane in run.lanes.values() if self._generations.is_short(lane)]
        finally:
            self._local.calling -= 1
            run.announce(None)
        if short:
            raise self._generations.too_short(short[0])

    def _is_ours(self) -> bool:
        """Whether what is called now, in this thread, is called for what the plan is on."""
        return self._ends.pipe is None or self._local.calling > 0

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

    def _named(self, cache_context: Callable[..., Any]) -> Callable[..., Any]:
        """diffusers' own name for the calls of a step, for which the pipelines that make several open it."""

        @functools.wraps(cache_context)
        @contextmanager
        def named(name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
            with cache_context(name, *args, **kwargs) as given:
                if self._is_ours():
                    with self.lane(name):
                        yield given
                else:
                    yield given

        return named

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
        disable: Callable[..., Any] = torch.compiler.disable
        begin, end, fail = disable(self._lend), disable(self._take), disable(self._fail)

        def step(*args: Any, **kwargs: Any) -> Any:
            """Of all that is called here, the compiler sees one function."""
            run, place, lent = begin(args, kwargs)
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
            if not self._is_ours():
                self._tally.elsewhere += 1
                return forward(*args, **kwargs)
            if torch.compiler.is_compiling() or self._local.compiler is not None:
                return pure(*args, **kwargs)
            return eager(*args, **kwargs)

        return call

    def _inside(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A site's or block's forward, which a compiler sees as a part of a step or not at all."""
        below, shared = module.forward, self._ends.pipe is not None
        hidden = torch.compiler.disable(forward, reason="forecache: compile the whole model, not its blocks")

        @functools.wraps(forward)
        def inside(*args: Any, **kwargs: Any) -> Any:
            if shared and self._local.current is None:
                return below(*args, **kwargs)
            if torch.compiler.is_compiling() and not isinstance(self._local.current, Borrowed):
                return hidden(*args, **kwargs)
            return forward(*args, **kwargs)

        return inside

    def _compiled(self, optimized: Any, model: nn.Module) -> Callable[..., Any]:
        """The forward of what torch.compile(model) gave: the model's own call, with steps compiled as that was."""

        below = optimized.forward

        @functools.wraps(below)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._is_ours():
                self._tally.elsewhere += 1
                return below(*args, **kwargs)
            before, self._local.compiler = self._local.compiler, optimized.dynamo_ctx
            try:
                return model(*args, **kwargs)
            finally:
                self._local.compiler = before

        return call

    def _begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Lane:
        generations = self._generations
        lane = self._local.lane = generations.begin(generations.running(), args, kwargs)
        lane.history.begin(lane.course.program.steps[lane.step], lane.inputs[0] if lane.inputs else None)
        return lane

    def _lend(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Pure, Place, Lent]:
        """The step of this call as a pure function, compiled if that is our part, where it runs, and what it reads."""
        lane = self._begin(args, kwargs)
        course = lane.course
        run = course.graphs.of(lane.step, course.program.steps[lane.step], self._local.compiler)
        return run, course.place, lane.history.lend()

    def _take(self, made: Made) -> None:
        assert self._local.lane is not None
        self._local.lane.history.take(made)
        self._end(made.missed)
        self._local.lane = None

    def _end(self, missed: int | None) -> None:
        if missed is not None:
            raise RunError(
                f"{self.plan.grid.sites[missed].name} did not run in this model call: a site must run once in every "
                "call; choose other sites."
            )
        run, lane = self._generations.running(), self._local.lane
        assert lane is not None
        step = lane.course.program.steps[lane.step]
        self._tally.add(step.computed, step.partial, run.meter.peak)
        if lane.history.fallen is not None:
            self._tally.fell(lane.history.fallen)
            lane.history.fallen = None
        lane.step += 1

    def _fail(self) -> None:
        """Nothing of a generation outlives an exception."""
        self._local.current = self._local.lane = None
        self._generations.running().drop()
