"""What a step does with what sites gave out in the steps before: estimates, runs of skipped blocks, what is kept.

B batch, N tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from forecache.errors import RunError
from forecache.models.blocks import OWN, Gate, Gates, Own, Streams, add_up, clipped
from forecache.models.layout import Layout
from forecache.plan.folding import OUT, Shift
from forecache.plan.slots import Op
from forecache.runtime.guards import limited
from forecache.runtime.program import INSIDE, Run, Step
from forecache.runtime.selection import Call
from forecache.runtime.storage import plus
from forecache.runtime.tokens import Chooser


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
        self._streams, self._clips = layout.streams, layout.clips
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
        return tuple(map(clipped, totals)) if self._clips else totals

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
