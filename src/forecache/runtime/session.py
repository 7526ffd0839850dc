"""Sessions: the runs of one plan on one or several models. All mutable state lives here, and leaves with a session."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ContextDecorator, ExitStack, contextmanager, nullcontext
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import nn

from forecache.errors import AlreadyAppliedError, RunError
from forecache.models.layout import Layout
from forecache.models.mount.contract import View, layout_among_others, refuse_patched, view
from forecache.models.mount.replace import is_in_place, is_mounted, is_on_top
from forecache.plan.method import Method
from forecache.plan.plan import Plan
from forecache.runtime.executable import Executables
from forecache.runtime.forwards import Forwards, Watch
from forecache.runtime.generations import Generations
from forecache.runtime.host import Host, Mount, Runs
from forecache.runtime.lanes import Local
from forecache.runtime.pipelines import host_of
from forecache.runtime.plan_source import PlanSource, may_look_back
from forecache.runtime.requests import Requests
from forecache.runtime.stats import Counters, Stats, merged
from forecache.runtime.storage import CacheOptions
from forecache.runtime.unused import warning_if_unused

_OPEN: WeakKeyDictionary[nn.Module, list[MountedModel]] = WeakKeyDictionary()
"""The open sessions on every model."""


class Session(ContextDecorator):
    """``with apply(model, plan) as session:`` - the model samples by the plan inside the block, and as before after it.

    It decorates functions as well: ``@apply(model, plan)``. A session that is dropped without either warns.

    A new generation is noticed by itself and starts clean: when a pipeline is called or sets its scheduler's timesteps,
    when the timestep goes up, when shape, dtype or device change, or by `new_run`. Every thread has its own state. A
    session on a pipeline affects the calls of that pipeline alone: another pipeline with the same transformer samples
    as before. A pipeline of two transformers has one session, in which each runs its part of the plan.

    plans: where the plan of a run comes from.
    layouts: layout of every model, in the order in which a run calls them.
    hosts: who calls every model; by default a loop of the user's own.
    options: how features are kept, and how far estimates may lie off.
    wrappers: the wrapper that torch.compile gave for every model; by default there are none.
    timed: whether the seconds of generations are measured, which waits for a GPU at their ends; False by default.
    watch: ``watch(step, site, feature)`` sees every feature of the first lane; None, the default, sees none.
    around: a block that is entered before the models and left after them, such as one with another scheduler.
    """

    def __init__(
        self,
        plans: PlanSource,
        layouts: Sequence[Layout],
        hosts: Sequence[Host] | None = None,
        options: CacheOptions = CacheOptions(),  # noqa: B008 - it is frozen
        *,
        wrappers: Sequence[nn.Module | None] | None = None,
        timed: bool = False,
        watch: Watch | None = None,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._plans, self._around = plans, around
        hosts = [host_of(layout.model) for layout in layouts] if hosts is None else hosts
        self._take_turns = all(host.part is not None for host in hosts)
        self._models = tuple(
            MountedModel(plans, layout, host, options, wrapper, timed, watch)
            for layout, host, wrapper in zip(layouts, hosts, wrappers or [None] * len(layouts), strict=True)
        )
        self._requests = Requests([model.runs for model in self._models])
        self._stack, self._outside = ExitStack(), ExitStack()
        self._is_open = False
        self._unused = warning_if_unused(self, type(layouts[0].model).__name__)

    @property
    def plan(self) -> Plan | None:
        """The plan of the run that began last; before the first the one that was given, None where there is none."""
        return self._models[0].plan

    @property
    def method(self) -> Method | None:
        """The method that planned the run that began last; None where a plan was given or found."""
        return self._plans.method

    def decided(self) -> Plan:
        """What was decided in the generation that began last, as a plan with no undecided cell, which repeats it.

        On the same noise and inputs it gives the same samples, bit for bit. Where nothing is decided while the plan
        runs, it is that plan. Raises RunError before a run and in the middle of one, and for a run of two transformers
        that take turns.
        """
        first, *others = self._models
        if others:
            raise RunError(
                "The run of two transformers is two plans, one a transformer: apply the method to each, "
                "forecache.apply(pipe.transformer, method), and ask those sessions."
            )
        return first.decided()

    @property
    def choice(self) -> str:
        """What was chosen for the run that began last, and why; empty where a plan or method was given."""
        return self._plans.choice

    @property
    def is_open(self) -> bool:
        """Whether the models sample by the plan now."""
        return self._is_open

    @property
    def requests(self) -> Requests:
        """The runs that a host tells apart by keys of its own."""
        return self._requests

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self._unused.detach()
        return super().__call__(function)

    def __enter__(self) -> Self:
        self._unused.detach()
        if self._is_open:
            raise AlreadyAppliedError(
                "This session is open already, as after forecache.enable, which needs no `with` and lasts until "
                "forecache.disable(pipe); for a block, write: `with forecache.apply(pipe, ...)`."
            )
        with ExitStack() as stack:
            around = stack.enter_context(ExitStack())
            around.enter_context(self._around())
            for model in self._models:
                stack.enter_context(model)
            self._stack, self._outside = stack.pop_all(), around
        self._is_open = True
        return self

    def __exit__(self, *raised: Any) -> None:
        self._is_open = False
        self._requests.clear()
        self._stack.__exit__(*raised)

    def close(self) -> None:
        """Restore the models and drop all features; raises StepCountError if a run stopped too early."""
        self._is_open = False
        self._requests.clear()
        with ExitStack() as stack:
            stack.callback(self._outside.close)
            for model in self._models:
                stack.callback(model.close)

    @property
    def stats(self) -> Stats:
        """The statistics so far, over all threads."""
        return merged([model.stats for model in self._models], self._take_turns)

    def new_run(self) -> None:
        """Start a new generation with the next model call of this thread; the features of the last are dropped."""
        for model in self._models:
            model.runs.restart()

    @contextmanager
    def lane(self, name: str) -> Iterator[None]:
        """Give the model calls in this block a cache of their own, for pipelines that call the model twice a step.

        with session.lane("uncond"):
            uncond = model(x, t, null_label)
        """
        with ExitStack() as stack:
            for model in self._models:
                stack.enter_context(model.runs.call(name))
            yield

    def check_complete(self) -> None:
        """Raises StepCountError if the last generation of this thread made fewer calls than the plan has steps."""
        for model in self._models:
            model.runs.check_complete()


class MountedModel:
    """Plans on one model: while its block lasts, the model's forwards are ours. The fields are those of `Session`.

    runs: what hosts tell of the model's runs.
    """

    def __init__(
        self,
        plans: PlanSource,
        layout: Layout,
        host: Host,
        options: CacheOptions,
        wrapper: nn.Module | None,
        timed: bool,
        watch: Watch | None,
    ) -> None:
        self._layout = layout
        self._host, self._wrapper = host, wrapper
        local = Local()
        self._counters = Counters(timed)
        self._executables = Executables(layout, plans, options, local, self._look)
        self.runs = Runs(local, host, layout.rising, self._executables.takes)
        self.runs.may_look_back = may_look_back(plans)
        generations = Generations(layout, self._executables, self.runs, host.lanes, self._counters)
        self._forwards = Forwards(layout, generations, self._counters, host.is_shared, host.noise, self._adapt, watch)
        self._mounts: list[Mount] = []
        self._view: View | None = None
        self._lock = threading.RLock()
        self._stack, self._mounted = ExitStack(), ExitStack()

    def __enter__(self) -> Self:
        self._check_free()
        _keep_freed_memory()
        self.runs.is_open = True
        sessions = _OPEN.setdefault(self._layout.model, [])
        sessions.append(self)
        with ExitStack() as stack:
            stack.callback(sessions.remove, self)
            stack.enter_context(self._host.opened(self.runs, self._renew))
            stack.push(self._unmount)
            self._mount()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._leave()
            return
        model = self._layout.model  # what was put on a block, or taken off, is seen when a generation starts
        forwards = [mount for mount in self._mounts if mount.owner is model and mount.name == "forward"]
        in_place = all(is_in_place(mount.owner, mount.name, mount.function) for mount in forwards)
        self.close()
        if (complaint := self._host.complaint(model, in_place, self._counters)) is not None:
            raise RunError(complaint)

    def close(self) -> None:
        """Restore the model and drop all features; raises StepCountError if a run stopped too early."""
        self._leave()
        if (stopped := self.runs.stopped) is not None:
            raise stopped

    def _leave(self) -> None:
        self.runs.is_open = False
        self._stack.close()
        self.runs.close()
        self._executables.clear()

    def _check_free(self) -> None:
        """Raises AlreadyAppliedError if the model has a session already, and the hosts of both do not share it."""
        model, host = self._layout.model, self._host
        others = [other._host for other in _OPEN.get(model, [])]
        can_share = all(host.allows(other) and other.allows(host) for other in others)
        if (others and not can_share) or (not others and any(map(is_mounted, model.modules()))):
            raise AlreadyAppliedError(
                f"This {type(model).__name__} already samples by a plan: leave its `with forecache.apply(...)` block, "
                "or call forecache.disable, before applying another."
            )

    def _mount(self) -> None:
        """Put our forwards in place, over what is there now."""
        model, forwards = self._layout.model, self._forwards
        layout = layout_among_others(self._layout)
        if forwards.watches:
            refuse_patched(self._layout, "measuring")
        if not layout.is_like(forwards.layout):
            forwards.layout = layout
        parts = forwards.looking_first(
            self._layout.forwards(forwards.run_site, forwards.run_block, forwards.open_spans)
        )
        self._mounts = [forwards.of_part(module, forward) for module, forward in parts]
        self._mounts.append(forwards.of_model(model))
        if (wrapper := self._wrapper) is not None:
            self._mounts.append(forwards.of_compiled(wrapper, model))
        self._mounts += self._host.mounts(model, self.runs)
        self._mounted = ExitStack()
        for mount in self._mounts:
            self._mounted.enter_context(mount.put())
        self._view = forwards.view = view(self._layout)

    def _unmount(self, *_: object) -> None:
        self._mounted.close()
        for mount in self._mounts:
            if mount.retire is not None:
                mount.retire()

    def _look(self) -> Layout:
        """The layout of the model as others have prepared it, at the start of a generation."""
        with self._lock:
            if self._view is not None and self._view.has_changed:
                self._remount()
            return self._forwards.layout

    def _adapt(self) -> bool:
        """Put our forwards over what others have put on blocks; False if a generation in progress cannot go on so."""
        with self._lock:
            before = self._forwards.layout
            self._remount()
            return self._forwards.layout is before

    def _remount(self) -> None:
        layout_among_others(self._layout)  # raises what is refused while our forwards are in place
        self._unmount()
        self._mount()

    def _is_mounted(self) -> bool:
        """Whether all our functions are in place; accelerate throws them out to move its hooks to another device."""
        return all(is_in_place(mount.owner, mount.name, mount.function) for mount in self._mounts)

    def _is_on_top(self) -> bool:
        """Whether our forwards are called first, before what others have put on modules."""
        modules = [mount for mount in self._mounts if isinstance(mount.owner, nn.Module)]
        return all(is_on_top(mount.owner, mount.name, mount.function) for mount in modules)

    def _renew(self, is_changed: bool) -> None:
        """Put our functions in place again where others have moved them, or where they have changed."""
        with self._lock:
            if is_changed or not (self._is_on_top() and self._is_mounted()):
                self._remount()

    @property
    def plan(self) -> Plan | None:
        return self._executables.latest

    def decided(self) -> Plan:
        last = self.stats.last
        plan = last.stretches[0].plan if last is not None else None
        if last is None or plan is None or plan.is_undecided:
            calls = 0 if last is None else last.stretches[0].calls
            raise RunError(f"The last run has made {calls} model calls and is not over: ask when it is.")
        if len({stretch.plan.num_steps for stretch in last.stretches}) > 1:
            raise RunError(
                f"The last run was made in {len(last.stretches)} parts, because its inputs changed on the way, and one "
                "plan is for one part: sample without such a change."
            )
        if len({stretch.plan.provenance.get("decided") for stretch in last.stretches}) > 1:
            raise RunError(
                f"The last run has {len(last.stretches)} plans, because its images decided each for itself: print "
                "session.stats for what they decided, or sample one image at a time."
            )
        return plan

    @property
    def stats(self) -> Stats:
        return self._counters.stats(self._forwards.layout)

    @property
    def held_bytes(self) -> int:
        """The bytes that all threads hold now."""
        return sum(state.meter.held for state in self.runs.threads)


def _keep_freed_memory() -> None:
    """Let the C allocator use freed memory again instead of giving it back to the system.

    glibc returns memory when more lies free than twice the largest block that was freed, up to 32 MiB. Features come
    and go at such sizes, and their pages would be fetched again at every step. One large block that comes and goes
    raises that limit.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
