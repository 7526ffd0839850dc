"""MACs and bytes of a model call by shapes alone: a twin without data runs on the meta device, and torch counts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from forecache.errors import InputError
from forecache.models.arguments import Arguments
from forecache.models.blocks import Streams
from forecache.models.layout import Layout
from forecache.models.mount import is_mounted, mounted
from forecache.parts.grid import Tokens


@dataclass(frozen=True)
class CallCost:
    """One model call: MACs, output bytes and numbers of every site, and the MACs of everything else, which always runs.

    site_shapes: the batch and the tokens of every site, (rows, 1) where it has no tokens. token_macs: where a site
    treats every token by itself, the MACs of one token of every row. received_macs: of scoring an attention.
    """

    site_macs: tuple[int, ...]
    site_bytes: tuple[int, ...]
    site_numbers: tuple[int, ...]
    fixed_macs: int
    site_shapes: tuple[tuple[int, int], ...]
    token_macs: Mapping[int, int]
    received_macs: Mapping[int, int]
    condition_macs: Mapping[int, int]
    gate_macs: Mapping[int, int]

    def kept_bytes(self, dtype: torch.dtype | None) -> tuple[int, ...]:
        """Bytes of every site's feature when it is kept in ``dtype``; in its own if None."""
        return self.site_bytes if dtype is None else tuple(number * dtype.itemsize for number in self.site_numbers)

    @property
    def site_tokens(self) -> tuple[int, ...]:
        """Tokens of the whole batch, of every site."""
        return tuple(rows * tokens for rows, tokens in self.site_shapes)

    def partial_macs(self, site: int, tokens: Tokens) -> int:
        """MACs of a partial cell: what does not depend on the tokens (the keys of a text), and as much for each."""
        total = self.site_shapes[site][1]
        count = tokens.count(total)
        if count in (0, total):
            return self.site_macs[site] if count else 0
        one = self.token_macs[site]
        return one + (self.site_macs[site] - one) * (count - 1) // (total - 1)


class CountRequest(NamedTuple):
    """Extra measurements that a plan needs from the cost model, by the numbers of sites and of blocks.

    partial: sites at which some tokens are computed.
    scored: attentions whose maps score tokens.
    skipped: blocks that are skipped as a whole.
    """

    partial: frozenset[int] = frozenset()
    scored: frozenset[int] = frozenset()
    skipped: frozenset[int] = frozenset()


def count(
    model: nn.Module,
    read: Callable[[nn.Module], Layout],
    batch: int,
    inputs: Any = None,
    request: CountRequest = CountRequest(),  # noqa: B008 - it is frozen
) -> CallCost:
    """Run a twin of the model once on the meta device and count, site by site.

    inputs: the arguments of one call, a tuple or dict of tensors; by default the layout's example for ``batch``.
    """
    from torch.utils.flop_counter import FlopCounterMode

    layout = read(twin(model))
    args, kwargs = _call(layout, batch, inputs)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        found = _Counts(layout, request, counter)
        with mounted(layout.forwards(found.value, found.block)):
            _run(layout.model, args, kwargs)
    outputs = [found.outputs.get(site) for site in range(len(layout.sites))]
    return CallCost(
        tuple(found.macs.get(site, 0) for site in range(len(layout.sites))),
        tuple(output.nbytes if output is not None else 0 for output in outputs),
        tuple(output.numel() if output is not None else 0 for output in outputs),
        counter.get_total_flops() // 2 - found.counted,
        tuple(map(_shape, outputs)),
        found.token_macs,
        found.received_macs,
        found.condition_macs,
        found.gate_macs,
    )


def _run(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    try:
        model(*args, **kwargs)
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):  # torch has no class of its own for values that a meta tensor does not have
            raise
        raise InputError(
            f"The cost of {type(model).__name__} cannot be known from shapes alone, because its forward reads values: "
            f"{str(error).splitlines()[0]}"
        ) from error


class _Counts:
    """What one call of the twin does, site by site. counted: all of it that is not the rest of the call."""

    def __init__(self, layout: Layout, request: CountRequest, counter: Any) -> None:
        self._layout, self._request, self._counter = layout, request, counter
        self.counted = 0
        self.outputs: dict[int, Tensor] = {}
        self.macs: dict[int, int] = {}
        self.token_macs: dict[int, int] = {}
        self.received_macs: dict[int, int] = {}
        self.condition_macs: dict[int, int] = {}
        self.gate_macs: dict[int, int] = {}

    def block(self, number: int, streams: Streams, args: Sequence[Any], kwargs: Mapping[str, Any], /) -> None:
        if number in self._request.skipped:
            condition = self._layout.blocks[number][1].condition
            self.condition_macs[number] = self._macs(condition, *args, **kwargs)[1]
            self.gate_macs[number] = self._macs(self._layout.gates([number]), *args, **kwargs)[1]

    def value(self, site: int, compute: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor:
        output, self.macs[site] = self._macs(compute, *args, **kwargs)
        self.outputs[site] = output
        if site in self._request.partial and args and isinstance(args[0], Tensor) and args[0].ndim == 3:
            self.token_macs[site] = self._macs(compute, args[0][:, :1], *args[1:], **kwargs)[1]
        if site in self._request.scored:
            self.received_macs[site] = self._macs(self._layout.received[site], *args, **kwargs)[1]
        return output

    def _macs(self, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, int]:
        before = self._counter.get_total_flops()
        output = compute(*args, **kwargs)
        found = (self._counter.get_total_flops() - before) // 2
        self.counted += found
        return output, found


def _shape(output: Tensor | None) -> tuple[int, int]:
    """Rows and tokens of a feature."""
    if output is None or output.ndim == 0:
        return 0, 1
    return len(output), output.shape[1] if output.ndim == 3 else 1


def twin(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device, in eval mode: its structure without its data."""
    tensors = [*model.parameters(), *model.buffers()]
    memo = {id(tensor): _without_data(tensor) for tensor in tensors}
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        if is_mounted(module):  # the original is being sampled in a session
            del vars(module)["forward"]
    return copied.eval()


def _without_data(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _call(layout: Layout, batch: int, inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if inputs is None and layout.example is not None:
        return (), layout.example(batch)
    if isinstance(inputs, Arguments):
        return tuple(map(_meta, inputs.args)), {name: _meta(value) for name, value in inputs.kwargs.items()}
    if isinstance(inputs, Mapping):
        return (), {name: _meta(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(map(_meta, inputs)), {}
    raise InputError(
        f"forecache does not know what {type(layout.model).__name__} is called with: pass the arguments of one call, "
        "for example plan.cost(model, inputs=(x, t, y))."
    )


def _meta(value: Any) -> Any:
    """The tensors in a value, also in tuples, lists and dicts, without their data."""
    return tree_map_only(Tensor, lambda tensor: tensor.to("meta"), value)


@contextmanager
def first_call(model: nn.Module) -> Iterator[list[Arguments]]:
    """What the model is first called with in this block, on the meta device, in the list that it gives."""
    calls: list[Arguments] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not calls:
            calls.append(Arguments(_meta(args), _meta(kwargs)))

    hook = model.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()
