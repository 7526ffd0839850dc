"""The features that are still alive, of every site in one lane, and the estimates read from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forecache import selection
from forecache._core import Importance
from forecache._errors import RunError
from forecache.adapters import Gate, Layout, Streams, add_up
from forecache.liveness import Choice, Op, Score, slots
from forecache.program import Run
from forecache.selection import Call, choose


class Kept(NamedTuple):
    """A feature as it is kept, its version then, and the dtype that it had."""

    feature: Tensor
    version: int
    dtype: torch.dtype


@dataclass
class Meter:
    """Bytes held by histories, now and at the peak."""

    held: int = 0
    peak: int = 0


class Placed:
    """A plan's constants and random scores where and as the features are: each is moved once a device and dtype.

    A constant of another shape is refused. cache_dtype: what features are kept in, where it is not their own.
    """

    def __init__(self, constants: Mapping[str, Tensor], cache_dtype: torch.dtype | None = None) -> None:
        self.cache_dtype = cache_dtype
        self._constants = constants
        self._placed: dict[tuple[str, torch.device, torch.dtype, torch.Size], Tensor] = {}
        self._terms: dict[tuple[Run, torch.device], tuple[Tensor, Tensor]] = {}
        self._random: dict[tuple[tuple[int, ...], int, torch.device], Tensor] = {}

    def like(self, name: str, feature: Tensor) -> Tensor:
        """The constant for features like this one, (B, N, D)."""
        key = name, feature.device, feature.dtype, feature.shape[1:]
        placed = self._placed.get(key)
        if placed is None:
            constant = self._constants[name]
            if constant.shape not in (feature.shape[1:], feature.shape[-1:]):
                raise RunError(
                    f"The correction {name} is for features of shape {tuple(constant.shape)}, the model gives "
                    f"{tuple(feature.shape[1:])}: calibrate at this size, or make the plan with per='channel'."
                )
            placed = self._placed[key] = constant.to(feature.device, feature.dtype)
        return placed

    def weighted(self, run: Run, gates: Sequence[Gate] | Tensor) -> Sequence[Gate]:
        """The gates of a run times the weights of its features, one a feature."""
        if not isinstance(gates, Tensor):
            return [_times(gates[branch], weight) for branch, weight in zip(run.index, run.weights, strict=True)]
        key = run, gates.device
        if key not in self._terms:
            shape = (-1, *[1] * (gates.ndim - 1))
            weights = torch.tensor(run.weights, device=gates.device).view(shape)
            self._terms[key] = torch.tensor(run.index, device=gates.device, dtype=torch.long), weights
        index, weights = self._terms[key]
        return (gates.index_select(0, index) * weights).to(gates.dtype).unbind(0)

    def random(self, seed: tuple[int, ...], feature: Tensor) -> Tensor:
        """Random scores (1, N) for the tokens of a feature (B, N, D)."""
        key = seed, feature.shape[1], feature.device
        if key not in self._random:
            self._random[key] = selection.random_scores(seed, feature.shape[1]).to(feature.device)
        return self._random[key]


def _times(gate: Gate, weight: float) -> Gate:
    return tuple(each * weight for each in gate) if isinstance(gate, tuple) else gate * weight


class Chooser:
    """The scores and ages of tokens in one lane, for its partial cells.

    layout: how attention is scored.
    """

    def __init__(self, layout: Layout, meter: Meter, placed: Placed) -> None:
        self._layout, self._meter, self._placed = layout, meter, placed
        self._scores: dict[Score, Tensor] = {}
        self._ages: dict[int, Tensor] = {}
        self.image: Sequence[int] | None = None
        """The shape of the model's input, (B, C, H, W), in this call."""

    def score(self, site: int, importance: Importance, output: Tensor, call: Call) -> None:
        """Keep the scores that this site gives tokens."""
        received = self._layout.received[site] if importance == "attention" else None
        made = selection.score(importance, output) if received is None else received(*call.args, **call.kwargs)
        self._scores[site, importance] = made
        self._meter.held += made.nbytes

    def amended(self, site: int, choice: Choice, estimate_BND: Tensor, call: Call) -> Tensor:
        """The estimate of a partial cell with the chosen tokens computed."""
        if estimate_BND.ndim != 3:
            raise RunError(
                f"A partial cell needs features (batch, tokens, width); {self._layout.sites[site].name} gives "
                f"{tuple(estimate_BND.shape)}."
            )
        tokens = estimate_BND.shape[1]
        count = choice.tokens.count(tokens)
        age_BN = self._ages.pop(site) if choice.aged else None
        self._meter.held -= age_BN.nbytes if age_BN is not None else 0
        index_BK = None
        if 0 < count < tokens:
            index_BK = choose(choice.tokens, self._scores_for(choice, estimate_BND), age_BN, self.image)
        if choice.ages:
            age_BN = estimate_BND.new_zeros(estimate_BND.shape[:2], dtype=torch.float32) if age_BN is None else age_BN
            self._ages[site] = aged = selection.older(age_BN, index_BK, count)
            self._meter.held += aged.nbytes
        for score in choice.drops:
            self._meter.held -= self._scores.pop(score).nbytes
        if index_BK is not None:
            return selection.amend(estimate_BND, index_BK, call)
        return call.compute(*call.args, **call.kwargs) if count else estimate_BND

    def _scores_for(self, choice: Choice, estimate_BND: Tensor) -> Tensor:
        if choice.score is not None:
            return self._scores[choice.score]
        return self._placed.random(choice.random, estimate_BND).expand(len(estimate_BND), -1)

    def clear(self) -> None:
        """Let go of everything."""
        self._meter.held -= sum(each.nbytes for each in (*self._scores.values(), *self._ages.values()))
        self._scores.clear()
        self._ages.clear()


class History:
    """The kept features of one lane: per site, as many slots as its row of the plan ever fills at once.

    layout: of the model. rows: the operations of every site, [site][step]. meter: shared by the lanes of a run. placed:
    the plan's constants, and the dtype to keep features in.
    """

    def __init__(self, layout: Layout, rows: Sequence[Sequence[Op]], meter: Meter, placed: Placed) -> None:
        self._slots: list[list[Kept | None]] = [[None] * slots(row) for row in rows]
        self._done = bytearray(len(rows))
        self._ops: Sequence[Op] = ()
        self._meter = meter
        self._placed = placed
        self._streams = layout.streams
        self._chooser = Chooser(layout, meter, placed)

    def begin(self, ops: Sequence[Op], image: Sequence[int] | None = None) -> None:
        """The next model call does ``ops``, one per site. image: the shape of the model's input."""
        self._ops = ops
        self._chooser.image = image
        self._done = bytearray(len(self._done))

    def value(self, site: int, compute: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """What the site gives out in this call: ``compute(*args, **kwargs)`` or the estimate of its cell."""
        if self._done[site]:
            raise RunError(f"Site number {site} ran twice in one model call: it cannot be cached, choose other sites.")
        self._done[site] = 1
        op, kept = self._ops[site], self._slots[site]
        output = self._estimate(op, kept) if op.reads else compute(*args, **kwargs)
        if op.choice is not None:
            output = self._chooser.amended(site, op.choice, output, Call(compute, args, kwargs))
        for importance in op.scored:
            self._chooser.score(site, importance, output, Call(compute, args, kwargs))
        self._keep(op, kept, output)
        return output

    def collapsed(self, run: Run, given: Streams, gates: Sequence[Gate] | Tensor) -> Streams:
        """The streams plus the gated estimates of a run of skipped blocks; gates: one a branch."""
        if any(self._done[run.sites.start : run.sites.stop]):
            raise RunError(f"Block number {run.blocks.start} ran twice in one model call: it cannot be cached.")
        self._done[run.sites.start : run.sites.stop] = b"\x01" * len(run.sites)
        weighted = gates if run.is_plain else self._placed.weighted(run, gates)
        # patch embeddings lie the other way round
        totals = tuple(stream.clone(memory_format=torch.contiguous_format) for stream in given)
        if run.is_sum:
            features = [(self._streams[site], _read(self._slots[site][slot])) for site, slot in run.reads]
            for (streams, feature_BND), gate in zip(features, weighted, strict=True):
                add_up(totals, streams, feature_BND, gate)
            del features
            for site in run.freeing:
                self._keep(self._ops[site], self._slots[site], None)
            return totals
        terms = iter(weighted)
        for site, op, slots_read, gate in zip(run.sites, run.ops, run.sums, gates, strict=True):
            kept = self._slots[site]
            if slots_read is None:
                estimate_BND = self._estimate(op, kept)
                add_up(totals, self._streams[site], estimate_BND, gate)
                self._keep(op, kept, estimate_BND)
                continue
            for slot in slots_read:
                add_up(totals, self._streams[site], _read(kept[slot]), next(terms))
            if op.frees:
                self._keep(op, kept, None)
        return totals

    def _keep(self, op: Op, kept: list[Kept | None], output: Tensor | None) -> None:
        """Let go of what was read for the last time, and keep the output if a later step reads it."""
        for slot in op.frees:
            self._meter.held -= _checked(kept[slot]).feature.nbytes
            kept[slot] = None
        if op.store is not None and output is not None:
            feature = output.to(self._placed.cache_dtype or output.dtype)
            kept[op.store] = Kept(feature, _version(feature), output.dtype)
            self._meter.held += feature.nbytes
        self._meter.peak = max(self._meter.peak, self._meter.held)

    def _estimate(self, op: Op, kept: Sequence[Kept | None]) -> Tensor:
        total = combine([_read(kept[slot]) for slot, _ in op.reads], op.reads)
        gain = self._placed.like(op.gain, total) if op.gain is not None else None
        shift = self._placed.like(op.shift, total) if op.shift is not None else None
        if gain is not None:
            total = torch.addcmul(total, total, gain)
        return total if shift is None else total + shift

    def missed(self) -> int | None:
        """The first site that did not run in this call, if any."""
        index = self._done.find(0)
        return None if index < 0 else index

    def clear(self) -> None:
        """Let go of everything."""
        for kept in self._slots:
            for slot, entry in enumerate(kept):
                if entry is not None:
                    self._meter.held -= entry.feature.nbytes
                    kept[slot] = None
        self._chooser.clear()


def _version(feature: Tensor) -> int:
    """Goes up with every write into the tensor; inference tensors do not count them."""
    return 0 if feature.is_inference() else feature._version


def _checked(entry: Kept | None) -> Kept:
    assert entry is not None, "a slot was read before it was filled"
    if _version(entry.feature) != entry.version:
        raise RunError(
            "A kept feature was changed in place after its module gave it out, so it cannot be reused: choose sites "
            "whose output the model does not write into, such as the modules inside."
        )
    return entry


def _read(entry: Kept | None) -> Tensor:
    """The feature in the dtype that it had."""
    feature, _, dtype = _checked(entry)
    return feature if feature.dtype is dtype else feature.to(dtype)


def combine(features: Sequence[Tensor], reads: Sequence[tuple[int, float]]) -> Tensor:
    """The weighted sum of features, as a new tensor; a single one is handed out as it is."""
    first, *rest = features
    if not rest:
        return first
    if len(rest) == 1:  # weights sum to one: g1 + (w1 - 1) (g1 - g0), read once
        return torch.lerp(rest[0], first, reads[0][1])
    total = first * reads[0][1]
    for feature, (_, weight) in zip(rest, reads[1:], strict=True):
        total.add_(feature, alpha=weight)
    return total
