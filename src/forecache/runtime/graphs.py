"""A step as a pure function: kept features in, new ones out. What a model under torch.compile runs.

Books are kept outside of what is compiled. Steps that do the same share a graph, whatever their slots, weights and
constants are: weights are a tensor. A graph belongs to a model for as long as that lives, so that a second session
with such steps finds it compiled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from forecache.models.blocks import Gate, Gates
from forecache.models.layout import Layout
from forecache.parts.grid import Site
from forecache.plan.folding import OUT, Shift, Sum, Terms
from forecache.plan.slots import Choice, Op
from forecache.runtime import calls
from forecache.runtime.calls import Inputs
from forecache.runtime.constants import times
from forecache.runtime.executor import Past
from forecache.runtime.lent import Lent, Made
from forecache.runtime.program import Run, Step, step_of
from forecache.runtime.tokens import Chooser, Meter

Pure = Callable[..., tuple[Any, Made]]
"""``run(place, forward, args, kwargs, lent)``: what ``forward(*args, **kwargs)`` gives out in this step."""


Does = tuple[tuple[Site, ...], tuple[Op, ...], bool]
"""What a step does: an operation for every site, and whether estimates are looked at."""
Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass
class Place:
    """Where a step finds what it does not compute, and how it keeps features.

    local: what carries the current `Past` to a model's blocks.
    """

    local: Any
    layout: Layout
    gates: Mapping[tuple[int, int], Gates]
    cache_dtype: torch.dtype | None
    max_error: float | None


class Graphs:
    """The steps of one session as pure functions.

    layout: of the model. own: the functions of the model, by what they do. Each has a code object of its own, with a
    name that no other model's has: a compiler counts recompilations by code and gives up after a few, and takes sizes
    for dynamic that were others under the same name.
    """

    def __init__(self, layout: Layout, own: dict[Does, Pure], guarded: bool = False) -> None:
        self._layout, self._own, self._guarded = layout, own, guarded
        self._found: dict[tuple[int, Compiler | None], Pure] = {}

    def of(self, number: int, step: Step, compiler: Compiler | None = None) -> Pure:
        """The function of a step, by its number; as ``compiler`` compiles it."""
        run = self._found.get((number, compiler))
        if run is None:
            ops = tuple(map(_normal, step.ops))
            key = self._layout.sites, ops, self._guarded
            run = self._own.get(key)
            if run is None:
                run = self._own[key] = _pure(step_of(ops, self._layout, self._guarded))
            run = self._found[number, compiler] = run if compiler is None else compiler(run)
        return run


_OF_MODELS: WeakKeyDictionary[nn.Module, dict[Does, Pure]] = WeakKeyDictionary()


def graphs(layout: Layout, guarded: bool = False) -> Graphs:
    """The graphs of the layout's model. guarded: of steps whose estimates are looked at."""
    return Graphs(layout, _OF_MODELS.setdefault(layout.model, {}), guarded)


def _normal(op: Op) -> Op:
    """What an operation does, without which slots, weights and constants it does it with."""
    place = {slot: number for number, slot in enumerate(op.used)} | {OUT: OUT}
    reads = ((place[op.reads[0][0]], 1.0),) if op.is_reuse else _unweighted(op.reads, place)
    return replace(
        op,
        reads=reads,
        keeps=tuple(Sum(0, place[each.base], _unweighted(each.adds, place)) for each in op.keeps),
        frees=(),
        gain=op.gain and "gain",
        shift=(("shift", 1.0),) if op.shift else (),
        choice=replace(op.choice, random=(0, 0, 0)) if op.choice is not None else None,
    )


def _unweighted(terms: Terms, place: Mapping[int, int]) -> Terms:
    return tuple((place[slot], 0.0) for slot, _ in terms)


_NUMBERS = itertools.count()


def _pure(step: Step) -> Pure:
    def run(place: Place, forward: Callable[..., Any], args: Any, kwargs: Any, lent: Lent) -> tuple[Any, Made]:
        past = Borrowed(step, place, lent, calls.inputs(args, kwargs))
        place.local.current = past
        output = forward(*args, **kwargs)
        place.local.current = None
        return output, past.made()

    code = run.__code__.replace(co_name=f"forecache_step_{next(_NUMBERS)}")
    return FunctionType(code, run.__globals__, run.__name__, run.__defaults__, run.__closure__)


class Borrowed(Past):
    """The past of one step, lent to it: nothing is counted, freed or kept from here."""

    def __init__(self, step: Step, place: Place, lent: Lent, inputs: Inputs | None) -> None:
        super().__init__(place.layout, Chooser(place.layout, Meter(), self._random), place.gates, place.max_error)
        self._step = step
        self._done = [False] * len(step.ops)
        self._lent = lent
        self._chooser.image = inputs[0] if inputs is not None else None
        self._chooser.scores.update(lent.scores)
        self._chooser.ages.update(lent.ages)
        self._weights = _weights(step, lent)
        self._cache_dtype = place.cache_dtype
        self._kept: dict[int, list[tuple[Tensor, torch.dtype]]] = {}

    def made(self) -> Made:
        """What the step has to keep."""
        scores = {key: value for key, value in self._chooser.scores.items() if key not in self._lent.scores}
        choices = enumerate(op.choice for op in self._step.ops)
        ages = {site: self._chooser.ages[site] for site, choice in choices if choice is not None and choice.ages}
        return Made(self._kept, scores, ages, self.missed(), self.fallen)

    def _feature(self, site: int, slot: int) -> Tensor:
        feature, dtype = self._lent.features[site][slot], self._lent.dtypes[site]
        return feature if dtype is None else feature.to(dtype)

    def _combined(self, site: int, op: Op) -> Tensor:
        if op.is_reuse:
            return self._feature(site, op.reads[0][0])
        (first, _), *rest = [(self._feature(site, slot), weight) for slot, weight in op.reads]
        weight, *weights = self._weights[site]
        wide = torch.promote_types(first.dtype, torch.float32)
        total = first.to(wide) * weight
        for (feature, _), weight in zip(rest, weights, strict=False):
            total = total + feature.to(wide) * weight
        return total.to(first.dtype)

    def _gain(self, site: int, name: str, like: Tensor) -> Tensor:
        gain, _ = self._lent.constants[site]
        assert gain is not None
        return gain

    def _shift(self, site: int, shift: Shift, like: Tensor) -> Tensor:
        _, shifted = self._lent.constants[site]
        assert shifted is not None
        return shifted

    def _weighted(self, run: Run, gates: Sequence[Gate] | Tensor) -> Sequence[Gate] | Tensor:
        weighted = []
        for branch, (site, op) in enumerate(zip(run.sites, run.ops, strict=True)):
            if run.sums[branch] is None:
                continue
            if op.is_reuse:
                weighted.append(gates[branch])
            else:
                weighted += [times(gates[branch], weight) for weight in self._weights[site]]
        return weighted

    def _random(self, site: int, choice: Choice, like: Tensor) -> Tensor:
        return self._lent.random[site]

    def _keep(self, site: int, op: Op, output: Tensor | None) -> None:
        if op.keeps and output is not None:
            made = self._sums(site, op, output, self._weights.get(site, ()))
            self._kept[site] = [(each.to(self._cache_dtype or each.dtype), output.dtype) for each in made]


def _weights(step: Step, lent: Lent) -> dict[int, Sequence[Tensor]]:
    """The weights of every site that has some."""
    counts = {site: len(op.numbers) for site, op in enumerate(step.ops) if op.numbers}
    if lent.weights is None or not counts:
        return {}
    numbers = lent.weights.unbind()
    firsts = [sum(list(counts.values())[:index]) for index in range(len(counts))]
    return {site: numbers[first : first + count] for (site, count), first in zip(counts.items(), firsts, strict=True)}
