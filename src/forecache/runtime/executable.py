"""Executables: a plan compiled for one model and length, and the cache of those that a session needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from forecache.errors import CacheBudgetError, PlanError, StepCountError
from forecache.io.text import mib
from forecache.methods.replan import part_of
from forecache.models.arguments import Arguments
from forecache.models.blocks import Gates
from forecache.models.find import measure
from forecache.models.layout import Layout
from forecache.plan.looks import Columns, expanded
from forecache.plan.online import Online, Program, extreme_runs, known_decisions
from forecache.plan.ops import Op
from forecache.plan.plan import Plan
from forecache.plan.slots import num_slots, operations, peak_bytes
from forecache.runtime.constants import DeviceConstants
from forecache.runtime.deciding import Deciding, Decisions, first_undecided
from forecache.runtime.graphs import TraceContext, graphs
from forecache.runtime.plan_source import PlanSource
from forecache.runtime.program import SkippedSpan, Step, step_of
from forecache.runtime.ranks import Ranks, ranks_of
from forecache.runtime.run import one_call
from forecache.runtime.storage import CacheOptions


class Executable:
    """A plan compiled for one model and length: its steps, the gates of skipped spans, constants, traced steps.

    layout: layout of the model, as others have prepared it.
    plan: the plan.
    options: settings of the session.
    local: thread-local state that carries the executor of a step to the model's blocks; None where nothing runs.
    rows: the operations of every site, [site][step]; where the plan decides while it runs, those of the same run.
    steps: the steps of the plan; where it decides while it runs, those of the run that computes least.
    looks: the operations of estimates beside computed steps, by step.
    look_steps: the same, ready to run.
    num_steps: model calls of a generation.
    num_slots: slots of kept features, per site.
    first: of a plan that decides in the middle of a call, the number of the block at which it does; else None.
    gates: the gates of spans of skipped blocks, by `SkippedSpan.key`; see `refresh`.
    """

    def __init__(
        self,
        layout: Layout,
        plan: Plan,
        options: CacheOptions = CacheOptions(),  # noqa: B008 - it is frozen
        local: Any = None,
    ) -> None:
        guarded = options.max_error is not None
        self.layout, self.plan, self.options = layout, plan, options
        self.num_steps = plan.num_steps
        self.first: int | None = None
        self._made: dict[tuple[Op, ...], Step] = {}
        self._among = layout.rows_among_others(plan.rows)
        self._program: Program | None = None
        self._columns = Columns.of(plan.num_steps, plan.looks)
        self._column_ops: Sequence[tuple[Op, ...]] = ()
        self.looks: Mapping[int, tuple[Op, ...]] = {}
        if plan.online is None:
            columns = operations(
                plan.grid.sites, layout.rows_among_others(expanded(plan.rows, plan.looks)), not guarded
            )
            self.num_slots = [num_slots(ops) for ops in columns]
            self._column_ops = columns
            self.rows = [tuple(self._columns.of_steps(ops)) for ops in columns]
            self.looks = self._columns.of_looks(list(zip(*columns, strict=True)))
        else:
            self.rows = self._decided(plan.online)
            self.num_slots = [self.num_steps] * len(plan.grid.sites)
        self._guarded = guarded
        self.steps = [step_of(ops, layout, guarded) for ops in zip(*self.rows, strict=True)]
        self.look_steps = {step: step_of(ops, layout, guarded) for step, ops in self.looks.items()}
        self.gates: dict[tuple[int, int], Gates] = {}
        self.constants = DeviceConstants(plan.constants)
        self.graphs = graphs(layout, guarded)
        self.context = TraceContext(local, layout, self.gates, options.dtype, options.max_error)
        self._weights_version: object = None
        steps = [*self.steps, *self.look_steps.values()]
        spans = {span.key for step in steps for span in step.blocks if isinstance(span, SkippedSpan)}
        self._spans = [range(first, last + 1) for first, last in sorted(spans)]
        self._cache_bytes: dict[object, int] = {}

    def _decided(self, online: Online) -> list[tuple[Op, ...]]:
        """The operations, [site][step], of one run of a plan that decides while it runs."""
        rows = self._among
        self._program = Program(self.plan.grid.sites, rows, online.forecast)
        if not self.plan.is_undecided:
            return self._program.operations(known_decisions(rows))
        if online.decider.sees.inside:
            self.first = first_undecided(self.layout, self.plan, online.decider.sees)
        return self._program.operations(extreme_runs(online, rows)[0])

    @functools.cached_property
    def open_step(self) -> Step:
        """The step of a call until it is decided: every site is computed, and nothing is kept."""
        return step_of((Op(),) * len(self.plan.grid.sites), self.layout, self._guarded)

    @property
    def ranks(self) -> Ranks | None:
        """The processes that sample a request together; None for this one alone."""
        return ranks_of(self.options.process_group, self.layout.model)

    def deciding(self, shared: Decisions | None) -> Deciding | None:
        """The steps of a new generation of a plan that decides while it runs; None for any other plan.

        shared: the decisions of the lane that decides for this one; None for a lane that decides itself.
        """
        if self._program is None:
            return None
        keeps = self.options.per_sample
        return Deciding(self.plan, self._program, self.layout, self._step_of, shared, self.ranks, keeps)

    def _step_of(self, ops: tuple[Op, ...]) -> Step:
        """The step with these operations, one a kind of site; made once."""
        assert self._program is not None
        if ops not in self._made:
            self._made[ops] = step_of(self._program.of_sites(ops), self.layout, self._guarded)
        return self._made[ops]

    def refresh(self) -> None:
        """Stack the gates of skipped spans at the start of a generation, unless they are and no weight has changed."""
        if self._spans and (version := self.layout.weights_version()) != self._weights_version:
            self.gates.update(self.layout.gates_of(self._spans))
            self._weights_version = version

    def clear(self) -> None:
        """Drop the stacked gates, which copy weights; `refresh` stacks them again."""
        self.gates.clear()
        self._weights_version = None

    def check_budget(self, arguments: Arguments, beside: int) -> int:
        """The peak memory, in bytes, of a generation that starts with this call; 0 where there is no budget.

        beside: bytes that other lanes may need at the same time. Raises CacheBudgetError if the sum is over the budget.
        """
        max_bytes = self.options.max_bytes
        if max_bytes is None:
            return 0
        need = self._need(arguments)
        if beside + need > max_bytes:
            others = f", {mib(beside)} for other calls of a step," if beside else ""
            raise CacheBudgetError(
                f"The plan keeps {mib(need)} of features at its peak for this batch{others} and "
                f"max_cache_bytes allows {mib(max_bytes)}: sample fewer images at a time, keep features in "
                'cache_dtype=torch.bfloat16, or take a forecast with a shorter history or fewer sites, level="stack".'
            )
        return need

    def _need(self, arguments: Arguments) -> int:
        """The peak memory of a generation, measured once for each size of a call."""
        leaves = tree_leaves((arguments.args, arguments.kwargs))
        key = tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves if isinstance(leaf, torch.Tensor))
        if key not in self._cache_bytes:
            cost = measure(self.layout.model, self.plan.grid, 0, arguments)
            sizes = cost.kept_bytes(self.options.dtype)
            peaks = [peak_bytes(rows, sizes, cost.site_tokens) for rows in self._runs()]
            self._cache_bytes[key] = max(max(self._columns.with_outputs(run, cost.output_bytes)) for run in peaks)
        return self._cache_bytes[key]

    def _runs(self) -> list[Sequence[tuple[Op, ...]]]:
        """The operations, [site][column], of runs of which one keeps as much as any."""
        if self._program is None or self.plan.online is None or not self.plan.is_undecided:
            return [self._column_ops or self.rows]
        return [self._program.operations(run) for run in extreme_runs(self.plan.online, self._among)]


class Executables:
    """The executables of a session on one model, by number of steps of a run and the part that the model is called for.

    layout: layout of the model.
    plans: where the plan of a run comes from.
    look: the layout of the model as others have prepared it by now.
    latest: the plan of the run that began last; before the first the source's own, None where it has none.
    """

    def __init__(
        self,
        layout: Layout,
        plans: PlanSource,
        options: CacheOptions,
        local: Any,
        look: Callable[[], Layout],
    ) -> None:
        self._layout, self._plans, self._options, self._local, self._look = layout, plans, options, local, look
        self._compiled: dict[tuple[int, range], tuple[Plan, Executable]] = {}
        self.latest = plans.own
        if plans.own is not None:
            self._of(plans.own, range(plans.own.num_steps))

    def of(self, num_steps: int, part: range) -> Executable:
        """The executable for the steps ``part`` of a run; raises what the plan source raises for its length."""
        self._adapt()
        if len(part) == 1:
            return self._one_call
        return self._of(self._plans.plan(num_steps), part)

    def takes(self, num_steps: int) -> bool:
        """Whether there is a plan of a run of ``num_steps`` model calls."""
        return self._plans.takes(num_steps)

    def unannounced_steps(self) -> int:
        """The number of steps of a run that nothing announces; StepCountError where there is no plan for it."""
        plan = self._plans.own
        if plan is None:
            raise StepCountError(
                "A method is planned for the number of model calls that a run makes, and no scheduler has announced "
                "it: give it, forecache.apply(model, method, num_steps=20), or give forecache.apply an object with the "
                "`transformer` and the `scheduler` of the loop, and call scheduler.set_timesteps inside the block."
            )
        return plan.num_steps

    def clear(self) -> None:
        """Drop the stacked gates of all executables."""
        for _, executable in self._compiled.values():
            executable.clear()

    @functools.cached_property
    def _one_call(self) -> Executable:
        """The executable of a run of one call, which has nothing to reuse."""
        return Executable(self._layout, one_call(self._layout.sites), self._options, self._local)

    def _of(self, plan: Plan, part: range) -> Executable:
        """The executable of a part of a plan's steps, compiled once."""
        self.latest = plan
        known = self._compiled.get((plan.num_steps, part))
        if known is not None and known[0] is plan:
            return known[1]
        self._layout.check_tokens(plan.rows)
        if self._options.per_sample and not plan.is_undecided:
            name = plan.provenance.get("method", "this plan")
            raise PlanError(
                f"per_sample= is for a plan that decides while it runs, and {name} does not: leave it out, as an image "
                "does not depend on its batch there."
            )
        executable = Executable(self._layout, part_of(plan, part), self._options, self._local)
        self._compiled[plan.num_steps, part] = plan, executable
        return executable

    def _adapt(self) -> None:
        """Compile again where others have changed what the model's forwards are."""
        layout = self._look()
        if layout is not self._layout:
            self.clear()
            self._layout, self._compiled = layout, {}
            vars(self).pop("_one_call", None)
