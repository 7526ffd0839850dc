"""The features that are still alive, of every site in one lane, and the estimates read from them.

B batch, N tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from forecache._errors import RunError
from forecache.adapters import OWN, Gate, Gates, Layout, Own, Streams, add_all, add_up
from forecache.choosing import Chooser, Meter
from forecache.guards import limited
from forecache.lent import Lent, Made
from forecache.liveness import Choice, Op, slots
from forecache.placed import Placed
from forecache.program import INSIDE, Program, Run, Step
from forecache.selection import Call
from forecache.shelf import Kept, Shelf, combine, plus
from forecache.states import OUT, Shift


class Past(ABC):
    """What sites gave out in the steps before, and what they give out in this one.

    layout: of the model. chooser: for partial cells. gates: of runs of skipped blocks. max_error: of estimates, and
    ``fallen`` how many of those lay beyond it, so far.
    """

    def __init__(
        self,
        layout: Layout,
        chooser: Chooser,
        gates: Mapping[tuple[int, int], Gates],
        max_error: float | None,
    ) -> None:
        self.fallen: Tensor | None = None
        self._chooser = chooser
        self._max_error = max_error
        self._gates = gates
        self._streams = layout.streams
        self._spans = layout.spans
        self._step: Step
        self._done: list[bool] = []

    def value(self, site: int, compute: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """What the site gives out in this call: ``compute(*args, **kwargs)`` or the estimate of its cell."""
        if self._done[site]:
            raise RunError(f"Site number {site} ran twice in one model call: it cannot be cached, choose other sites.")
        self._done[site] = True
        op = self._step.ops[site]
        output = self._estimate(site, op) if op.reads else compute(*args, **kwargs)
        if op.choice is not None:
            output = self._chooser.amended(site, op.choice, output, Call(compute, args, kwargs))
        for importance in op.scored:
            self._chooser.score(site, importance, output, Call(compute, args, kwargs))
        self._keep(site, op, output)
        return output

    def collapsed(
        self, block: int, streams: Streams, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Streams | Own | None:
        """What a block hands on that is skipped: the first of a run speaks for all. Others as in `Step`: OWN, None."""
        run = self._step.runs[block]
        if run is None or run is INSIDE:
            return None if run is None else streams
        sites = self._spans[block] if run is OWN else run.sites
        if any(self._done[sites.start : sites.stop]):
            raise RunError(f"Block number {block} ran twice in one model call: it cannot be cached.")
        self._done[sites.start : sites.stop] = [True] * len(sites)
        if run is OWN:
            return OWN
        # patch embeddings lie the other way round
        totals = tuple(stream.clone(memory_format=torch.contiguous_format) for stream in streams)
        self._add(run, totals, self._gates[run.key](*args, **kwargs))
        return totals

    def missed(self) -> int | None:
        """The first site that did not run in this call, if any."""
        return self._done.index(False) if False in self._done else None

    def _add(self, run: Run, totals: Streams, gates: Sequence[Gate] | Tensor) -> None:
        """Add the gated estimates of a run of skipped blocks to the streams, in place; gates: one a branch."""
        terms = iter(self._weighted(run, gates))
        for site, op, slots_read, gate in zip(run.sites, run.ops, run.sums, gates, strict=True):
            if slots_read is None:
                estimate_BND = self._estimate(site, op)
                add_up(totals, self._streams[site], estimate_BND, gate)
                self._keep(site, op, estimate_BND)
                continue
            for slot in slots_read:
                add_up(totals, self._streams[site], self._feature(site, slot), next(terms))
            if op.frees:
                self._keep(site, op, None)
        if run.shifted:
            self._add_shifts(run, totals, gates)

    def _add_shifts(self, run: Run, totals: Streams, gates: Sequence[Gate] | Tensor) -> None:
        """Those of a run's sites, gated; where they are one value a channel, in one pass over a stream."""
        offsets: dict[int, Tensor] = {}
        for branch in run.shifted:
            site, op, gate = run.sites[branch], run.ops[branch], gates[branch]
            (stream,) = self._streams[site]
            shift = self._shift(site, op.shift, totals[stream])
            if shift.ndim > 1:
                add_up(totals, (stream,), shift, gate)
                continue
            gated = shift * (gate[0] if isinstance(gate, tuple) else gate)
            offsets[stream] = offsets[stream] + gated if stream in offsets else gated
        for stream, offset in offsets.items():
            totals[stream].add_(offset)

    def _estimate(self, site: int, op: Op) -> Tensor:
        total = self._combined(site, op)
        if op.gain is not None:
            total = torch.addcmul(total, total, self._gain(site, op.gain, total))
        if op.shift:
            total = total + self._shift(site, op.shift, total)
        if self._max_error is None or (op.is_reuse and op.gain is None and not op.shift):
            return total
        total, fallen = limited(total, self._feature(site, op.reads[0][0]), self._max_error)
        self.fallen = fallen if self.fallen is None else self.fallen + fallen
        return total

    def _sums(self, site: int, op: Op, output: Tensor, weights: Sequence[float | Tensor]) -> list[Tensor]:
        """What is kept after this step; weights: of the operation, `Op.numbers`."""
        left = iter(weights[len(weights) - sum(len(each.adds) for each in op.keeps) :])

        def given(slot: int) -> Tensor:
            return output if slot == OUT else self._feature(site, slot)

        return [plus(given(each.base), [(given(slot), next(left)) for slot, _ in each.adds]) for each in op.keeps]

    @abstractmethod
    def _feature(self, site: int, slot: int) -> Tensor:
        """A kept feature in the dtype that it had."""

    @abstractmethod
    def _combined(self, site: int, op: Op) -> Tensor:
        """The weighted sum of what a cell reads."""

    @abstractmethod
    def _gain(self, site: int, name: str, like: Tensor) -> Tensor:
        """A cell's gain for a feature like this one, (B, N, D)."""

    @abstractmethod
    def _shift(self, site: int, shift: Shift, like: Tensor) -> Tensor:
        """A cell's shift for a feature like this one, (B, N, D)."""

    @abstractmethod
    def _weighted(self, run: Run, gates: Sequence[Gate] | Tensor) -> Sequence[Gate] | Tensor:
        """The gates of a run times the weights of its features, one a feature."""

    @abstractmethod
    def _keep(self, site: int, op: Op, output: Tensor | None) -> None:
        """Let go of what was read for the last time, and keep what later steps read; output: None for nothing."""


class History(Past):
    """The kept features of one lane: per site, as many slots as its row of the plan ever fills at once.

    layout, program: of the model and plan. meter: shared by the lanes of a thread. placed: the plan's constants, and
    how and where features are kept.
    """

    def __init__(self, layout: Layout, program: Program, meter: Meter, placed: Placed) -> None:
        super().__init__(layout, Chooser(layout, meter, self._random), program.gates, placed.max_error)
        self._shelf = Shelf(placed.cache_dtype, placed.cache_device)
        self._slots: list[list[Kept | None]] = [[None] * slots(row) for row in program.rows]
        self._meter = meter
        self._placed = placed

    def begin(self, step: Step, image: Sequence[int] | None = None) -> None:
        """The next model call does ``step``. image: the shape of the model's input."""
        self._step = step
        self._chooser.image = image
        self._done = [False] * len(step.ops)

    def lend(self) -> Lent:
        """What the step that began reads."""
        ops = self._step.ops
        entries = [[self._slots[site][slot] for slot in op.used] for site, op in enumerate(ops)]
        arrived = iter(self._shelf.all([entry for found in entries for entry in found]))
        features = tuple(tuple(next(arrived) for _ in found) for found in entries)
        dtypes = tuple(found[0].cast if found and found[0] else None for found in entries)
        first = next((found[0] for found in features if found), None)
        numbers = self._step.weights
        weights = self._placed.numbers(numbers, first.device) if first is not None and numbers else None
        constants, random = {}, {}
        for site, (op, found, dtype) in enumerate(zip(ops, features, dtypes, strict=True)):
            if op.gain is not None or op.shift:
                like = found[0] if dtype is None else found[0].to(dtype)
                gain = None if op.gain is None else self._gain(site, op.gain, like)
                constants[site] = gain, self._shift(site, op.shift, like) if op.shift else None
            if op.choice is not None and op.choice.score is None:
                random[site] = self._random(site, op.choice, found[0])
        choices = [op.choice for op in ops if op.choice is not None]
        scores = {
            each.score: self._chooser.scores[each.score] for each in choices if each.score in self._chooser.scores
        }
        ages = {
            site: self._chooser.ages[site] for site, op in enumerate(ops) if op.choice is not None and op.choice.aged
        }
        return Lent(features, dtypes, weights, constants, random, ages, scores)

    def take(self, made: Made) -> None:
        """Keep what the step made that was run as a pure function, and let go of what it read for the last time."""
        new = sum(feature.nbytes for kept in made.kept.values() for feature, _ in kept)
        self._meter.peak = max(self._meter.peak, self._meter.held + new)
        for site, op in enumerate(self._step.ops):
            self._free_all(site, op)
            for each, (feature, dtype) in zip(op.keeps, made.kept.get(site, ()), strict=False):
                # the memory of a CUDA graph's outputs is written again when it is replayed
                self._store(site, each.number, self._shelf.put(feature.clone() if feature.is_cuda else feature, dtype))
        self._chooser.take(self._step.ops, made.scores, made.ages)
        if made.fallen is not None:
            self.fallen = made.fallen.clone() if self.fallen is None else self.fallen + made.fallen
        self._meter.peak = max(self._meter.peak, self._meter.held)

    def clear(self) -> None:
        """Let go of everything."""
        for kept in self._slots:
            for slot, entry in enumerate(kept):
                if entry is not None:
                    self._meter.held -= entry.feature.nbytes
                    kept[slot] = None
        self._chooser.clear()

    def _add(self, run: Run, totals: Streams, gates: Sequence[Gate] | Tensor) -> None:
        if not run.is_sum:
            super()._add(run, totals, gates)
            return
        features = self._shelf.in_turn([self._slots[site][slot] for site, slot in run.reads])
        weighted = self._weighted(run, gates)
        if isinstance(gates, Tensor) and len(totals) == 1:
            add_all(totals[0], features, weighted)
        else:
            for (site, _), feature_BND, gate in zip(run.reads, features, weighted, strict=True):
                add_up(totals, self._streams[site], feature_BND, gate)
        for site, slot in run.frees:
            self._free(site, slot)
        if run.shifted:
            self._add_shifts(run, totals, gates)
        self._meter.peak = max(self._meter.peak, self._meter.held)

    def _add_shifts(self, run: Run, totals: Streams, gates: Sequence[Gate] | Tensor) -> None:
        """Those of all branches at once, where their gates came at once."""
        offset = self._placed.offset(run, gates, totals[0]) if isinstance(gates, Tensor) and len(totals) == 1 else None
        if offset is None:
            super()._add_shifts(run, totals, gates)
        else:
            totals[0].add_(offset)

    def _feature(self, site: int, slot: int) -> Tensor:
        return self._shelf.get(self._slots[site][slot])

    def _combined(self, site: int, op: Op) -> Tensor:
        kept = self._slots[site]
        return combine([self._shelf.get(kept[slot]) for slot, _ in op.reads], op.reads)

    def _gain(self, site: int, name: str, like: Tensor) -> Tensor:
        return self._placed.like(((name, 1.0),), like)

    def _shift(self, site: int, shift: Shift, like: Tensor) -> Tensor:
        return self._placed.like(shift, like)

    def _weighted(self, run: Run, gates: Sequence[Gate] | Tensor) -> Sequence[Gate] | Tensor:
        return gates if run.is_plain else self._placed.weighted(run, gates)

    def _random(self, site: int, choice: Choice, like: Tensor) -> Tensor:
        return self._placed.random(choice.random, like)

    def _keep(self, site: int, op: Op, output: Tensor | None) -> None:
        made = self._sums(site, op, output, op.numbers) if op.keeps and output is not None else ()
        self._free_all(site, op)
        for each, tensor in zip(op.keeps, made, strict=False):
            self._store(site, each.number, self._shelf.put(tensor))
        self._meter.peak = max(self._meter.peak, self._meter.held)  # scores and ages are held, too

    def _free_all(self, site: int, op: Op) -> None:
        for slot in op.frees:
            self._free(site, slot)

    def _free(self, site: int, slot: int) -> None:
        """Let go of a feature; whoever read it last has checked that nobody wrote into it."""
        kept = self._slots[site]
        entry = kept[slot]
        assert entry is not None, "a slot was freed before it was filled"
        self._meter.held -= entry.feature.nbytes
        kept[slot] = None

    def _store(self, site: int, slot: int, entry: Kept) -> None:
        self._slots[site][slot] = entry
        self._meter.held += entry.feature.nbytes
