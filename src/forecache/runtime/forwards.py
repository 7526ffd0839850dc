"""The forwards that a session puts in the place of a model's own, so that every model call is a step of the plan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from forecache.errors import RunError
from forecache.models.arguments import Arguments
from forecache.models.blocks import Forward, Streams, Untouched, Whole
from forecache.models.layout import Layout
from forecache.models.mount.contract import View
from forecache.models.reads import reading_first
from forecache.models.regional import forward_of
from forecache.models.span import unseen_spans
from forecache.runtime import calls
from forecache.runtime.deciding import output_of
from forecache.runtime.executor import StepExecutor
from forecache.runtime.generations import Generations
from forecache.runtime.graphs import (
    StepInputs,
    StepOutputs,
    TraceContext,
    TracedStep,
    TracedStore,
    keep_outputs,
    own_memory,
    step_inputs,
)
from forecache.runtime.host import Mount
from forecache.runtime.known import Known, nbytes, with_estimate
from forecache.runtime.lanes import Lane
from forecache.runtime.per_sample import DividedError, Samples, divided, joined
from forecache.runtime.stats import Counters
from forecache.runtime.steps import Noise, begin_look, begin_step, look_of

Watch = Callable[[int, int, Tensor], None]
"""``watch(step, site, feature)``: sees every feature of the first lane."""


OUTSIDE = (
    "A block was called outside of its model: sample through the model that the plan is on. If CPU offload is on, "
    "which puts the model's own forward back after each image, apply the plan to the pipeline."
)
CHECKPOINTED = (
    "The backward pass calls a block again, because gradient checkpointing is on, and a plan does not know that call: "
    "sample under torch.no_grad(), or call model.disable_gradient_checkpointing()."
)
CHANGED = (
    "Something was put on the model's blocks, or taken off, in the middle of a generation (a patched forward, a "
    "forward hook, a hook of diffusers or accelerate), so that features of before do not fit: do it before a "
    "generation starts, or call session.new_run() after it."
)

SIZES = (
    "A skipped part of this call does not fit the others ({error}). If the number of tokens changed inside the model "
    "in the middle of a run, features from before are of another length: call session.new_run() where it changes, or "
    "sample without a plan."
)
APART = (
    "The samples of this batch have calls of their own, and their features do not fit together ({error}), as where a "
    "model pads texts to the longest of a batch: sample texts of one length together, or leave out per_sample=."
)
COMPILE_FIRST = (
    "a model that samples by a plan keeps features between its steps: call torch.compile(model, fullgraph=True) before "
    "forecache.apply and give apply what it returned, or leave fullgraph out"
)
"""Why a compiler that must not break its graph cannot compile a session's forward."""


class Forwards:
    """The forwards of a model that samples by a plan, of its blocks, and of the wrapper that torch.compile gave for it.

    layout: layout of the model, as others have prepared it by now.
    generations: the generations of the session.
    counters: counts model calls.
    shared: whether others call the model, too; they get the model's own forward.
    noise: says the noise level to rules that ask for it.
    adapt: puts our forwards over what others have put on blocks; False if a generation in progress cannot go on so.
    view: what stood on the model when our forwards were put in place.
    watch: sees every feature of the first lane, if it is not None. Then no block is skipped or run as a whole.

    A forward that outlives the session, under a wrapper of others, calls the model's own.
    """

    def __init__(
        self,
        layout: Layout,
        generations: Generations,
        counters: Counters,
        shared: bool,
        noise: Noise,
        adapt: Callable[[], bool],
        watch: Watch | None = None,
    ) -> None:
        self.layout = layout
        self.view: View | None = None
        self._generations, self._counters = generations, counters
        self._shared, self._noise, self._adapt, self._watch = shared, noise, adapt, watch
        self._runs, self._local = generations.runs, generations.local

    @property
    def watches(self) -> bool:
        """Whether features are watched, so that no block is skipped or run as a whole."""
        return self._watch is not None

    def run_site(self, site: int, compute: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor:
        """The output of a site in this call; a `SiteHandler`."""
        executor = self._local.executor
        if executor is None:
            executor = self._executor()
        output = executor.run_site(site, compute, args, kwargs)
        if self._watch is not None:
            self._show(self._watch, site, output)
        return output

    def run_block(
        self, block: int, streams: Streams, args: Sequence[Any], kwargs: Mapping[str, Any], /
    ) -> Streams | Untouched | Whole | None:
        """The outputs of a block that is skipped as a whole, UNTOUCHED, WHOLE or None; a `BlockHandler`."""
        executor = self._local.executor
        if executor is None or self._watch is not None:
            return None
        return executor.run_block(block, streams, args, kwargs)

    def open_spans(self) -> dict[int, Any]:
        """What spans of blocks hold in this call."""
        return self._executor().open_spans

    def _executor(self) -> StepExecutor:
        executor = self._local.executor
        if executor is None:
            in_backward = torch._C._current_graph_task_id() != -1
            raise RunError(CHECKPOINTED if in_backward else OUTSIDE)
        return executor

    def looking_first(self, parts: Iterable[tuple[nn.Module, Forward]]) -> Iterator[tuple[nn.Module, Forward]]:
        """The forwards of the model's sites and blocks, of which the first one looks at what it is given."""
        for number, (module, forward) in enumerate(parts):
            yield module, forward if number else self._looking(forward)

    def _looking(self, forward: Forward) -> Forward:
        """A forward that looks whether the tokens inside the model are as many as in the call before.

        They change without any argument where the model keeps keys and values of its own. Nothing from before fits
        then: the step is computed as a whole.
        """

        @functools.wraps(forward)
        def looking(*args: Any, **kwargs: Any) -> Any:
            lane = self._local.lane
            if lane is not None and not torch.compiler.is_compiling():
                inside = calls.shapes_of(args, kwargs)
                if lane.inside is None:
                    lane.inside = inside
                elif lane.inside != inside:
                    self._start_afresh(lane, inside)
            return forward(*args, **kwargs)

        return looking

    def _start_afresh(self, lane: Lane, inside: Sequence[torch.Size]) -> None:
        if any(lane.executor.ran):
            raise RunError(
                f"The tokens of {self.layout.sites[0].name} became {inside[0]} in the middle of a run, after other "
                "sites of this call had run, and features from before do not fit: call session.new_run() where they "
                "change, or sample without a plan."
            )
        if lane.samples is not None:
            raise RunError(
                f"The tokens of {self.layout.sites[0].name} became {inside[0]} in the middle of a run whose samples "
                "decide each for itself: call session.new_run() where they change, or leave out per_sample=."
            )
        lane = self._local.lane = self._generations.afresh(lane)
        lane.inside = inside
        begin_step(lane, self._local, self._noise)
        self._local.executor = lane.executor

    def _show(self, watch: Watch, site: int, output: Tensor) -> None:
        state, lane = self._runs.state(), self._local.lane
        if lane is not None and state.lane == next(iter(state.lanes), None):
            watch(lane.step, site, output)

    def of_model(self, model: nn.Module) -> Mount:
        """The model's forward as one step of the plan."""
        forward = model.forward
        followed = reading_first(forward, unseen_spans(self.layout.blocks))
        is_retired = False
        disable: Callable[..., Any] = torch.compiler.disable
        begin, end, fail = disable(self._begin_traced), disable(self._end_traced), disable(self._fail)
        kept = disable(self._kept_estimate)

        def step(*args: Any, **kwargs: Any) -> Any:
            """torch.compile traces only `run`; the bookkeeping around it stays outside of the graph."""
            run, context, inputs, look = begin(args, kwargs)
            try:
                estimate = None if look is None else kept(look[0](context, forward, args, kwargs, look[1])[0])
                output, outputs = run(context, forward, args, kwargs, inputs)
                return end(outputs, output, estimate)
            except BaseException:
                fail()
                raise

        traced = disable(step, recursive=False, reason=COMPILE_FIRST)

        def eager(*args: Any, **kwargs: Any) -> Any:
            lane = self._begin(args, kwargs)
            self._local.executor = lane.executor
            try:
                estimate = self._estimated(lane, followed, args, kwargs)
                if lane.samples is None:
                    output = followed(*args, **kwargs)
                else:
                    output = self._of_samples(lane, lane.samples, followed, Arguments(args, kwargs))
                lane = self._local.lane or lane  # it may have started afresh
                output = self._end(lane, lane.executor.missed(), output, estimate)
            except BaseException as error:
                self._fail()
                if _is_of_sizes(error) and not lane.executor.step.is_computed:
                    raise RunError(SIZES.format(error=str(error).splitlines()[0])) from error
                raise
            finally:
                self._local.executor = self._local.lane = self._local.call = None
            return output

        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_retired:
                return forward(*args, **kwargs)
            if not self._runs.is_ours():
                self._counters.calls_elsewhere += 1
                return forward(*args, **kwargs)
            if kwargs.get("skip_layers"):
                return self._bare(forward, args, kwargs)
            if torch.compiler.is_compiling() or self._local.compiler is not None:
                return traced(*args, **kwargs)
            return eager(*args, **kwargs)

        def retire() -> None:
            nonlocal is_retired
            is_retired = True

        return Mount(model, "forward", call, retire)

    def of_part(self, module: nn.Module, forward: Callable[..., Any]) -> Mount:
        """A site's or block's forward; a compiler sees it inside a traced step, or not at all."""
        own = forward_of(module)
        hidden = torch.compiler.disable(forward, reason="forecache: compile the whole model, not its blocks")

        @functools.wraps(forward)
        def part(*args: Any, **kwargs: Any) -> Any:
            executor = self._local.executor
            if executor is None and (self._shared or not self._runs.is_open or self._local.is_bare):
                return own(*args, **kwargs)
            if torch.compiler.is_compiling() and not (executor is not None and isinstance(executor.store, TracedStore)):
                return hidden(*args, **kwargs)
            return forward(*args, **kwargs)

        def retire() -> None:
            nonlocal forward, hidden
            forward = hidden = own

        return Mount(module, "forward", part, retire, module)

    def of_compiled(self, optimized: Any, model: nn.Module) -> Mount:
        """The forward of torch.compile's wrapper: the model's own call, with steps compiled as the wrapper says."""
        own = optimized.forward

        @functools.wraps(own)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._runs.is_ours():
                self._counters.calls_elsewhere += 1
                return own(*args, **kwargs)
            before, self._local.compiler = self._local.compiler, optimized.dynamo_ctx
            try:
                return model(*args, **kwargs)
            finally:
                self._local.compiler = before

        return Mount(optimized, "forward", call)

    def _bare(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The output of a call that leaves out layers, for skip-layer guidance: it runs in full, beside the plan."""
        self._local.is_bare = True
        try:
            return forward(*args, **kwargs)
        finally:
            self._local.is_bare = False

    def _of_samples(self, lane: Lane, samples: Samples, forward: Callable[..., Any], arguments: Arguments) -> Any:
        """The output of a call whose samples decide each for itself; RunError where they have no calls of their own."""
        try:
            return self._in_groups(lane, samples, forward, arguments)
        except RuntimeError as error:
            if not (_is_of_sizes(error) or str(error).startswith("Sizes of tensors must match")):
                raise
            raise RunError(APART.format(error=str(error).splitlines()[0])) from error

    def _in_groups(self, lane: Lane, samples: Samples, forward: Callable[..., Any], arguments: Arguments) -> Any:
        """The output of a call of samples: one call for each thing that they do."""
        if not samples.is_divided:
            try:
                return forward(*arguments.args, **arguments.kwargs)
            except DividedError:
                pass
        self._local.lane = None  # the parts of a batch have other shapes than the batch
        outputs, rows = [], []
        for group in samples.groups():
            rows.append(sorted(place for sample in group for place in sample.places))
            own = divided(arguments, rows[-1], samples.num_rows, self.layout.model)
            assert group[0].now is not None
            lane.executor = self._local.executor = samples.executor(group, group[0].now, None)
            outputs.append(forward(*own.args, **own.kwargs))
            self._check_ran(lane.executor.missed())
            self._count_fallbacks(lane.executor)
        return joined(outputs, rows, samples.num_rows)

    def _begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Lane:
        lane = self._local.lane = self._generations.begin(Arguments(args, kwargs))
        if lane.executable.plan.looks:
            self._check_looks(args, kwargs)
        step = begin_step(lane, self._local, self._noise)
        if lane.executable.layout is not self.layout or (lane.step and step.computed and self._blocks_have_changed()):
            self._fail()
            raise RunError(CHANGED)
        return lane

    def _check_looks(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raises RunError for a run in which nothing is paid back."""
        if any(isinstance(value, Known) for value in (*args, *kwargs.values())):
            self._fail()
            raise RunError(
                "A prediction came back to the model without passing through the scheduler of the pipeline, whose step "
                "pays back in hindsight: sample by pipe.scheduler.step, give forecache.apply an object with your "
                "loop's `transformer` and `scheduler`, or leave hindsight out."
            )

    def _blocks_have_changed(self) -> bool:
        return self.view is not None and self.view.blocks_have_changed

    def _begin_traced(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[TracedStep, TraceContext, StepInputs, tuple[TracedStep, StepInputs] | None]:
        """The step of this call as a pure function, compiled if that is our part, its context and its inputs.

        The last is the estimate of the step in the same way; None where there is none.
        """
        lane = self._begin(args, kwargs)
        if lane.executable.options.per_sample:
            self._fail()
            raise RunError(
                "Samples that decide each for itself make calls of their own, and a compiled step is one graph: do not "
                "compile the model, or leave out per_sample=."
            )
        step = lane.executor.step
        run = lane.executable.graphs.of(step, self._local.compiler)
        try:
            inputs = step_inputs(step, lane.cache, lane.executor.chooser)
            return run, lane.executable.context, inputs, self._look_traced(lane)
        except BaseException:
            self._fail()
            raise

    def _estimated(self, lane: Lane, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The model's output where the step of this call, which is computed afterwards, is estimated; None for none."""
        if (look := look_of(lane)) is None:
            return None
        begin_look(lane, look)
        output = forward(*args, **kwargs)
        if (missed := lane.executor.missed()) is not None or self._local.lane is not lane:
            raise RunError(
                f"{self.layout.sites[missed or 0].name} did not run where step {lane.step} was estimated for "
                "hindsight: a site must run once in every call; choose other sites, or leave hindsight out."
            )
        self._runs.state().hold_look(nbytes(output))
        begin_step(lane, self._local, self._noise)
        return output

    def _look_traced(self, lane: Lane) -> tuple[TracedStep, StepInputs] | None:
        step = look_of(lane)
        if step is None:
            return None
        inputs = step_inputs(step, lane.cache, lane.executor.chooser)
        lane.cache.free([(site, slot) for site, op in enumerate(step.ops) for slot in op.frees])
        return lane.executable.graphs.of(step, self._local.compiler), inputs

    def _kept_estimate(self, output: Any) -> Any:
        """The estimate of a step, in memory that the graph of the step itself does not write into."""
        self._runs.state().hold_look(nbytes(output))
        return tree_map_only(Tensor, own_memory, output)

    def _end_traced(self, outputs: StepOutputs, output: Any, estimate: Any) -> Any:
        lane = self._local.lane
        assert lane is not None
        keep_outputs(outputs, lane.cache, lane.executor)
        output = self._end(lane, outputs.missed, output, estimate)
        self._local.lane = self._local.call = None
        return output

    def _end(self, lane: Lane, missed: int | None, output: Any, estimate: Any = None) -> Any:
        """End the call; returns its output, with the estimate of it where there is one."""
        self._check_ran(missed)
        executor = lane.executor
        step = executor.step
        computed, partial, is_computed = step.computed, step.partial, step.is_computed
        if lane.samples is not None:
            computed, partial = lane.samples.end(output, output_of)
            is_computed = computed == len(step.ops)
        elif lane.deciding is not None:
            lane.deciding.end(output)
        is_last = lane.step + 1 == lane.num_steps
        # what a call changes itself, as where hooks leave after the first, does no harm to that call
        if (step.computed or is_last) and self._blocks_have_changed() and not (step.computed and self._adapt()):
            raise RunError(CHANGED)
        self._counters.add_call(computed, partial, lane.cache.meter.peak)
        self._count_fallbacks(executor)
        if is_computed:
            lane.computed.append(lane.step)
            place = lane.run.indices.start + lane.step
            if lane.drift is not None and lane.drift.sees(lane, place, output_of(output)):
                self._counters.add_drifted()
        lane.step += 1
        if self._counters.timed and lane.record is not None:
            lane.record.end_call(lane.signature.device)
        return output if estimate is None else with_estimate(output, estimate)

    def _check_ran(self, missed: int | None) -> None:
        """Raises RunError for a site that did not run in a call."""
        if missed is not None:
            raise RunError(
                f"{self.layout.sites[missed].name} did not run in this model call: a site must run once in every "
                "call; choose other sites, and leave off what makes the model skip it (layer-skip guidance, another "
                "cache, a patched forward of the model)."
            )

    def _count_fallbacks(self, executor: StepExecutor) -> None:
        if executor.fallbacks is not None:
            self._counters.add_fallbacks(executor.fallbacks)
            executor.fallbacks = None

    def _fail(self) -> None:
        """Drop the generations of this thread: nothing of one outlives an exception."""
        self._local.executor = self._local.lane = self._local.call = None
        self._runs.state().drop()


def _is_of_sizes(error: BaseException) -> bool:
    """Whether torch raised this error because two tensors have sizes that do not fit."""
    words = "must match the size", "sizes", "shapes cannot be multiplied", "split_with_sizes", "doesn't match"
    return type(error) is RuntimeError and any(word in str(error) for word in words)
