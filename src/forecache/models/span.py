"""Spans: consecutive blocks as one site, from the input of the first to the output of the last.

On a computed step every block runs its own forward. On a skipped one none does: the blocks hand through what they are
given, and the last one gives out the input of the first plus the estimate, whatever the model has added in between.

B batch, N tokens, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from forecache.errors import RunError, SiteError
from forecache.models.arguments import named_arguments
from forecache.models.blocks import (
    Block,
    BlockHandler,
    Branch,
    Forward,
    OpenSpans,
    Residual,
    SiteHandler,
    Streams,
    Untouched,
    Whole,
    clipped,
    joined,
    of_one_batch,
    parted,
    places_of,
    taking,
)
from forecache.models.reads import is_seen
from forecache.models.regional import forward_of
from forecache.models.structure import BlockCall, Observer, learn, parts_of
from forecache.models.writes import Given, Place, Writes
from forecache.parts.grid import Site

Of = Literal["residual", "output"]
"""The feature of a span: what its blocks add to the streams together, or the output of the last."""


@dataclass(eq=False)
class Passage:
    """One call of a span, from its first block to its last.

    before: the streams that the last block gives out, as the first was given them.
    given: the tensors among the arguments of the first block; {} where nothing looks at writes.
    after: the streams that the last block gives out; None where the blocks are computed.
    is_kept: whether the feature of the span is asked for where the blocks are computed.
    copies: in the first call, the tensors that the first block was given, by name.
    observer: in the first call, what sees the streams of the blocks, and what is held of them; None in others.
    ran: the number of blocks that were called so far.
    """

    before: Streams
    given: Mapping[Place, Given]
    after: Streams | None
    is_kept: bool
    copies: Mapping[str, Tensor] = field(default_factory=dict)
    observer: Observer | None = None
    ran: int = 0


@dataclass(frozen=True)
class Span(Block):
    """Consecutive blocks as one site.

    parts: the blocks, each with the streams that it takes and returns; a number stands for the same stream in all.
        Streams that are not known are found in the first call.
    of: whether the feature is what the blocks add to the streams, or the output of the last one.
    clips: whether blocks clip their outputs, in half floats.
    name: of the site, for messages.
    is_known: whether the streams are known and who reads them, so that nothing needs to be seen in the first call.
    """

    parts: tuple[Residual, ...] = ()
    name: str = ""
    is_known: bool = True
    of: Of = "residual"
    clips: bool = False

    @property
    def is_residual(self) -> bool:
        return True

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return tuple(part.module for part in self.parts)

    def forwards(
        self,
        number: int,
        first_site: int,
        on_site: SiteHandler,
        on_block: BlockHandler | None,
        opened: OpenSpans,
    ) -> Iterator[tuple[nn.Module, Forward]]:
        calls = _Calls(self, number, first_site, on_site, on_block, opened)
        for index, part in enumerate(self.parts):
            yield part.module, calls.forward(index)


def span(parts: Sequence[Residual], site: Site, of: Of, clips: bool, is_known: bool) -> Span:
    """Blocks as one site; the arguments are the fields of `Span`."""
    branch = Branch(site.kind, _nothing, None)
    how: dict[str, Any] = {"name": site.name, "of": of, "clips": clips, "is_known": is_known}
    return Span(parts[0].module, _nothing, (branch,), parts=tuple(parts), **how)


class _Calls:
    """The forwards of the blocks of a span, in one session."""

    def __init__(
        self,
        span: Span,
        number: int,
        site: int,
        on_site: SiteHandler,
        on_block: BlockHandler | None,
        opened: OpenSpans,
    ) -> None:
        self._span, self._number, self._site = span, number, site
        self._on_site, self._on_block, self._opened = on_site, on_block, opened
        self._is_seen = span.is_known or is_seen(span.modules)
        self._parts: tuple[Residual, ...] = ()
        if all(part.inputs for part in span.parts):
            self._know(span.parts)

    def _know(self, parts: tuple[Residual, ...]) -> None:
        """The streams of the blocks are these."""
        self._returned = parts[-1].branches[0].streams
        self._takes = [taking(part.module, part.inputs) for part in parts]
        places = [places_of(part.module, part.inputs) for part in parts]
        self._writes = [Writes(places[0]), *(Writes(allowed=inner) for inner in places[1:])]
        self._parts = parts

    def forward(self, index: int) -> Forward:
        """The forward of one of the blocks."""
        own = forward_of(self._span.parts[index].module)
        is_first, is_last = index == 0, index + 1 == len(self._span.parts)

        @functools.wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            passage = self._begin(args, kwargs) if is_first else self._opened().get(self._number)
            if passage is None or passage.ran != index:
                raise RunError(self._out_of_order(index, passage))
            passage.ran += 1
            if passage.after is None:
                run = self._observed if passage.observer is not None else self._computed
                output = run(index, own, args, kwargs)
                return self._end(passage, output) if is_last else output
            if is_last:
                del self._opened()[self._number]
                return self._handed(passage.after)
            return self._handed_through(index, args, kwargs, is_first)

        return forward

    def _begin(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Passage:
        """The passage that starts with the first block; it is skipped where the handler of blocks says so."""
        opened = self._opened()
        if self._number in opened:
            raise RunError(self._out_of_order(0, opened[self._number]))
        if torch.compiler.is_compiling() and not (self._is_seen and self._parts):
            raise RunError(
                f"The streams of {self._span.name} are found in its first call, which is compiled: sample once with "
                "the plan on the model that is not compiled, or register a family (forecache.models.register)."
            )
        if not self._parts:
            opened[self._number] = passage = self._first(args, kwargs)
            return passage
        streams = self._takes[0](args, kwargs)
        before = tuple(streams[stream] for stream in self._returned)
        after = self._skipped(of_one_batch(before), args, kwargs)
        if isinstance(after, tuple):
            passage = Passage(before, {}, after, is_kept=False)
        elif torch.compiler.is_compiling():  # copies of what nothing writes into are left out of the graph
            passage = Passage(tuple(stream.clone() for stream in before), {}, None, after is None)
        else:
            observer = None if self._is_seen else Observer()
            passage = Passage(before, self._writes[0].before(args, kwargs), None, after is None, {}, observer)
        opened[self._number] = passage
        return passage

    def _first(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Passage:
        """The passage of a first call, which is computed, and in which the streams of the blocks are found."""
        action = self._on_block(self._number, (), args, kwargs) if self._on_block is not None else None
        named = named_arguments(self._span.module, args, kwargs)
        copies = {name: value.clone() for name, value in named.items() if isinstance(value, Tensor)}
        return Passage((), {}, None, action is None, copies, Observer())

    def _observed(self, index: int, own: Forward, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The output of a block in the first call of its span."""
        passage, modules = self._opened()[self._number], self._span.modules
        observer = passage.observer
        assert observer is not None
        observer.begin(modules[index], args, kwargs)
        output = self._computed(index, own, args, kwargs) if self._parts else own(*args, **kwargs)
        observer.end(output)
        if index + 1 == len(modules):
            observer.look_for_held(modules)
            refuse_held(observer.calls, self._span.name)
            if not self._parts:
                self._learn(passage, observer)
            self._is_seen = True
        return output

    def _learn(self, passage: Passage, observer: Observer) -> None:
        """The streams of the blocks are those of the first call, which has just run."""
        parts = tuple(parts_of(observer.calls))
        known = parts[0].inputs
        if any(len(part.inputs) != len(known) for part in parts):
            raise SiteError(f"The blocks of {self._span.name} take different numbers of streams: {_streams(parts)}.")
        learn(parts)
        self._know(parts)
        passage.before = tuple(passage.copies[known[stream]] for stream in self._returned)

    def _skipped(
        self, before: Streams, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Streams | Untouched | Whole | None:
        """The streams after the span where it is skipped; what the handler says where it is computed."""
        if self._on_block is None:
            return None
        base_BND = joined(before)
        if self._span.of == "output":
            base_BND = torch.zeros_like(base_BND)
        after = self._on_block(self._number, (base_BND,), args, kwargs)
        if not isinstance(after, tuple):
            return after
        if beyond := set(chain.from_iterable(writes.beyond for writes in self._writes)):
            name = type(self._span.module).__name__
            raise RunError(
                f"A block of {self._span.name}, a {name}, writes into its argument {min(map(str, beyond))}, which is "
                "none of the streams that it returns, so a skipped block would leave that out: name modules inside as "
                "sites."
            )
        return self._apart(after[0], before)

    def _apart(self, total_BND: Tensor, like: Streams) -> Streams:
        """The streams that one feature holds."""
        parts = (part.to(stream.dtype).contiguous() for part, stream in zip(parted(total_BND, like), like, strict=True))
        return tuple(map(clipped, parts)) if self._span.clips else tuple(parts)

    def _handed_through(self, index: int, args: Sequence[Any], kwargs: Mapping[str, Any], is_first: bool) -> Any:
        """What a block that does not run gives out: what it was given; the first one copies of it."""
        part, streams = self._parts[index], self._takes[index](args, kwargs)
        if is_first:  # the model may write into what it gets between blocks
            streams = tuple(stream.clone(memory_format=torch.contiguous_format) for stream in of_one_batch(streams))
        return part.handed(streams)

    def _handed(self, after: Streams) -> Any:
        """The streams after the span in the form in which the last block returns them."""
        last = self._parts[-1]
        streams: list[Any] = [None] * len(last.inputs)
        for stream, value in zip(self._returned, after, strict=True):
            streams[stream] = value
        return last.handed(streams)

    def _computed(self, index: int, own: Forward, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The output of a block that runs; it is watched for writes into its arguments."""
        if torch.compiler.is_compiling() or index == 0:
            return own(*args, **kwargs)
        tensors = self._writes[index].before(args, kwargs)
        output = own(*args, **kwargs)
        self._writes[index].after(tensors)
        return output

    def _end(self, passage: Passage, output: Any) -> Any:
        """The output of a span that has run."""
        del self._opened()[self._number]
        last, before = self._parts[-1], passage.before
        written = self._writes[0].after(passage.given) if passage.given else set()
        if not passage.is_kept:
            return output
        if passage.given:
            before = self._parts[0].as_given(before, passage.given, written)
        before = of_one_batch(before)
        features: list[Tensor] = []

        def compute(*_: Tensor) -> Tensor:
            known = last.streams_of(output, dict(zip(self._returned, before, strict=True)))
            after = [known[stream] for stream in self._returned]
            if self._span.of == "residual":
                after = [value - stream for value, stream in zip(after, before, strict=True)]
            elif len(after) == 1:  # the model gets the output itself
                after = [after[0].clone()]
            features.append(joined(after))
            return features[0]

        y_BND = self._on_site(self._site, compute, joined(before))
        if features and y_BND is features[0]:
            return output
        total_BND = y_BND if self._span.of == "output" else joined(before) + y_BND
        return self._handed(self._apart(total_BND, before))

    def _out_of_order(self, index: int, passage: Passage | None) -> str:
        """The sentence about a block that is not called once, after the one before it."""
        expected = passage.ran if passage is not None else 0
        return (
            f"Block {index} of {self._span.name} ({type(self._span.parts[index].module).__name__}) was called where "
            f"block {expected} should be, and the blocks of a span run once in a model call, in their "
            'order: leave off what skips or repeats blocks, or make a plan with level="blocks".'
        )


def unseen_spans(blocks: Iterable[tuple[int, Block]]) -> dict[str, Sequence[nn.Module]]:
    """The blocks of every span of which it is not known what reads them, by name.

    blocks: those of a layout, each with the index of its first site
    """
    return {
        block.name: block.modules
        for _, block in blocks
        if isinstance(block, Span) and not block.is_known and not is_seen(block.modules)
    }


def refuse_held(calls: Sequence[BlockCall], name: str) -> None:
    """Raises SiteError if something reads what blocks inside of a span return after its last block has run."""
    held = [call for call in calls if call.is_held]
    if held:
        raise SiteError(
            f"Something holds what a {type(held[0].module).__name__} inside of {name} returned when the last block has "
            'run, and a skipped block returns nothing that may be read: take level="blocks", or name the lists of '
            'blocks that are read by blocks alone, blocks=["transformer_blocks"].'
        )


def _streams(parts: Sequence[Residual]) -> str:
    names = dict.fromkeys(f"{type(part.module).__name__} ({', '.join(part.inputs)})" for part in parts)
    return ", ".join(names)


def _nothing(*_: Any, **__: Any) -> Any:
    return None
