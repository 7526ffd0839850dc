"""Traced steps: a step as a pure function, kept features in and new ones out, as torch.compile needs it.

Bookkeeping stays outside of the function. Steps that do the same share one, whatever their slots, weights and constants
are: weights are a tensor. A function belongs to a model for as long as the model lives, so that a second session with
such steps finds it compiled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from forecache.models.arguments import Arguments
from forecache.models.blocks import Gate, Gates
from forecache.models.layout import Layout
from forecache.models.rounded import restored, rounded
from forecache.parts.grid import Site
from forecache.plan.ops import OUT, KeptSum, Op, Score, Terms, TokenChoice
from forecache.runtime.cache import FeatureCache
from forecache.runtime.calls import sample_shape
from forecache.runtime.constants import times
from forecache.runtime.executor import StepExecutor
from forecache.runtime.program import SkippedSpan, Step, step_of
from forecache.runtime.tokens import TokenChooser


class StepInputs(NamedTuple):
    """Inputs of a step compiled as a pure function, besides the arguments of the model.

    features: per site, the features in the slots that it reads, in the order of `Op.slots_read`.
    dtypes: per site, the dtype that its features are cast to; None leaves them as they are.
    weights: the weights of the step, float32; None without any.
    constants: gain and shift, per site that has one.
    random: random scores, per site that chooses tokens by them.
    ages: ages of tokens, per site that reads them.
    scores: scores of tokens that an earlier step made.
    """

    features: tuple[tuple[Tensor, ...], ...]
    dtypes: tuple[torch.dtype | None, ...]
    weights: Tensor | None
    constants: dict[int, tuple[Tensor | None, Tensor | None]]
    random: dict[int, Tensor]
    ages: dict[int, Tensor]
    scores: dict[Score, Tensor]


class StepOutputs(NamedTuple):
    """Outputs of a step compiled as a pure function, besides the model's own.

    kept: per site, the sums that later steps read, each with the dtype that it had.
    scores: scores of tokens that this step made.
    ages: ages of tokens that later steps read, per site.
    missed: the first site that did not run; None if all did.
    fallbacks: number of estimates that fell back to reuse; None for none.
    """

    kept: dict[int, list[tuple[Tensor, torch.dtype]]]
    scores: dict[Score, Tensor]
    ages: dict[int, Tensor]
    missed: int | None
    fallbacks: Tensor | None


class TraceContext(nn.Module):
    """The context of a traced step: what carries its executor to the model's blocks, gates, and how features are kept.

    It is a module, as `TracedConstants` is, because the compiler takes the numbers of modules for constants. With
    ``dynamic=True`` it takes others for sizes that may differ from call to call.

    local: thread-local state, whose ``executor`` the model's blocks use.
    layout: layout of the model.
    gates: the gates of spans of skipped blocks, by `SkippedSpan.key`.
    cache_dtype: dtype of kept features; None keeps each in its own.
    max_error: see `Guards`; None for no limit.
    """

    def __init__(
        self,
        local: Any,
        layout: Layout,
        gates: Mapping[tuple[int, int], Gates],
        cache_dtype: torch.dtype | None,
        max_error: float | None,
    ) -> None:
        super().__init__()
        self.local, self.layout, self.gates = local, layout, gates
        self.cache_dtype, self.max_error = cache_dtype, max_error


class TracedConstants(nn.Module):
    """The step of a traced function, whose numbers are constants of its graph."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step


TracedStep = Callable[..., tuple[Any, StepOutputs]]
"""``run(context, forward, args, kwargs, inputs)``: the model's output, ``forward(*args, **kwargs)``, and the step's."""
Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
StepKey = tuple[tuple[Site, ...], tuple[Op, ...], bool, frozenset[int], frozenset[int]]
"""All that a traced step depends on.

Sites, their operations without slots and weights, whether it is guarded, and the blocks where spans end or that are one
site.
"""


class Graphs:
    """The steps of one session as pure functions.

    layout: layout of the model.
    traced: the functions of the model, over all of its sessions. Each has a code object with a name of its own. The
        compiler counts recompilations by code object and gives up after a few, and takes sizes that differ under one
        name for dynamic ones.
    guarded: whether estimates are checked, see `Guards.max_error`; False by default.
    """

    def __init__(self, layout: Layout, traced: dict[StepKey, TracedStep], guarded: bool = False) -> None:
        self._layout, self._traced, self._guarded = layout, traced, guarded
        self._known: dict[tuple[Step, Compiler | None], TracedStep] = {}

    def of(self, step: Step, compiler: Compiler | None = None) -> TracedStep:
        """The function of a step, compiled by ``compiler`` if there is one."""
        run = self._known.get((step, compiler))
        if run is None:
            ops = tuple(map(_normalised, step.ops))
            key = self._layout.sites, ops, self._guarded, self._layout.starts, self._layout.whole
            run = self._traced.get(key)
            if run is None:
                run = self._traced[key] = _traced(step_of(ops, self._layout, self._guarded))
            run = self._known[step, compiler] = run if compiler is None else compiler(run)
        return run


_OF_MODELS: WeakKeyDictionary[nn.Module, dict[StepKey, TracedStep]] = WeakKeyDictionary()


def graphs(layout: Layout, guarded: bool = False) -> Graphs:
    """The graphs of the layout's model; guarded: whether estimates are checked."""
    return Graphs(layout, _OF_MODELS.setdefault(layout.model, {}), guarded)


def _normalised(op: Op) -> Op:
    """The operation without its slots, weights and constants: slots are numbered in order of use."""
    place = {slot: number for number, slot in enumerate(op.slots_read)} | {OUT: OUT}
    reads = ((place[op.reads[0][0]], 1.0),) if op.is_reuse else _unweighted(op.reads, place)
    return replace(
        op,
        reads=reads,
        keeps=tuple(KeptSum(0, place[kept.base], _unweighted(kept.adds, place)) for kept in op.keeps),
        frees=(),
        gain=op.gain and "gain",
        shift=(("shift", 1.0),) if op.shift else (),
        choice=replace(op.choice, random=(0, 0, 0)) if op.choice is not None else None,
    )


def _unweighted(terms: Terms, place: Mapping[int, int]) -> Terms:
    return tuple((place[slot], 0.0) for slot, _ in terms)


_NUMBERS = itertools.count()


def _traced(step: Step) -> TracedStep:
    constants = TracedConstants(step)

    def run(
        context: TraceContext, forward: Callable[..., Any], args: Any, kwargs: Any, inputs: StepInputs
    ) -> tuple[Any, StepOutputs]:
        step = constants.step
        store = TracedStore(step, inputs, context.cache_dtype)
        chooser = TokenChooser(context.layout, None, store.random)
        chooser.scores.update(inputs.scores)
        chooser.ages.update(inputs.ages)
        executor = StepExecutor(context.layout, store, chooser, context.gates, context.max_error)
        executor.begin(step, sample_shape(Arguments(args, kwargs)))
        context.local.executor = executor
        output = forward(*args, **kwargs)
        context.local.executor = None
        return output, _outputs(step, inputs, store, executor)

    code = run.__code__.replace(co_name=f"forecache_step_{next(_NUMBERS)}")
    return FunctionType(code, run.__globals__, run.__name__, run.__defaults__, run.__closure__)


def _outputs(step: Step, inputs: StepInputs, store: TracedStore, executor: StepExecutor) -> StepOutputs:
    chooser = executor.chooser
    scores = {key: value for key, value in chooser.scores.items() if key not in inputs.scores}
    choices = enumerate(op.choice for op in step.ops)
    ages = {site: chooser.ages[site] for site, choice in choices if choice is not None and choice.keeps_ages}
    return StepOutputs(store.kept, scores, ages, executor.missed(), executor.fallbacks)


class TracedStore:
    """The store of a traced step: features come from its inputs, and nothing is counted or freed.

    kept: see `StepOutputs`.
    """

    def __init__(self, step: Step, inputs: StepInputs, cache_dtype: torch.dtype | None) -> None:
        self.kept: dict[int, list[tuple[Tensor, torch.dtype]]] = {}
        self._inputs, self._cache_dtype = inputs, cache_dtype
        self._weights = _weights_of_sites(step, inputs)

    def read(self, site: int, slot: int) -> Tensor:
        feature, dtype = self._inputs.features[site][slot], self._inputs.dtypes[site]
        return feature if dtype is None else restored(feature, dtype, self._cache_dtype)

    def read_in_turn(self, places: Sequence[tuple[int, int]]) -> Iterable[Tensor]:
        return [self.read(site, slot) for site, slot in places]

    def weighted_sum(self, site: int, op: Op) -> Tensor:
        if op.is_reuse:
            return self.read(site, op.reads[0][0])
        (first, _), *rest = [(self.read(site, slot), weight) for slot, weight in op.reads]
        weight, *weights = self._weights[site]
        wide = torch.promote_types(first.dtype, torch.float32)
        total = first.to(wide) * weight
        for (feature, _), weight in zip(rest, weights, strict=False):
            total = total + feature.to(wide) * weight
        return total.to(first.dtype)

    def weights(self, site: int, op: Op) -> Sequence[Tensor]:
        return self._weights.get(site, ())

    def gain(self, site: int, op: Op, like: Tensor) -> Tensor:
        gain, _ = self._inputs.constants[site]
        assert gain is not None
        return gain

    def shift(self, site: int, op: Op, like: Tensor) -> Tensor:
        _, shift = self._inputs.constants[site]
        assert shift is not None
        return shift

    def random(self, site: int, choice: TokenChoice, like: Tensor) -> Tensor:
        return self._inputs.random[site]

    def weighted_gates(self, span: SkippedSpan, gates: Sequence[Gate] | Tensor) -> Iterable[Gate] | Tensor:
        weighted = []
        for branch, (site, op) in enumerate(zip(span.sites, span.ops, strict=True)):
            if span.slots_added[branch] is None:
                continue
            if op.is_reuse:
                weighted.append(gates[branch])
            else:
                weighted += [times(gates[branch], weight) for weight in self._weights[site]]
        return weighted

    def gated_shifts(self, span: SkippedSpan, gates: Tensor, like: Tensor) -> Tensor | None:
        return None  # the compiler fuses them

    def keep_as_is(self, site: int, op: Op, slot: int, output: Tensor) -> bool:
        return False

    def keep(self, site: int, op: Op, sums: Sequence[Tensor]) -> None:
        if sums:
            self.kept[site] = [(rounded(total, self._cache_dtype), total.dtype) for total in sums]

    def free(self, places: Sequence[tuple[int, int]]) -> None:
        pass


def _weights_of_sites(step: Step, inputs: StepInputs) -> dict[int, Sequence[Tensor]]:
    """The weights of every site that has some."""
    counts = {site: len(op.weights) for site, op in enumerate(step.ops) if op.weights}
    if inputs.weights is None or not counts:
        return {}
    numbers = inputs.weights.unbind()
    firsts = [sum(list(counts.values())[:index]) for index in range(len(counts))]
    return {site: numbers[first : first + count] for (site, count), first in zip(counts.items(), firsts, strict=True)}


def step_inputs(step: Step, cache: FeatureCache, chooser: TokenChooser) -> StepInputs:
    """The inputs of a traced step, read from the cache of its lane."""
    ops = step.ops
    entries = [[cache.entry(site, slot) for slot in op.slots_read] for site, op in enumerate(ops)]
    arrived = iter(cache.storage.all([entry for own in entries for entry in own]))
    features = tuple(tuple(next(arrived) for _ in own) for own in entries)
    dtypes = tuple(own[0].cast if own and own[0] else None for own in entries)
    first = next((own[0] for own in features if own), None)
    weights = cache.constants.weights(step.weights, first.device) if first is not None and step.weights else None
    constants, random = {}, {}
    for site, (op, own, dtype) in enumerate(zip(ops, features, dtypes, strict=True)):
        if op.gain is not None or op.shift:
            like = own[0] if dtype is None else restored(own[0], dtype, cache.storage.dtype)
            gain = None if op.gain is None else cache.gain(site, op, like)
            constants[site] = gain, cache.shift(site, op, like) if op.shift else None
        if op.choice is not None and op.choice.score is None:
            random[site] = cache.random(site, op.choice, own[0])
    choices = {site: op.choice for site, op in enumerate(ops) if op.choice is not None}
    scores = {
        choice.score: chooser.scores[choice.score] for choice in choices.values() if choice.score in chooser.scores
    }
    ages = {site: chooser.ages[site] for site, choice in choices.items() if choice.reads_ages}
    return StepInputs(features, dtypes, weights, constants, random, ages, scores)


def keep_outputs(outputs: StepOutputs, cache: FeatureCache, executor: StepExecutor) -> None:
    """Keep the outputs of a traced step in the cache of its lane, and free what no later step reads."""
    step, meter = executor.step, cache.meter
    new = sum(feature.nbytes for sums in outputs.kept.values() for feature, _ in sums)
    meter.peak = max(meter.peak, meter.held + new)  # the step holds what it reads until it ends
    for site, op in enumerate(step.ops):
        sums = outputs.kept.get(site, ())
        cache.keep_stored(site, op, (cache.storage.put(own_memory(total), dtype) for total, dtype in sums))
    scores = {key: own_memory(scores_BN) for key, scores_BN in outputs.scores.items()}
    ages = {site: own_memory(age_BN) for site, age_BN in outputs.ages.items()}
    executor.chooser.update(step.ops, scores, ages)
    if outputs.fallbacks is not None:
        count = own_memory(outputs.fallbacks)
        executor.fallbacks = count if executor.fallbacks is None else executor.fallbacks + count
    meter.peak = max(meter.peak, meter.held)


def own_memory(output: Tensor) -> Tensor:
    """An output of a graph in memory of its own, whose version tells of writes.

    The replay of a CUDA graph overwrites the graph's outputs, and inference tensors have no version.
    """
    if not (output.is_cuda or output.is_inference()):
        return output
    with torch.inference_mode(False):
        return output.clone()
