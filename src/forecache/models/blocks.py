"""Blocks: residual branches on one or several streams of tokens.

A stream is a sequence of tokens that blocks pass on: those of an image, and in joint models those of a text. A feature
is one tensor; for a branch that adds to several streams, it is the concatenation of their parts.

B batch, N tokens, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Literal, NoReturn, Protocol

import torch
from torch import Tensor, nn

from forecache.errors import ModelError, RunError
from forecache.models.arguments import positions
from forecache.models.regional import forward_of
from forecache.models.writes import Given, Place, Writes

Forward = Callable[..., Any]
Streams = tuple[Tensor, ...]
"""The streams that blocks pass on, each (B, N, D)."""
Gate = Tensor | float | tuple[Tensor | float, ...]
"""The gate of a branch: broadcastable to its feature, a number, or a tuple with one for each of its streams."""
Gates = Callable[..., Sequence[Gate] | Tensor]
"""The gates of a run of blocks, one a branch, from the arguments of a block's forward."""


class SiteHandler(Protocol):
    """Returns the feature of a site: ``compute(*args, **kwargs)``, or an estimate of it."""

    def __call__(self, site: int, compute: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor: ...


class Untouched(Enum):
    """Marks a block of which nothing is skipped or kept: its own forward runs."""

    UNTOUCHED = "untouched"


class Whole(Enum):
    """Marks a block that runs another forward than its branches: it is one site, its output minus its input."""

    WHOLE = "whole"


UNTOUCHED: Literal[Untouched.UNTOUCHED] = Untouched.UNTOUCHED
WHOLE: Literal[Whole.WHOLE] = Whole.WHOLE


class BlockHandler(Protocol):
    """Decides about a whole block: outputs to skip it, UNTOUCHED to run its own forward, WHOLE to run it as one site,
    None to run its sites."""

    def __call__(
        self, block: int, streams: Streams, args: Sequence[Any], kwargs: Mapping[str, Any], /
    ) -> Streams | Untouched | Whole | None: ...


OpenSpans = Callable[[], dict[int, Any]]
"""What spans of blocks hold in the model call in progress, from the first block to the last, by number."""


def gated(x_BND: Tensor, y_BND: Tensor, gate: Any) -> Tensor:
    """x + gate * y."""
    return gate * y_BND + x_BND


LARGEST = 65504
"""Largest half float, to which some published models clip."""


def clipped(x_BND: Tensor) -> Tensor:
    """Half floats clipped to their range; other dtypes unchanged."""
    return x_BND.clip(-LARGEST, LARGEST) if x_BND.dtype == torch.float16 else x_BND


@dataclass(frozen=True)
class Branch:
    """A residual branch of a block: ``x + gate(condition) * compute(x, condition)``.

    kind: last part of the site's name, such as ``attn``
    compute: norm, modulation and module, up to but without the gate, from the branch's streams; (B, N, D) -> (B, N, D)
    gate: the gate of the current step, broadcastable to (B, N, D), or one for each stream; None adds the branch ungated
    tokenwise: every token is computed by itself, so that ``compute`` of some tokens (B, K, D) is possible
    received: of an attention, what every token receives from all queries, mean over heads, (B, N), float32
    streams: indices of the block's streams that it adds to
    reads: indices of the streams that it is computed from; None for ``streams``
    add: (x, y, gate) -> the new stream, bit for bit as the model computes it
    replaces: ``compute`` gives the new stream instead, of which the feature is what is new in it; without a gate, on
        one stream
    """

    kind: str
    compute: Callable[..., Tensor]
    gate: Callable[[Any], Any] | None
    tokenwise: bool = False
    received: Callable[[Tensor, Any], Tensor] | None = None
    streams: tuple[int, ...] = (0,)
    reads: tuple[int, ...] | None = None
    add: Callable[[Tensor, Tensor, Any], Tensor] = gated
    replaces: bool = False

    def run(self, site: int, on_site: SiteHandler, streams: list[Tensor], condition: Any) -> None:
        """Compute the branch or estimate it, as the handler says, and add it to its streams, in the list."""
        given_BND = [streams[stream] for stream in self.reads or self.streams]
        if not self.replaces:
            self.added(streams, on_site(site, self.compute, *given_BND, condition), condition)
            return
        outputs: list[tuple[Tensor, Tensor]] = []

        def difference(x_BND: Tensor, condition: Any) -> Tensor:
            output_BND = self.compute(x_BND, condition)
            outputs.append((output_BND, output_BND - x_BND))
            return outputs[-1][1]

        y_BND = on_site(site, difference, *given_BND, condition)
        if outputs and y_BND is outputs[-1][1]:
            streams[self.streams[0]] = outputs[-1][0]
        else:
            self.added(streams, y_BND, condition)

    def added(self, streams: list[Tensor], y_BND: Tensor, condition: Any) -> None:
        """Add the branch, whose ungated output is y, to its streams, in the list."""
        gate = self.gate(condition) if self.gate is not None else None
        if isinstance(gate, Tensor) and len(self.streams) == 1:  # nearly always, once a computed branch
            streams[self.streams[0]] = self.add(streams[self.streams[0]], y_BND, gate)
            return
        for stream, part, factor in _parts(self.streams, streams, y_BND, gate):
            x_BND = streams[stream]
            streams[stream] = x_BND + part if factor is None else self.add(x_BND, part, factor)


def add_all(total_BND: Tensor, features: Iterable[Tensor], gates: Iterable[Any]) -> None:
    """Add gated features to one stream, in place; gates: one a feature, tensors that are broadcastable to it."""
    for feature_BND, gate in zip(features, gates, strict=True):
        total_BND.addcmul_(feature_BND, gate)


def add_up(totals: Sequence[Tensor], streams: Sequence[int], feature_BND: Tensor, gate: Any) -> None:
    """Add a gated feature to its streams, in place."""
    if isinstance(gate, Tensor) and len(streams) == 1:  # nearly always, once a feature and step
        totals[streams[0]].addcmul_(feature_BND, gate)
        return
    for stream, part, factor in _parts(streams, totals, feature_BND, gate):
        if isinstance(factor, Tensor):
            totals[stream].addcmul_(part, factor)
        else:
            totals[stream].add_(part, alpha=factor)


def _parts(
    streams: Sequence[int], given: Sequence[Tensor], feature_BND: Tensor, gate: Any
) -> Iterable[tuple[int, Tensor, Any]]:
    """The (stream, part, gate) of every stream that a feature adds to."""
    if len(streams) == 1:
        return [(streams[0], feature_BND, gate[0] if isinstance(gate, tuple) else gate)]
    parts = parted(feature_BND, [given[stream] for stream in streams])
    return zip(streams, parts, gate if isinstance(gate, tuple) else [gate] * len(parts), strict=True)


def parted(feature_BND: Tensor, wholes: Sequence[Tensor]) -> list[Tensor]:
    """The parts of one feature, each like its stream."""
    if len(wholes) == 1:
        return [feature_BND]
    rows = feature_BND.split([_rows(whole, feature_BND.shape[2]) for whole in wholes], 1)
    return [_like(part, whole) for part, whole in zip(rows, wholes, strict=True)]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One feature from the parts of several streams; narrower ones are packed into rows of the first one's width."""
    if len(parts) == 1:
        return parts[0]
    width = parts[0].shape[2]
    rows = [part if part.shape[2] == width else _filled(part, width) for part in parts]
    return torch.cat(rows, 1)


def _rows(part: Tensor, width: int) -> int:
    return part.shape[1] if part.shape[2] == width else -(-part.shape[1] * part.shape[2] // width)


def _filled(part: Tensor, width: int) -> Tensor:
    flat = part.flatten(1)
    return nn.functional.pad(flat, (0, -flat.shape[1] % width)).unflatten(1, (-1, width))


def _like(rows: Tensor, whole: Tensor) -> Tensor:
    """Rows unpacked into tokens of a stream's width."""
    if rows.shape[2] == whole.shape[2]:
        return rows
    return rows.flatten(1)[:, : whole[0].numel()].unflatten(1, whole.shape[1:])


def of_one_batch(streams: Streams) -> Streams:
    """Streams of one batch: FLUX's first block gets one text for several images."""
    batch = max(map(len, streams))
    return tuple(stream if len(stream) == batch else stream.expand(batch, -1, -1) for stream in streams)


@dataclass(frozen=True)
class Block:
    """A block as a sequence of branches.

    module: the block
    condition: arguments of its forward -> the values that its branches share
    branches: in order of execution
    weights: the tensors that gates are computed from, if those of many blocks are stacked
    copies: stacking copies these tensors, instead of reading them in place
    native: the class of diffusers whose forward the branches write out; None for the class of the module
    inlined: paths of modules in it that the branches do not call, because they write out their forwards, too
    inputs: the names of the streams in the signature of the forward
    outputs: the indices of the streams that it returns, None for an empty one; a single stream is not in a tuple
    is_packed: a single stream is in a tuple, too
    """

    module: nn.Module
    condition: Callable[..., Any]
    branches: tuple[Branch, ...]
    weights: Callable[[], Iterable[Tensor]] = tuple
    inputs: tuple[str, ...] = ("hidden_states",)
    outputs: tuple[int | None, ...] = (0,)
    copies: bool = False
    native: str | None = None
    inlined: tuple[str, ...] = ()
    is_packed: bool = False

    @property
    def is_residual(self) -> bool:
        """Whether its own forward runs wherever it is computed."""
        return False

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that are skipped with it, in order of execution."""
        return (self.module,)

    def forwards(
        self,
        number: int,
        first_site: int,
        on_site: SiteHandler,
        on_block: BlockHandler | None,
        opened: OpenSpans,
    ) -> Iterable[tuple[nn.Module, Forward]]:
        """The forwards of its modules with every site left to ``on_site``; see `forward`.

        opened: the spans that have begun and not ended in the model call in progress, by number
        """
        return [(self.module, self.forward(number, first_site, on_site, on_block))]

    def forward(self, number: int, first_site: int, on_site: SiteHandler, on_block: BlockHandler | None) -> Forward:
        """The block's forward with every branch left to ``on_site``, unless ``on_block`` decides about the whole block.

        number: index of the block
        first_site: index of the site of its first branch
        """
        own = forward_of(self.module)
        take = taking(self.module, self.inputs)
        whole = residual(self.module, self.inputs, self.outputs).forward(number, first_site, on_site, None)

        @functools.wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            streams = take(args, kwargs)
            if on_block is not None and (after := on_block(number, streams, args, kwargs)) is not None:
                if isinstance(after, tuple):
                    return self.handed(after)
                return own(*args, **kwargs) if after is UNTOUCHED else whole(*args, **kwargs)
            condition, now = self.condition(*args, **kwargs), list(streams)
            for site, branch in enumerate(self.branches, first_site):
                branch.run(site, on_site, now, condition)
            return self.handed(now)

        return forward

    def handed(self, streams: Sequence[Tensor]) -> Any:
        """The streams in the form in which the block's forward returns them."""
        if self.outputs == (0,) and not self.is_packed:  # a call that every skipped block makes
            return streams[0]
        values = [None if stream is None else streams[stream] for stream in self.outputs]
        return tuple(values) if len(values) > 1 or self.is_packed else values[0]


@dataclass(frozen=True)
class Residual(Block):
    """A block as one site, its residual: output minus input, of all its streams.

    A computed block returns its own output; a skipped one returns its input plus the estimate.
    """

    @property
    def is_residual(self) -> bool:
        return True

    def forward(self, number: int, first_site: int, on_site: SiteHandler, on_block: BlockHandler | None) -> Forward:
        own = forward_of(self.module)
        take = taking(self.module, self.inputs)
        writes = Writes(places_of(self.module, self.inputs))
        (branch,) = self.branches

        @functools.wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            streams = take(args, kwargs)
            if on_block is not None and (given := on_block(number, streams, args, kwargs)) is not None:
                if not isinstance(given, tuple):
                    return own(*args, **kwargs)
                if writes.beyond:
                    self._refuse(writes.beyond)
                return self.handed(given)
            outputs: list[tuple[Any, Tensor]] = []

            def compute(*_: Tensor) -> Tensor:
                if torch.compiler.is_compiling():  # copies of what nothing writes into are left out of the graph
                    before = tuple(stream.clone() for stream in streams)
                    output = own(*args, **kwargs)
                else:
                    tensors = writes.before(args, kwargs)
                    output = own(*args, **kwargs)
                    written = writes.after(tensors)
                    before = self.as_given(streams, tensors, written)
                residual_BND = self._residual(output, before)
                outputs.append((output, residual_BND))
                return residual_BND

            y_BND = on_site(first_site, compute, *streams)
            if outputs and y_BND is outputs[0][1]:
                return outputs[0][0]
            if writes.beyond:
                self._refuse(writes.beyond)
            now = list(streams)
            branch.added(now, y_BND, None)
            return self.handed(now)

        return forward

    def as_given(self, streams: Streams, tensors: Mapping[Place, Given], written: Set[Place]) -> Streams:
        """The streams as they were before the block ran, which has written into some of the tensors."""
        if not written and all(given.copied is None for given in tensors.values()):
            return streams
        copies = {id(given.tensor): given.copied for given in tensors.values()}
        unknown = {id(tensors[place].tensor) for place in written if tensors[place].copied is None}
        if any(id(stream) in unknown for stream in streams):
            raise RunError(
                f"A {type(self.module).__name__} wrote into its input, which it did not at the call before, so what it "
                "added to it is not known: sample again, and a copy of its input will be kept while it runs."
            )
        return tuple(stream if (copied := copies.get(id(stream))) is None else copied for stream in streams)

    def _residual(self, output: Any, before: Streams) -> Tensor:
        """What the block added to its streams, from its output and the streams as they were before."""
        after = self.streams_of(output, before)
        return joined([after[stream] - before[stream] for stream in self.branches[0].streams])

    def streams_of(self, output: Any, before: Sequence[Tensor] | Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The streams that the block returned, by number; raises ModelError if they are not those that it is given."""
        values = output if isinstance(output, tuple) else (output,)
        after = {stream: value for stream, value in zip(self.outputs, values, strict=False) if stream is not None}
        is_tuple = self.is_packed or len(self.outputs) > 1
        is_alike = isinstance(output, tuple) == is_tuple and len(values) == len(self.outputs)
        if not is_alike or not all(
            isinstance(value, Tensor) and _is_like(value, before[stream]) for stream, value in after.items()
        ):
            names = ", ".join("nothing" if stream is None else self.inputs[stream] for stream in self.outputs)
            raise ModelError(
                f"A {type(self.module).__name__} is expected to return {names}, each in the shape of its input, and "
                f"returned {_described(output)}, so what it adds to them is not known: leave off what changes the "
                "output of its forward, or name modules inside as sites."
            )
        if len(after) > 1 and any(value.ndim != 3 for value in after.values()):
            raise ModelError(
                f"A {type(self.module).__name__} returns several streams, {_described(output)}; those are cached "
                "together if each is (batch, tokens, width): name modules inside as sites."
            )
        return after

    def _refuse(self, written: Set[Place]) -> NoReturn:
        """Raises RunError: skipping the block would leave out what it writes into other arguments than its streams."""
        raise RunError(
            f"A {type(self.module).__name__} writes into its argument {min(map(str, written))}, which is none of the "
            f"streams that it returns ({', '.join(self.inputs)}), so a skipped block would leave that out: name "
            "modules inside as sites."
        )


def residual(
    module: nn.Module, inputs: tuple[str, ...], outputs: tuple[int | None, ...], is_packed: bool = False
) -> Residual:
    """A block as one site of kind ``block``."""
    streams = tuple(sorted(stream for stream in outputs if stream is not None))
    branch = Branch("block", _nothing, None, streams=streams)
    return Residual(module, _nothing, (branch,), inputs=inputs, outputs=outputs, is_packed=is_packed)


def described(modules: Iterable[nn.Module], native: str, describe: Callable[[Any], Block]) -> list[Block]:
    """The blocks of a model whose branches ``describe`` knows, also where others have put a wrapper around a block.

    native: the class of diffusers that ``describe`` is for.

    Raises ModelError for a block of another class that has not the parts of this one, and has no such block inside.
    """
    return [_described_block(module, native, describe) for module in modules]


def _described_block(module: nn.Module, native: str, describe: Callable[[Any], Block]) -> Block:
    inside = _of_class(module, native)
    try:
        block = describe(inside)
        tuple(block.weights())
        for path in block.inlined:
            inside.get_submodule(path)
    except AttributeError as error:
        raise ModelError(
            f"A block of this model, a {type(module).__name__}, has not the parts of a {native} ({error}): something "
            "has replaced it. Put the block back, patch its forward instead, or name modules as sites."
        ) from error
    return block if inside is module else replace(block, module=module, inlined=())


def _of_class(module: nn.Module, native: str) -> nn.Module:
    """The block of this class in a wrapper; the module itself if it is one, or has none inside."""
    blocks = [part for part in module.modules() if any(kind.__name__ == native for kind in type(part).__mro__)]
    is_compiled = hasattr(module, "_orig_mod")
    return blocks[0] if len(blocks) == 1 and not is_compiled else module


def _nothing(*_: Any, **__: Any) -> Any:
    return None


def _is_like(value: Tensor, before: Tensor) -> bool:
    """Whether a stream has the shape that it had before, which may be of one sample for several."""
    return value.shape == before.shape or (len(before) == 1 and value.shape[1:] == before.shape[1:])


def _described(output: Any) -> str:
    """What a block returned: a shape, a type, or those of its parts."""
    if isinstance(output, tuple):
        return f"({', '.join(map(_described, output))})"
    return str(tuple(output.shape)) if isinstance(output, Tensor) else f"a {type(output).__name__}"


def stream_positions(module: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """The positions of the streams among the arguments of a block.

    Streams come first, in this order, in every block whose signature does not tell, such as that of a forward of
    ``(*args, **kwargs)`` that wraps nothing.
    """
    return positions(module, names) or {name: place for place, name in enumerate(names)}


def places_of(module: nn.Module, names: Sequence[str]) -> set[Place]:
    """The names and the positions of the streams among the arguments of a block."""
    return {place for pair in stream_positions(module, names).items() for place in pair}


def taking(module: nn.Module, names: Sequence[str]) -> Callable[[Sequence[Any], Mapping[str, Any]], Streams]:
    """A function that reads the streams from the arguments of a block's forward."""
    places = list(stream_positions(module, names).items())
    if len(places) == 1:  # a call that every skipped block makes
        ((only, first),) = places
        return lambda args, kwargs: (args[first] if first < len(args) else kwargs[only],)

    def take(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Streams:
        return tuple(args[place] if place < len(args) else kwargs[name] for name, place in places)

    return take
