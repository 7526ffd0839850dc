"""The structure of a model that is in no table: its lists of blocks, and the streams of a block, seen in one call.

A stream is an argument of a block that the block before it has returned. Where the model does something between them,
it is one that has the shape of what is returned.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from forecache.errors import SiteError
from forecache.models.arguments import named_arguments
from forecache.models.blocks import Residual, residual
from forecache.models.reads import watching

SHARE = 1 / 8
"""The least share of the largest list's parameters that a list of blocks has; smaller ones refine inputs."""


def lists_of(model: nn.Module, paths: Sequence[str] | str | None = None) -> dict[str, list[nn.Module]]:
    """The lists of blocks of a model, by path, in the order in which the model has them.

    paths: of these lists; None for all large ones. Raises SiteError where there are none.
    """
    if paths is not None:
        return {path: _list_at(model, path) for path in ([paths] if isinstance(paths, str) else paths)}
    known: dict[str, list[nn.Module]] = {}
    for path, module in model.named_modules():
        is_inside = any(path.startswith(outer + ".") for outer in known)
        if isinstance(module, nn.ModuleList | nn.Sequential) and path and not is_inside and _is_of_blocks(module):
            known[path] = list(module)
    sizes = {path: sum(map(_size, blocks)) for path, blocks in known.items()}
    most = max(sizes.values(), default=0)
    large = {path: blocks for path, blocks in known.items() if sizes[path] >= SHARE * most > 0}
    if not large:
        raise SiteError(
            f"forecache finds no list of blocks in {type(model).__name__}: name the path of the torch.nn.ModuleList "
            'that holds them, for example blocks="transformer_blocks", or modules, sites=["blocks.*.attn"].'
        )
    return large


def _list_at(model: nn.Module, path: str) -> list[nn.Module]:
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    blocks = list(module) if isinstance(module, nn.ModuleList | nn.Sequential) else []
    if not path or not blocks:
        lists = [name for name, part in model.named_modules() if name and isinstance(part, nn.ModuleList)]
        raise SiteError(
            f"{type(model).__name__} has no list of blocks {path!r}; its lists of modules are "
            f"{', '.join(lists[:8]) or '(none)'}."
        )
    return blocks


def _is_of_blocks(modules: Iterable[nn.Module]) -> bool:
    """Whether modules of a list look like blocks: all of one class, each with modules of its own."""
    every = list(modules)
    return len({type(module) for module in every}) == 1 and all(any(module.children()) for module in every)


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@dataclass(eq=False)
class BlockCall:
    """One call of a block, as it was observed.

    module: the block.
    shapes: the shapes of its tensor arguments, by name, in order of its parameters.
    sources: of those that an earlier block returned, the call and the number of the output.
    outputs: the shapes of what it returned; None for what is no tensor.
    is_tuple: whether it returned a tuple.
    is_held: whether something held one of its outputs when the last block of its list had run.
    """

    module: nn.Module
    shapes: dict[str, tuple[int, ...]]
    sources: dict[str, tuple[int, int]]
    outputs: list[tuple[int, ...] | None] = field(default_factory=list)
    is_tuple: bool = False
    is_held: bool = False


class Observer:
    """The calls of blocks in one call of their model.

    It holds no tensor, so that outputs that nobody reads any more are gone.
    """

    def __init__(self) -> None:
        self.calls: list[BlockCall] = []
        self._outputs: list[list[weakref.ref[Tensor] | None]] = []
        self._given: list[list[weakref.ref[Tensor]]] = []

    def begin(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """A block is called."""
        if (reads := watching()) is not None:
            reads.begin(module, (args, kwargs))
        tensors = {
            name: value for name, value in named_arguments(module, args, kwargs).items() if isinstance(value, Tensor)
        }
        sources = {name: source for name, value in tensors.items() if (source := self._source(value)) is not None}
        self.calls.append(BlockCall(module, {name: tuple(value.shape) for name, value in tensors.items()}, sources))
        self._outputs.append([])
        self._given.append([weakref.ref(value) for value in tensors.values()])

    def end(self, output: Any) -> None:
        """The block that was called last has returned."""
        call = self.calls[-1]
        if (reads := watching()) is not None:
            reads.end(call.module, output)
        call.is_tuple = isinstance(output, tuple)
        values = output if isinstance(output, tuple) else (output,)
        call.outputs = [tuple(value.shape) if isinstance(value, Tensor) else None for value in values]
        self._outputs[-1] = [weakref.ref(value) if isinstance(value, Tensor) else None for value in values]

    def look_for_held(self, modules: Iterable[nn.Module]) -> None:
        """The last of these blocks has run: mark outputs of the others that live, besides what the ends are given."""
        if torch.is_grad_enabled():  # a graph of gradients holds them
            return
        numbers = {id(module) for module in modules}
        first = next(number for number, call in enumerate(self.calls) if id(call.module) in numbers)
        given = [ref() for refs in (self._given[first], self._given[-1]) for ref in refs]
        for call, outputs in list(zip(self.calls, self._outputs, strict=True))[:-1]:
            if id(call.module) in numbers:
                alive = [tensor for ref in outputs if ref is not None and (tensor := ref()) is not None]
                call.is_held = any(all(tensor is not other for other in given) for tensor in alive)

    def _source(self, value: Tensor) -> tuple[int, int] | None:
        for number in reversed(range(len(self._outputs))):
            for place, ref in enumerate(self._outputs[number]):
                if ref is not None and ref() is value:
                    return number, place
        return None

    @contextmanager
    def hooked(self, lists: Mapping[str, Sequence[nn.Module]]) -> Iterator[None]:
        """Observes all calls of these blocks in this block."""
        with ExitStack() as stack:
            for blocks in lists.values():
                for module in blocks:
                    stack.callback(module.register_forward_pre_hook(self.begin, with_kwargs=True).remove)
                    stack.callback(module.register_forward_hook(self._after(blocks)).remove)
            yield

    def _after(self, blocks: Sequence[nn.Module]) -> Callable[..., None]:
        def after(module: nn.Module, args: Any, output: Any) -> None:
            self.end(output)
            if module is blocks[-1]:
                self.look_for_held(blocks)

        return after


LEARNT: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[str, ...], tuple[int | None, ...], bool]] = (
    weakref.WeakKeyDictionary()
)
"""What is known of blocks that were observed: names of the streams, outputs, whether a single one is in a tuple."""


def learn(parts: Iterable[Residual]) -> None:
    """Remember the streams of blocks for as long as the blocks live."""
    for part in parts:
        LEARNT[part.module] = part.inputs, part.outputs, part.is_packed


def learnt(module: nn.Module) -> Residual:
    """A block whose streams were observed; without streams if they were not."""
    return residual(module, *LEARNT.get(module, ((), (), False)))


def parts_of(calls: Sequence[BlockCall]) -> list[Residual]:
    """The blocks that were called, with the streams that each takes and returns.

    Raises SiteError where the streams of a block cannot be told.
    """
    passed: dict[type, dict[int, str]] = {}
    for index, call in enumerate(calls):
        for name, (number, place) in call.sources.items():
            if number == index - 1 and type(calls[number].module) is type(call.module):
                passed.setdefault(type(call.module), {}).setdefault(place, name)
    streams = [_streams_of(call, passed.get(type(call.module), {})) for call in calls]
    return [_part(call, own, calls, streams) for call, own in zip(calls, streams, strict=True)]


def _part(
    call: BlockCall, streams: Mapping[int, str], calls: Sequence[BlockCall], others: Sequence[Mapping[int, str]]
) -> Residual:
    """One block with its streams; the last one of a class may return fewer streams than the others of its class."""
    alike = [own for other, own in zip(calls, others, strict=True) if type(other.module) is type(call.module)]
    every = {name for own in alike for name in own.values()}
    names = [name for name in call.shapes if name in every]
    outputs = tuple(names.index(streams[place]) if place in streams else None for place in range(len(call.outputs)))
    return residual(call.module, tuple(names), outputs, call.is_tuple and len(outputs) == 1)


def _streams_of(call: BlockCall, passed: Mapping[int, str]) -> dict[int, str]:
    """The names of the streams of a block, by the number of the output.

    passed: the names of the arguments that a block of its class gets from the one before, by the same numbers
    """
    streams: dict[int, str] = {}
    for place, shape in enumerate(call.outputs):
        if shape is None:
            continue
        free = [name for name, other in call.shapes.items() if name not in streams.values() and _is_like(shape, other)]
        name = passed.get(place, "")
        if name not in free:
            others = {named for number, named in passed.items() if number != place}
            free = [name for name in free if name not in others]
            if len(free) > 1 and sum(value is not None for value in call.outputs) > 1:
                raise SiteError(
                    _untold(call, f"{' and '.join(free)} have the shape of what it returns at place {place}, {shape}")
                )
            name = free[0] if free else ""
        if not name:
            raise SiteError(_untold(call, f"what it returns at place {place}, {shape}, has the shape of none of them"))
        streams[place] = name
    if not streams:
        raise SiteError(_untold(call, "it returns no tensor"))
    return streams


def _is_like(shape: tuple[int, ...], given: tuple[int, ...]) -> bool:
    return shape == given or (given[:1] == (1,) and shape[1:] == given[1:])


def _untold(call: BlockCall, reason: str) -> str:
    given = ", ".join(f"{name} {shape}" for name, shape in call.shapes.items())
    return (
        f"The streams of a {type(call.module).__name__} cannot be told: it is given {given or 'no tensors'}, and "
        f"{reason}. Register a family for the model (forecache.models.register), or name modules as sites."
    )
