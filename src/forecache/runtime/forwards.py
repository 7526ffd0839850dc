"""The forwards that a session puts in the place of a model's own, so that every model call is a step of the plan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forecache.errors import RunError
from forecache.models.arguments import Arguments
from forecache.models.blocks import Streams, Untouched
from forecache.models.layout import Layout
from forecache.runtime.generations import Generations
from forecache.runtime.graphs import (
    StepInputs,
    StepOutputs,
    TraceContext,
    TracedStep,
    TracedStore,
    keep_outputs,
    step_inputs,
)
from forecache.runtime.lanes import Lane
from forecache.runtime.stats import Counters

Watch = Callable[[int, int, Tensor], None]
"""``watch(step, site, feature)``: sees every feature of the first lane."""

COMPILE_FIRST = (
    "a model that samples by a plan keeps features between its steps: call torch.compile(model, fullgraph=True) before "
    "forecache.apply and give apply what it returned, or leave fullgraph out"
)
"""Why a compiler that must not break its graph cannot compile a session's forward."""


class Forwards:
    """The forwards of a model that samples by a plan, of its blocks, and of the wrapper that torch.compile gave for it.

    layout: layout of the model.
    generations: the lanes of the session.
    counters: counts model calls.
    shared: whether others call the model, too; they get the model's own forward.
    watch: sees every feature of the first lane, if it is not None. Then no block is skipped or run as a whole.
    is_open: whether the session is open; a forward that outlives it, under a wrapper of others, calls the model's own.
    """

    def __init__(
        self,
        layout: Layout,
        generations: Generations,
        counters: Counters,
        shared: bool,
        watch: Watch | None = None,
    ) -> None:
        self.is_open = True
        self._layout, self._generations, self._counters = layout, generations, counters
        self._shared, self._watch = shared, watch
        self._local = generations.local

    def is_ours(self) -> bool:
        """Whether the model call in progress belongs to the pipeline (or model) the plan was applied to."""
        return self.is_open and (not self._shared or self._local.pipeline_calls > 0)

    def run_site(self, site: int, compute: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor:
        """The output of a site in this call; a `SiteHandler`."""
        executor = self._local.executor
        if executor is None:
            raise RunError(
                "A block was called outside of its model: sample through the model that the plan is on. If CPU offload "
                "is on, which puts the model's own forward back after each image, apply the plan to the pipeline."
            )
        output = executor.run_site(site, compute, args, kwargs)
        if self._watch is not None:
            self._show(self._watch, site, output)
        return output

    def run_block(
        self, block: int, streams: Streams, args: Sequence[Any], kwargs: Mapping[str, Any], /
    ) -> Streams | Untouched | None:
        """The outputs of a block that is skipped as a whole, UNTOUCHED or None; a `BlockHandler`."""
        executor = self._local.executor
        if executor is None or self._watch is not None:
            return None
        return executor.run_block(block, streams, args, kwargs)

    def _show(self, watch: Watch, site: int, output: Tensor) -> None:
        state, lane = self._generations.state(), self._local.lane
        if lane is not None and state.lane == next(iter(state.lanes), None):
            watch(lane.step, site, output)

    def of_model(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The model's forward as one step of the plan."""
        disable: Callable[..., Any] = torch.compiler.disable
        begin, end, fail = disable(self._begin_traced), disable(self._end_traced), disable(self._fail)

        def step(*args: Any, **kwargs: Any) -> Any:
            """torch.compile traces only `run`; the bookkeeping around it stays outside of the graph."""
            run, context, inputs = begin(args, kwargs)
            try:
                output, outputs = run(context, forward, args, kwargs, inputs)
                end(outputs)
            except BaseException:
                fail()
                raise
            return output

        traced = disable(step, recursive=False, reason=COMPILE_FIRST)

        def eager(*args: Any, **kwargs: Any) -> Any:
            lane = self._begin(args, kwargs)
            self._local.executor = lane.executor
            try:
                output = forward(*args, **kwargs)
                self._end(lane, lane.executor.missed())
            except BaseException:
                self._fail()
                raise
            finally:
                self._local.executor = None
            return output

        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.is_ours():
                self._counters.calls_elsewhere += 1
                return forward(*args, **kwargs)
            if torch.compiler.is_compiling() or self._local.compiler is not None:
                return traced(*args, **kwargs)
            return eager(*args, **kwargs)

        return call

    def of_part(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A site's or block's forward; a compiler sees it inside a traced step, or not at all."""
        own = module.forward
        hidden = torch.compiler.disable(forward, reason="forecache: compile the whole model, not its blocks")

        @functools.wraps(forward)
        def part(*args: Any, **kwargs: Any) -> Any:
            executor = self._local.executor
            if executor is None and (self._shared or not self.is_open):
                return own(*args, **kwargs)
            if torch.compiler.is_compiling() and not (executor is not None and isinstance(executor.store, TracedStore)):
                return hidden(*args, **kwargs)
            return forward(*args, **kwargs)

        return part

    def of_compiled(self, optimized: Any, model: nn.Module) -> Callable[..., Any]:
        """The forward of torch.compile's wrapper: the model's own call, with steps compiled as the wrapper says."""
        own = optimized.forward

        @functools.wraps(own)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.is_ours():
                self._counters.calls_elsewhere += 1
                return own(*args, **kwargs)
            before, self._local.compiler = self._local.compiler, optimized.dynamo_ctx
            try:
                return model(*args, **kwargs)
            finally:
                self._local.compiler = before

        return call

    def _begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Lane:
        lane = self._local.lane = self._generations.begin(Arguments(args, kwargs))
        step = lane.executable.step(lane.step, lane.computed)
        sample = lane.signature.sample
        lane.executor.begin(step, sample[0] if sample is not None else None)
        return lane

    def _begin_traced(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[TracedStep, TraceContext, StepInputs]:
        """The step of this call as a pure function, compiled if that is our part, its context and its inputs."""
        lane = self._begin(args, kwargs)
        step = lane.executor.step
        run = lane.executable.graphs.of(step, self._local.compiler)
        try:
            return run, lane.executable.context, step_inputs(step, lane.cache, lane.executor.chooser)
        except BaseException:
            self._fail()
            raise

    def _end_traced(self, outputs: StepOutputs) -> None:
        lane = self._local.lane
        assert lane is not None
        keep_outputs(outputs, lane.cache, lane.executor)
        self._end(lane, outputs.missed)
        self._local.lane = None

    def _end(self, lane: Lane, missed: int | None) -> None:
        if missed is not None:
            raise RunError(
                f"{self._layout.sites[missed].name} did not run in this model call: a site must run once in every "
                "call; choose other sites."
            )
        executor = lane.executor
        step = executor.step
        self._counters.add_call(step.computed, step.partial, lane.cache.meter.peak)
        if executor.fallbacks is not None:
            self._counters.add_fallbacks(executor.fallbacks)
            executor.fallbacks = None
        if step.is_computed:
            lane.computed.append(lane.step)
        lane.step += 1

    def _fail(self) -> None:
        """Drop the generations of this thread: nothing of one outlives an exception."""
        self._local.executor = self._local.lane = None
        self._generations.state().drop()
