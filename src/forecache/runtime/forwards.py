"""A model's calls as steps of a plan: the forwards that a session puts in the place of the model's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forecache.errors import RunError
from forecache.models.blocks import Own, Streams
from forecache.models.layout import Layout
from forecache.runtime.generations import Generations, Lane
from forecache.runtime.graphs import Borrowed, Place, Pure
from forecache.runtime.lent import Lent, Made
from forecache.runtime.stats import Tally

COMPILE_FIRST = (
    "a model that samples by a plan keeps books between its steps: call torch.compile(model, fullgraph=True) before "
    "forecache.apply and give apply what it returned, or leave fullgraph out"
)
"""What a compiler is told that meets a session's forward and must not break its graph there."""


class Steps:
    """The forwards of a model that samples by a plan, of its blocks, and of what torch.compile gave for it.

    shared: the model is also called for others, who get what they always got; so does everybody once ``open`` is
    False, where a wrapper of ours was wrapped in turn. see: is shown what every site gives out, (site, feature).
    """

    def __init__(self, layout: Layout, generations: Generations, tally: Tally, shared: bool) -> None:
        self.open = True
        self.see: Callable[[int, Tensor], None] | None = None
        self._layout, self._generations, self._tally, self._shared = layout, generations, tally, shared
        self._local = generations.local

    def is_ours(self) -> bool:
        """Whether what is called now, in this thread, is called for what the plan is on."""
        return self.open and (not self._shared or self._local.calling > 0)

    def value(self, site: int, compute: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor:
        past = self._local.current
        if past is None:
            raise RunError(
                "A block was called outside of its model: sample through the model that the plan is on. If CPU offload "
                "is on, which puts the model's own forward back after each image, apply the plan to the pipeline."
            )
        output = past.value(site, compute, args, kwargs)
        if self.see is not None:
            self.see(site, output)
        return output

    def collapse(
        self, block: int, streams: Streams, args: Sequence[Any], kwargs: Mapping[str, Any], /
    ) -> Streams | Own | None:
        """What a block hands on that is skipped as a whole, or OWN where its own forward runs; see `Past.collapsed`."""
        past = self._local.current
        return None if past is None or self.see is not None else past.collapsed(block, streams, args, kwargs)

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
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
            if not self.is_ours():
                self._tally.elsewhere += 1
                return forward(*args, **kwargs)
            if torch.compiler.is_compiling() or self._local.compiler is not None:
                return pure(*args, **kwargs)
            return eager(*args, **kwargs)

        return call

    def inside(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A site's or block's forward, which a compiler sees as a part of a step or not at all."""
        below = module.forward
        hidden = torch.compiler.disable(forward, reason="forecache: compile the whole model, not its blocks")

        @functools.wraps(forward)
        def part(*args: Any, **kwargs: Any) -> Any:
            if self._local.current is None and (self._shared or not self.open):
                return below(*args, **kwargs)
            if torch.compiler.is_compiling() and not isinstance(self._local.current, Borrowed):
                return hidden(*args, **kwargs)
            return forward(*args, **kwargs)

        return part

    def compiled(self, optimized: Any, model: nn.Module) -> Callable[..., Any]:
        """The forward of what torch.compile(model) gave: the model's own call, with steps compiled as that was."""

        below = optimized.forward

        @functools.wraps(below)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.is_ours():
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
        try:
            return run, course.place, lane.history.lend()
        except BaseException:
            self._fail()
            raise

    def _take(self, made: Made) -> None:
        assert self._local.lane is not None
        self._local.lane.history.take(made)
        self._end(made.missed)
        self._local.lane = None

    def _end(self, missed: int | None) -> None:
        if missed is not None:
            raise RunError(
                f"{self._layout.sites[missed].name} did not run in this model call: a site must run once in every "
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
