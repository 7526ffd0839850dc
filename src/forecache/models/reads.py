"""Readers of blocks' outputs: what else of a model reads them than the next block, seen in one call.

Tensors are followed from the output of a block through all that the model computes from it outside of blocks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar, Token
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from forecache.errors import SiteError

_VALUELESS = frozenset(
    getattr(owner, name)
    for owner, names in (
        (torch, "zeros_like ones_like empty_like full_like rand_like randn_like"),
        (Tensor, "new_zeros new_ones new_empty new_full new_tensor"),
    )
    for name in names.split()
)
"""Functions whose result has the shape of what they are given, and not its values."""
_FIRST_ALONE = frozenset({Tensor.to, Tensor.type_as, Tensor.view_as, Tensor.expand_as, Tensor.reshape_as})
"""Functions whose result has the values of their first argument alone."""

_CURRENT: ContextVar[Reads | None] = ContextVar("forecache_reads", default=None)
_SEEN: WeakKeyDictionary[nn.Module, set[int]] = WeakKeyDictionary()
"""The lengths of spans whose outputs were followed, by their first block."""

Blocks = frozenset[nn.Module]


def watching() -> Reads | None:
    """What follows the outputs of blocks in this thread's model call; None where nothing does."""
    return _CURRENT.get()


class Reads(TorchFunctionMode):
    """What reads the outputs of blocks in one call of their model, to which this is a context.

    given: the blocks that other blocks' arguments come from, not through another block, by the block that is given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[nn.Module, Blocks] = {}
        self._origins: Any = WeakTensorKeyDictionary()
        self._inside = 0
        self._token: Token[Reads | None] | None = None

    def __enter__(self) -> Self:
        self._token = _CURRENT.set(self)
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self._token is not None:
            _CURRENT.reset(self._token)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if self._inside or function in _VALUELESS:
            return output
        origins = self._origins_in(args[:1] if function in _FIRST_ALONE else (args, kwargs))
        if origins:
            targets = list(_tensors(output))
            if _is_in_place(function) and isinstance(args[0], Tensor):
                targets += [tensor for tensor in (args[0], args[0]._base) if tensor is not None]
            for tensor in targets:
                self._origins[tensor] = origins | self._origins.get(tensor, frozenset())
        return output

    def begin(self, module: nn.Module, arguments: object) -> None:
        """A block is called."""
        if not self._inside:
            self.given[module] = self.given.get(module, frozenset()) | self._origins_in(arguments)
        self._inside += 1

    def end(self, module: nn.Module, output: object) -> None:
        """The block that was called last has returned."""
        self._inside -= 1
        if not self._inside:
            for tensor in _tensors(output):
                self._origins[tensor] = frozenset({module})

    def kept(self, output: object) -> Blocks:
        """The blocks whose outputs the model's output comes from, or that something holds after the call."""
        held: Blocks = frozenset()
        if not torch.is_grad_enabled():  # else a graph of gradients holds all
            held = held.union(*self._origins.values())
        return held | self._origins_in(output)

    def _origins_in(self, value: object) -> Blocks:
        every: list[Blocks] = [self._origins[tensor] for tensor in _tensors(value) if tensor in self._origins]
        return frozenset[nn.Module]().union(*every)


def reading_first(forward: Callable[..., Any], spans: Mapping[str, Sequence[nn.Module]]) -> Callable[..., Any]:
    """A model's forward whose first call follows the outputs of blocks; what reads inner ones of a span is refused.

    spans: consecutive blocks that are one site, by its name, of which it is not known what reads them

    Raises SiteError at the end of that call, which computes everything.
    """
    if not spans:
        return forward
    unseen = dict(spans)

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not unseen:
            return forward(*args, **kwargs)
        with Reads() as reads:
            output = forward(*args, **kwargs)
        kept = reads.kept(output)
        for name, modules in list(unseen.items()):
            inner = frozenset(modules[:-1])
            others = [given for module, given in reads.given.items() if module not in modules]
            if read := inner & kept.union(*others):
                raise SiteError(read_elsewhere(next(iter(read)), name))
            _SEEN.setdefault(modules[0], set()).add(len(modules))
        unseen.clear()
        return output

    return call


def is_seen(modules: Sequence[nn.Module]) -> bool:
    """Whether the outputs of these blocks were followed before, and nothing else reads inner ones."""
    return len(modules) == 1 or len(modules) in _SEEN.get(modules[0], ())


def read_elsewhere(module: nn.Module, name: str) -> str:
    """The sentence about a block inside of a span whose output is read outside of the span."""
    return (
        f"What a {type(module).__name__} inside of {name} returned is read elsewhere in the model, later than by the "
        'next block, and a skipped block returns nothing that may be read: take level="blocks", or name the lists of '
        'blocks that are read by blocks alone, blocks=["transformer_blocks"].'
    )


def _is_in_place(function: Any) -> bool:
    """Whether a function of torch writes into its first argument."""
    name = getattr(function, "__name__", "")
    is_operator = name in ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__imatmul__")
    return is_operator or (name.endswith("_") and not name.endswith("__"))


def _tensors(value: object, depth: int = 6) -> Iterator[Tensor]:
    """The tensors in a value: in tuples, lists, mappings, and fields of dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part, depth - 1)
    elif depth and isinstance(value, Mapping):
        yield from _tensors(list(value.values()), depth - 1)
    elif depth and dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _tensors([getattr(value, field.name) for field in dataclasses.fields(value)], depth - 1)
