"""A session: the runs of one plan on one model. All mutable state lives here, and leaves with it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Self
from weakref import WeakKeyDictionary

from torch import nn

from forecache.errors import AlreadyAppliedError, RunError
from forecache.models.find import find, transformers
from forecache.models.layout import Layout
from forecache.models.mount import is_in_place, is_mounted, replaced
from forecache.plan.plan import Plan
from forecache.runtime import allocator
from forecache.runtime.executable import Courses, Keeping
from forecache.runtime.forwards import Steps
from forecache.runtime.generations import Generations, Local
from forecache.runtime.host import Ends, calls_of, scheduler_of
from forecache.runtime.stats import Stats, Tally

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
        self._steps = Steps(layout, self._generations, self._tally, ends.pipe is not None)
        self._mounts: list[tuple[object, str, Callable[..., Any]]] = []
        self._stack, self._mounted = ExitStack(), ExitStack()

    def __enter__(self) -> Self:
        self._check_free()
        allocator.settle()
        self._steps.open = True
        opened = _OPEN.setdefault(self._layout.model, [])
        opened.append(self)
        with ExitStack() as stack:
            stack.callback(opened.remove, self)
            if self._ends.pipe is not None:
                stack.enter_context(calls_of(self._ends.pipe, self._generation))
            stack.push(self._unmount)
            self._mount()
            self._stack = stack.pop_all()
        return self

    def _mount(self) -> None:
        """Put our forwards in place, over whatever is there now."""
        model, steps, ends = self._layout.model, self._steps, self._ends
        parts = self._layout.forwards(steps.value, steps.collapse)
        self._mounts = [(module, "forward", steps.inside(module, part)) for module, part in parts]
        self._mounts.append((model, "forward", steps.around(model.forward)))
        if ends.optimized is not None:
            self._mounts.append((ends.optimized, "forward", steps.compiled(ends.optimized, model)))
        if ends.scheduler is not None:
            watch = self._generations.watch(ends.scheduler.set_timesteps, steps.is_ours)
            self._mounts.append((ends.scheduler, "set_timesteps", watch))
        if callable(named := getattr(model, "cache_context", None)):
            self._mounts.append((model, "cache_context", self._named(named)))
        self._mounted = ExitStack()
        for mount in self._mounts:
            self._mounted.enter_context(replaced(*mount))

    def _unmount(self, *_: object) -> None:
        self._mounted.close()

    def _is_mounted(self) -> bool:
        """Whether nobody has thrown out a forward of ours, as accelerate does to move its hooks to another device."""
        return all(is_in_place(*mount) for mount in self._mounts)

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
        self._steps.open = False
        self._stack.close()
        for run in list(self._generations.threads):
            self._generations.drop(run)
        self._courses.clear()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._leave()
            return
        in_place = self._is_mounted()
        self.close()
        if not in_place and self._ends.pipe is None:
            raise RunError(
                f"Something in this block has put the forward of {type(self._layout.model).__name__} back, as CPU "
                "offload does after each image, so the plan did nothing from then on: apply the plan to the pipeline."
            )
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
        self._follow()
        if not self._is_mounted():
            self._unmount()
            self._mount()
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

    def _follow(self) -> None:
        """The pipeline's parts may be others now: its scheduler is watched, another transformer is refused."""
        pipe = self._ends.pipe
        if all(find(each) is not self._layout.model for each in transformers(pipe)):
            raise RunError(
                f"The transformer of this {type(pipe).__name__} is another one than when the plan was applied, so the "
                "plan would do nothing: leave the block or call forecache.disable, and apply the plan again."
            )
        if (scheduler := scheduler_of(pipe)) is not self._ends.scheduler:
            self._unmount()
            self._ends = replace(self._ends, scheduler=scheduler)
            self._generations.scheduler = scheduler
            self._mount()

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
                if self._steps.is_ours():
                    with self.lane(name):
                        yield given
                else:
                    yield given

        return named
