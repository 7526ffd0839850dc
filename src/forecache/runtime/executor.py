"""The executor of steps: every site is computed or estimated, and spans of skipped blocks are added up at once.

B batch, N tokens, D width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from forecache.errors import RunError
from forecache.models.arguments import Arguments
from forecache.models.blocks import UNTOUCHED, WHOLE, Gate, Gates, Streams, Untouched, Whole, add_all, add_up, clipped
from forecache.models.layout import Layout
from forecache.plan.ops import OUT, Op, TokenChoice
from forecache.runtime.program import COVERED, SkippedSpan, Step
from forecache.runtime.tokens import TokenChooser


class Store(Protocol):
    """Where a step reads kept features and constants, and keeps what later steps read.

    Features have the dtype and device that they had when they were computed.
    """

    def read(self, site: int, slot: int) -> Tensor:
        """The feature in a slot."""
        ...

    def read_in_turn(self, places: Sequence[tuple[int, int]]) -> Iterable[Tensor]:
        """The features in these slots, (site, slot) pairs, in their order of use."""
        ...

    def weighted_sum(self, site: int, op: Op) -> Tensor:
        """The estimate of a cell before corrections, `Op.reads`."""
        ...

    def weights(self, site: int, op: Op) -> Sequence[float | Tensor]:
        """`Op.weights`, as numbers or as tensors."""
        ...

    def gain(self, site: int, op: Op, like: Tensor) -> Tensor:
        """The gain of a cell, for a feature (B, N, D) like this one."""
        ...

    def shift(self, site: int, op: Op, like: Tensor) -> Tensor:
        """The shift of a cell, for a feature (B, N, D) like this one."""
        ...

    def random(self, site: int, choice: TokenChoice, like: Tensor) -> Tensor:
        """Random scores (1, N) for the tokens of a feature (B, N, D) like this one."""
        ...

    def weighted_gates(self, span: SkippedSpan, gates: Sequence[Gate] | Tensor) -> Iterable[Gate] | Tensor:
        """One gate for every feature of the span, times the weight of the feature; gates: one a branch."""
        ...

    def gated_shifts(self, span: SkippedSpan, gates: Tensor, like: Tensor) -> Tensor | None:
        """The sum of a span's gated shifts, for a stream like this one; None if they have to be added one by one."""
        ...

    def keep_as_is(self, site: int, op: Op, slot: int, output: Tensor) -> bool:
        """Free the slots that no later step reads, then keep an output as it is; False where `keep` has to do it."""
        ...

    def keep(self, site: int, op: Op, sums: Sequence[Tensor]) -> None:
        """Free the slots that no later step reads, then keep these sums, one for every `Op.keeps`; () for none."""
        ...

    def free(self, places: Sequence[tuple[int, int]]) -> None:
        """Free slots, (site, slot) pairs, that no later step reads."""
        ...


class StepExecutor:
    """Runs the steps of one generation in one lane.

    layout: layout of the model.
    store: where features are read and kept.
    chooser: chooses the tokens of partial cells.
    gates: the gates of spans of skipped blocks, by `SkippedSpan.key`.
    max_error: see `Guards`; None for no limit.
    step: the step that runs.
    ran: per site, whether it has run in this call.
    open_spans: what spans of blocks that have begun in this call and not ended hold, by number.
    deferred: decides about the step inside of the call, where a block is called; None where the step is known.
    fallbacks: number of estimates that lay beyond ``max_error`` since the number was last taken; None for none.
    """

    def __init__(
        self,
        layout: Layout,
        store: Store,
        chooser: TokenChooser,
        gates: Mapping[tuple[int, int], Gates],
        max_error: float | None,
    ) -> None:
        self.chooser = chooser
        self.store = store
        self.step: Step
        self.deferred: Callable[[int, Sequence[Any], Mapping[str, Any]], bool] | None = None
        self.fallbacks: Tensor | None = None
        self._gates = gates
        self._sites = layout.sites
        self._max_error = max_error
        self._streams, self._clips, self._spans = layout.streams, layout.clips, layout.spans
        self._hands_out = layout.level == "modules"  # the model's own code gets the features
        self._are_modules_own = layout.level == "branches"  # features are what modules return, not differences
        self.ran: list[bool] = []
        self.open_spans: dict[int, Any] = {}

    def begin(self, step: Step, image: Sequence[int] | None) -> None:
        """Start a model call that runs ``step``; image: shape of the model's input."""
        self.step, self.deferred = step, None
        self.chooser.image = image
        self.ran = [False] * len(step.ops)
        self.open_spans = {}

    def missed(self) -> int | None:
        """The first site that did not run, or not to its end, in this call; None if all did."""
        if self.open_spans:
            return self._spans[min(self.open_spans)].start
        return self.ran.index(False) if False in self.ran else None

    def run_site(
        self, site: int, compute: Callable[..., Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """The output of a site in this call: ``compute(*args, **kwargs)`` or an estimate of it."""
        if self.ran[site]:
            raise RunError(
                f"{self._sites[site].name} ran twice in one model call, and a site runs once: choose other sites, "
                "without this module."
            )
        self.ran[site] = True
        op, slot = self.step.ops[site], self.step.as_is[site]
        output = self._estimate(site, op) if op.reads else compute(*args, **kwargs)
        if slot is not None and not self._hands_out and self.store.keep_as_is(site, op, slot, output):
            return output  # as nearly every computed site does
        is_shared = self._hands_out
        if op.keeps and not op.reads and self._are_modules_own and not torch.compiler.is_compiling():
            is_shared = output.is_inference() and _references(output) > REFERENCES  # a buffer of the module
        if op.choice is not None:
            output = self.chooser.correct(site, op.choice, output, compute, Arguments(args, kwargs))
        for importance in op.scored:
            self.chooser.score(site, importance, output, Arguments(args, kwargs))
        self._keep(site, op, output, is_shared)
        return output

    def run_block(
        self, block: int, streams: Streams, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Streams | Untouched | Whole | None:
        """The outputs of a block that is skipped as a whole; UNTOUCHED, WHOLE or None for any other, as in `Step`.

        The first block of a skipped span answers for all of them.
        """
        if self.deferred is not None and self.deferred(block, args, kwargs):
            return UNTOUCHED
        action = self.step.blocks[block]
        if action is None:
            return None
        if action is COVERED:
            return streams
        if action is WHOLE:
            sites = self._spans[block]
            self.ran[sites.start + 1 : sites.stop] = [True] * (len(sites) - 1)
            return WHOLE
        sites = self._spans[block] if action is UNTOUCHED else action.sites
        if any(self.ran[sites.start : sites.stop]):
            name = self._sites[sites.start].name
            name = name.rpartition(".")[0] or name
            raise RunError(
                f"{name} ran twice in one model call, and a block runs once: sample without a plan, or with sites that "
                "run once, forecache.grid(model, num_steps, sites=[...])."
            )
        self.ran[sites.start : sites.stop] = [True] * len(sites)
        if action is UNTOUCHED:
            return UNTOUCHED
        totals = _copies(streams)
        self._add_span(action, totals, self._gates[action.key](*args, **kwargs))
        return tuple(map(clipped, totals)) if self._clips else totals

    def _add_span(self, span: SkippedSpan, totals: Streams, gates: Sequence[Gate] | Tensor) -> None:
        """Add the gated estimates of a span to the streams, in place; gates: one a branch."""
        if span.is_sum:
            self._add_features(span, totals, gates)
        else:
            self._add_estimates(span, totals, gates)
        if not span.shifted:
            return
        offset = None
        if isinstance(gates, Tensor) and len(totals) == 1:
            offset = self.store.gated_shifts(span, gates, totals[0])
        if offset is None:
            self._add_shifts(span, totals, gates)
        else:
            totals[0].add_(offset)

    def _add_features(self, span: SkippedSpan, totals: Streams, gates: Sequence[Gate] | Tensor) -> None:
        """Add a span whose estimates are all added as weighted features, none materialised."""
        features = self.store.read_in_turn(span.reads)
        weighted = self.store.weighted_gates(span, gates)
        if isinstance(gates, Tensor) and len(totals) == 1:
            add_all(totals[0], features, weighted)
        else:
            for (site, _), feature_BND, gate in zip(span.reads, features, weighted, strict=True):
                add_up(totals, self._streams[site], feature_BND, gate)
        self.store.free(span.frees)

    def _add_estimates(self, span: SkippedSpan, totals: Streams, gates: Sequence[Gate] | Tensor) -> None:
        """Add a span of which some estimates are materialised, site by site."""
        weighted = iter(self.store.weighted_gates(span, gates))
        for site, op, slots, gate in zip(span.sites, span.ops, span.slots_added, gates, strict=True):
            if slots is None:
                estimate_BND = self._estimate(site, op)
                add_up(totals, self._streams[site], estimate_BND, gate)
                self._keep(site, op, estimate_BND)
                continue
            for slot in slots:
                add_up(totals, self._streams[site], self.store.read(site, slot), next(weighted))
            self.store.keep(site, op, ())

    def _add_shifts(self, span: SkippedSpan, totals: Streams, gates: Sequence[Gate] | Tensor) -> None:
        """Add a span's gated shifts; those with one value a channel are summed first, for one pass over a stream."""
        offsets: dict[int, Tensor] = {}
        for branch in span.shifted:
            site, op, gate = span.sites[branch], span.ops[branch], gates[branch]
            (stream,) = self._streams[site]
            shift = self.store.shift(site, op, totals[stream])
            if shift.ndim > 1:
                add_up(totals, (stream,), shift, gate)
                continue
            gated = shift * (gate[0] if isinstance(gate, tuple) else gate)
            offsets[stream] = offsets[stream] + gated if stream in offsets else gated
        for stream, offset in offsets.items():
            totals[stream].add_(offset)

    def _estimate(self, site: int, op: Op) -> Tensor:
        total = self.store.weighted_sum(site, op)
        if op.gain is not None:
            total = torch.addcmul(total, total, self.store.gain(site, op, total))
        if op.shift:
            total = total + self.store.shift(site, op, total)
        if self._max_error is None or (op.is_reuse and op.gain is None and not op.shift):
            return total
        total, count = limited(total, self.store.read(site, op.reads[0][0]), self._max_error)
        self.fallbacks = count if self.fallbacks is None else self.fallbacks + count
        return total

    def _keep(self, site: int, op: Op, output: Tensor, is_shared: bool = False) -> None:
        self.store.keep(site, op, self._kept_sums(site, op, output, is_shared) if op.keeps else ())

    def _kept_sums(self, site: int, op: Op, output: Tensor, is_shared: bool) -> list[Tensor]:
        """The tensors that are kept after this step, one for every `Op.keeps`; is_shared: others may write into it."""
        weights = self.store.weights(site, op)
        own = iter(weights[len(weights) - sum(len(kept.adds) for kept in op.keeps) :])

        def tensor(slot: int) -> Tensor:
            return output if slot == OUT else self.store.read(site, slot)

        sums = [added_up(tensor(kept.base), [(tensor(slot), next(own)) for slot, _ in kept.adds]) for kept in op.keeps]
        return [_own(total) for total in sums] if is_shared else sums


def added_up(base: Tensor, terms: Sequence[tuple[Tensor, float | Tensor]]) -> Tensor:
    """A feature plus multiples of others, as a new tensor; without others it is handed out as it is."""
    for number, (feature, weight) in enumerate(terms):
        if isinstance(weight, Tensor):  # in a graph, where products and sums become one pass
            wide = torch.promote_types(base.dtype, torch.float32)
            base = (base.to(wide) + feature.to(wide) * weight).to(base.dtype)
        else:
            base = base.add_(feature, alpha=weight) if number else torch.add(base, feature, alpha=weight)
    return base


def _references(feature: Tensor) -> int:
    """The number of references to a tensor: more than `REFERENCES` if others than the caller have it."""
    return sys.getrefcount(feature)


def _references_to_a_new_one() -> int:
    feature = torch.empty(0)
    return _references(feature)


REFERENCES = _references_to_a_new_one()


def _own(feature: Tensor) -> Tensor:
    """A feature that others have, too; in memory of its own where no version tells of writes into it."""
    if torch.compiler.is_compiling():
        return feature.clone()
    if not feature.is_inference():
        return feature
    with torch.inference_mode(False):
        return feature.clone()


def limited(estimate: Tensor, newest: Tensor, max_error: float) -> tuple[Tensor, Tensor]:
    """The estimate (B, ...), with the samples that are too far from ``newest`` replaced by it, and their number.

    The number is a tensor on the device of the estimate, so that no GPU is waited for.
    """
    every = tuple(range(1, newest.ndim))
    wide = torch.promote_types(newest.dtype, torch.float32)
    error = (estimate - newest).to(wide).square().sum(every, keepdim=True)
    size = newest.to(wide).square().sum(every, keepdim=True)
    near = error <= max_error**2 * size  # False where it is not a number
    return torch.where(near, estimate, newest), (~near).sum()


def _copies(streams: Streams) -> Streams:
    """Copies of streams to add to, all of one batch: FLUX's first block gets one text for several images."""
    batch = max(map(len, streams))
    wholes = (stream if len(stream) == batch else stream.expand(batch, -1, -1) for stream in streams)
    # patch embeddings have another memory layout
    return tuple(stream.clone(memory_format=torch.contiguous_format) for stream in wholes)
