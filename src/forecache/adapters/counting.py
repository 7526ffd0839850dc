"""MACs and bytes of a model call by shapes alone: a twin without data runs on the meta device, and torch counts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forecache._errors import InputError
from forecache.adapters.base import Layout, is_mounted, mounted


@dataclass(frozen=True)
class Parts:
    """One model call: MACs and output bytes of every site, and the MACs of everything else, which always runs."""

    site_macs: tuple[int, ...]
    site_bytes: tuple[int, ...]
    fixed_macs: int


def count(model: nn.Module, read: Callable[[nn.Module], Layout], batch: int, inputs: Any = None) -> Parts:
    """Run a twin of the model once on the meta device and count, site by site.

    inputs: the arguments of one call, a tuple or dict of tensors; by default the layout's example for ``batch``.
    """
    from torch.utils.flop_counter import FlopCounterMode

    layout = read(twin(model))
    args, kwargs = _call(layout, batch, inputs)
    macs, sizes = [0] * len(layout.sites), [0] * len(layout.sites)

    def value(site: int, compute: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor:
        with FlopCounterMode(display=False) as counter:
            output = compute(*args, **kwargs)
        macs[site] += counter.get_total_flops() // 2
        sizes[site] = output.nbytes
        return output

    with torch.no_grad(), mounted(layout.forwards(value)), FlopCounterMode(display=False) as total:
        layout.model(*args, **kwargs)
    return Parts(tuple(macs), tuple(sizes), total.get_total_flops() // 2 - sum(macs))


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
    if isinstance(inputs, Mapping):
        return (), {name: _meta(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(map(_meta, inputs)), {}
    raise InputError(
        f"forecache does not know what {type(layout.model).__name__} is called with: pass the arguments of one call, "
        "for example plan.cost(model, inputs=(x, t, y))."
    )


def _meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value
