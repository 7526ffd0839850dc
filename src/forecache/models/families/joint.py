"""Joint blocks of an image and a text stream: adaLN-Zero of one conditioning, and its gates alone.

B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from forecache.models.blocks import Gate, Gates

IMAGE, TEXT = 0, 1
"""The streams, in the order in which their parts stand in a feature of both."""


class Rows(NamedTuple):
    """The gates of a modulation.

    linear: the map that computes the modulation
    parts: number of its parts, of D rows each
    gates: the indices of the parts that are gates
    """

    linear: nn.Module
    parts: int
    gates: tuple[int, ...]


def modulated(norm: nn.Module, x_BND: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    return norm(x_BND) * (1 + scale_BD[:, None]) + shift_BD[:, None]


def is_plain(linear: nn.Module) -> bool:
    """Whether a linear map is the plain product with its weight: no LoRA, quantisation, hook or replaced forward."""
    hooks = (linear._forward_hooks, linear._forward_pre_hooks)
    plain = type(linear) is nn.Linear and type(linear.weight) is nn.Parameter
    return plain and not any(hooks) and "forward" not in vars(linear)


def last_of(modulation: nn.Module, *kinds: type[nn.Module]) -> nn.Module:
    """The last module of a modulation that is a sequence, after others of these kinds; any other modulation itself."""
    parts = list(modulation.children()) if type(modulation) is nn.Sequential else []
    return parts[-1] if [type(part) for part in parts[:-1]] == list(kinds) and parts else modulation


def gates_alone(
    modulations: Sequence[Sequence[Rows]], arrange: Sequence[Callable[[list[Tensor]], list[Gate]]], position: int
) -> Gates | None:
    """The gates of a run of blocks, from the gates' rows of their modulations in place.

    modulations: of every block
    arrange: of every block, its gates (B, 1, D) -> one gate a branch
    position: the position of ``temb`` in the arguments of the blocks' forward

    Returns None if a modulation is not a plain linear map.
    """
    gates_of = gates_from(modulations, arrange)
    if gates_of is None:
        return None
    return lambda *args, **kwargs: gates_of(nn.functional.silu(kwargs["temb"] if "temb" in kwargs else args[position]))


def gates_from(
    modulations: Sequence[Sequence[Rows]], arrange: Sequence[Callable[[list[Tensor]], list[Gate]]]
) -> Callable[[Tensor], list[Gate]] | None:
    """A function from the input (B, E) of the modulations to the gates of a run of blocks, as in `gates_alone`."""
    if not all(is_plain(rows.linear) for block in modulations for rows in block):
        return None

    def gates(input_BE: Tensor) -> list[Gate]:
        values: list[Gate] = []
        for block, arranged in zip(modulations, arrange, strict=True):
            vectors = [_row(rows, part, input_BE)[:, None] for rows in block for part in rows.gates]
            values.extend(arranged(vectors))
        return values

    return gates


def _row(rows: Rows, part: int, input_BE: Tensor) -> Tensor:
    linear: Any = rows.linear
    weight = linear.weight.unflatten(0, (rows.parts, -1))[part]
    bias = linear.bias.unflatten(0, (rows.parts, -1))[part].to(input_BE.device) if linear.bias is not None else None
    return nn.functional.linear(input_BE, weight.to(input_BE.device), bias)  # an offloaded block: only its gates move


def weights(*norms: nn.Module) -> list[nn.Parameter]:
    """The parameters of norms."""
    return [weight for norm in norms for weight in norm.parameters()]


def both(image_BND: Tensor, text_BMD: Tensor) -> Tensor:
    """The feature of a branch on both streams, in this order."""
    return torch.cat([image_BND, text_BMD], 1)
