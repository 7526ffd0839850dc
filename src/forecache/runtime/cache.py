"""The features that are still alive, of every site in one lane.

B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from forecache.models.blocks import Gate, Streams, add_all, add_up
from forecache.models.layout import Layout
from forecache.plan.folding import Shift
from forecache.plan.slots import Choice, Op, slots
from forecache.runtime.constants import Placed
from forecache.runtime.executor import Past
from forecache.runtime.lent import Lent, Made
from forecache.runtime.program import Program, Run, Step
from forecache.runtime.storage import Kept, Shelf, combine
from forecache.runtime.tokens import Chooser, Meter


def _own(made: Tensor) -> Tensor:
    """What a graph gave out, in memory of its own: that of a CUDA graph's outputs is written again by its replay."""
    return made.clone() if made.is_cuda else made


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
                self._store(site, each.number, self._shelf.put(_own(feature), dtype))
        scores = {key: _own(each) for key, each in made.scores.items()}
        self._chooser.take(self._step.ops, scores, {site: _own(each) for site, each in made.ages.items()})
        if made.fallen is not None:
            self.fallen = _own(made.fallen) if self.fallen is None else self.fallen + made.fallen
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
