"""MACs and bytes of a model call from shapes alone: torch counts a call of a twin on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from forecache.errors import ForecacheError, InputError
from forecache.models.arguments import Arguments
from forecache.models.blocks import Streams
from forecache.models.examples import Size
from forecache.models.layout import Layout
from forecache.models.mount.replace import mounted
from forecache.models.rounded import stored_bytes
from forecache.models.span import Span
from forecache.parts.grid import Tokens


@dataclass(frozen=True)
class CallCost:
    """The cost of one model call.

    site_macs: MACs of every site
    site_bytes: bytes of every site's feature
    site_numbers: number of elements of every site's feature
    fixed_macs: MACs of the rest of the call, which always runs
    site_shapes: (rows, tokens) of every site; (rows, 1) for a feature without tokens
    token_macs: by site with partial tokens, the MACs of one token of every row
    received_macs: by scored attention, the MACs of its scores
    condition_macs: by skipped block, the MACs of its condition
    gate_macs: by skipped block, the MACs of its gates
    site_vectors: number of vectors of every site's feature, along its last dimension
    output_bytes: bytes of the call's output
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
    site_vectors: tuple[int, ...]
    output_bytes: int = 0

    def kept_bytes(self, dtype: torch.dtype | None) -> tuple[int, ...]:
        """Bytes of every site's feature stored in ``dtype``; None for its own."""
        if dtype is None:
            return self.site_bytes
        sizes = zip(self.site_numbers, self.site_vectors, strict=True)
        return tuple(stored_bytes(numbers, vectors, dtype) for numbers, vectors in sizes)

    @property
    def site_tokens(self) -> tuple[int, ...]:
        """Tokens of every site, of all rows."""
        return tuple(rows * tokens for rows, tokens in self.site_shapes)

    def partial_macs(self, site: int, tokens: Tokens) -> int:
        """MACs of a partial cell: a constant part (the keys of a text) plus a part proportional to its tokens."""
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
    size: Size | None = None,
) -> CallCost:
    """The cost of a model call, counted on a twin of the model on the meta device.

    read: model -> its layout
    batch: rows of the layout's example
    inputs: the arguments of one call, a tuple or dict of tensors; by default the layout's example
    request: extra measurements
    size: of what the example samples; None for the default of the model

    Raises InputError if the arguments are unknown or not the model's, or if its forward reads values.
    """
    from torch.utils.flop_counter import FlopCounterMode

    layout = read(twin(model))
    args, kwargs = _call(layout, batch, inputs, size)
    texts = nullcontext() if inputs is not None else FullTexts()
    with torch.no_grad(), texts, FlopCounterMode(display=False) as counter:
        counts = _Counts(layout, request, counter)
        with mounted(layout.forwards(counts.value, counts.block)), counts.of_spans():
            output = _run(layout.model, args, kwargs)
    outputs = [counts.outputs.get(site) for site in range(len(layout.sites))]
    return CallCost(
        tuple(counts.macs.get(site, 0) for site in range(len(layout.sites))),
        tuple(output.nbytes if output is not None else 0 for output in outputs),
        tuple(output.numel() if output is not None else 0 for output in outputs),
        counter.get_total_flops() // 2 - counts.counted,
        tuple(map(_shape, outputs)),
        counts.token_macs,
        counts.received_macs,
        counts.condition_macs,
        counts.gate_macs,
        tuple(0 if output is None else output.numel() // max(1, output.shape[-1]) for output in outputs),
        sum(leaf.nbytes for leaf in tree_leaves(output) if isinstance(leaf, Tensor)),
    )


def _run(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        return model(*args, **kwargs)
    except ForecacheError:
        raise
    except Exception as error:  # of the model's own code, which may fail in any way where tensors have no values
        first = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"The cost of {type(model).__name__} cannot be known from shapes alone: its forward reads values, or does "
            f"not take these inputs ({type(error).__name__}: {first})."
        ) from error


class _Counts:
    """Handlers that count one call of the twin site by site.

    counted: MACs of everything but the rest of the call
    """

    def __init__(self, layout: Layout, request: CountRequest, counter: Any) -> None:
        self._layout, self._request, self._counter = layout, request, counter
        self.counted = 0
        self.outputs: dict[int, Tensor] = {}
        self.macs: dict[int, int] = {}
        self.token_macs: dict[int, int] = {}
        self.received_macs: dict[int, int] = {}
        self.condition_macs: dict[int, int] = {}
        self.gate_macs: dict[int, int] = {}
        self._before_block = 0

    @contextmanager
    def of_spans(self) -> Iterator[None]:
        """Counts the MACs of the blocks of spans, without what the model does between them."""
        with ExitStack() as stack:
            for site, block in self._layout.blocks:
                for module in block.modules if isinstance(block, Span) else ():
                    stack.callback(module.register_forward_pre_hook(self._begin_block).remove)
                    stack.callback(module.register_forward_hook(partial(self._end_block, site)).remove)
            yield

    def _begin_block(self, *_: Any) -> None:
        self._before_block = self._counter.get_total_flops()

    def _end_block(self, site: int, *_: Any) -> None:
        macs = (self._counter.get_total_flops() - self._before_block) // 2
        self.macs[site] = self.macs.get(site, 0) + macs
        self.counted += macs

    def block(self, number: int, streams: Streams, args: Sequence[Any], kwargs: Mapping[str, Any], /) -> None:
        if number in self._request.skipped:
            condition = self._layout.blocks[number][1].condition
            self.condition_macs[number] = self._macs(condition, *args, **kwargs)[1]
            gates = self._layout.gates([number])
            self.gate_macs[number] = self._macs(lambda: list(gates(*args, **kwargs)))[1]  # made where they are read

    def value(self, site: int, compute: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor:
        output, macs = self._macs(compute, *args, **kwargs)
        self.macs[site] = self.macs.get(site, 0) + macs
        self.outputs[site] = output
        if site in self._request.partial and args and isinstance(args[0], Tensor) and args[0].ndim == 3:
            self.token_macs[site] = self._macs(compute, args[0][:, :1], *args[1:], **kwargs)[1]
        if site in self._request.scored:
            self.received_macs[site] = self._macs(self._layout.received[site], *args, **kwargs)[1]
        return output

    def _macs(self, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, int]:
        before = self._counter.get_total_flops()
        output = compute(*args, **kwargs)
        macs = (self._counter.get_total_flops() - before) // 2
        self.counted += macs
        return output, macs


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
        if "_orig_mod" not in module._modules:  # compiled, it has a forward of its own; others act for the original
            vars(module).pop("forward", None)
    return copied.eval()


def _without_data(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


class FullTexts(TorchFunctionMode):
    """Masks of texts without data are taken as all ones where a forward reads them: every text has its full length.

    What is asked about other values is taken as true, such as whether an image is empty.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sums: list[tuple[Tensor, int]] = []  # held, so that no other tensor gets their identity
        self._zeros: list[Tensor] = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        first = args[0] if args else None
        if not isinstance(first, Tensor) or not first.is_meta:
            return function(*args, **(kwargs or {}))
        if function is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return self._chosen(first, args[1])
        if first.is_floating_point():
            return function(*args, **(kwargs or {}))
        if function is Tensor.__bool__:
            return True
        if function is torch.nonzero:
            return torch.cartesian_prod(*map(torch.arange, first.shape)).reshape(first.numel(), -1)
        if function is Tensor.tolist:
            return self._list(first)
        output = function(*args, **(kwargs or {}))
        if function is Tensor.sum:
            self._sums.append((output, first.numel() // max(1, output.numel())))
        if function is Tensor.__invert__:
            self._zeros.append(output)
        return output

    def _chosen(self, values: Tensor, mask: Tensor) -> Tensor:
        flat = values.flatten(0, mask.ndim - 1)
        return flat[:0] if any(mask is known for known in self._zeros) else flat

    def _list(self, sums: Tensor) -> Any:
        for known, count in self._sums:
            if known is sums:
                return torch.full(sums.shape, count).tolist()
        return sums.tolist()


def _call(layout: Layout, batch: int, inputs: Any, size: Size | None) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if inputs is None and layout.example is not None:
        return (), layout.example(batch) if size is None else layout.example(batch, size)
    if isinstance(inputs, Arguments):
        return tuple(map(_meta, inputs.args)), {name: _meta(value) for name, value in inputs.kwargs.items()}
    if isinstance(inputs, Mapping):
        return (), {name: _meta(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(map(_meta, inputs)), {}
    raise InputError(
        f"forecache does not know the arguments of {type(layout.model).__name__}: pass the arguments of one call, "
        "for example plan.cost(model, inputs=(x, t, y))."
    )


def _meta(value: Any) -> Any:
    """A value with its tensors on the meta device, also those in tuples, lists and dicts."""
    return tree_map_only(Tensor, lambda tensor: tensor.to("meta"), value)


@contextmanager
def first_call(model: nn.Module) -> Iterator[list[Arguments]]:
    """A list that gets the arguments of the model's first call in this block, on the meta device."""
    calls: list[Arguments] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not calls:
            calls.append(Arguments(_meta(args), _meta(kwargs)))

    hook = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()
