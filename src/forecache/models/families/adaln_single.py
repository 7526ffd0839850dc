"""Gates of adaLN-single: a table in every block plus one modulation of the timestep for all blocks.

L blocks, B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forecache.errors import RunError
from forecache.models.blocks import Gates


def modulated(normed_BND: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normed tokens with shift and scale, (B, 1, D) or (B, N, D).

    Raises RunError for some of the tokens where every token has a timestep of its own.
    """
    if shift.shape[1] not in (1, normed_BND.shape[1]):
        raise RunError(
            "Some tokens cannot be computed where every token has a timestep of its own, as in Wan 2.2 5B: use a plan "
            "without partial cells."
        )
    return normed_BND * (1 + scale) + shift


def stacked(tables: Sequence[Tensor], name: str, position: int, cross: bool) -> Gates | None:
    """The gates of a run of blocks from one batched sum; None if the tables cannot be stacked.

    tables: of every block, (6, D): shift, scale, gate, shift, scale, gate
    name: the argument of the blocks' forward for the timestep's modulation, (B, 6 D) or (B, 6, D), or (B, N, 6 D) or
        (B, N, 6, D) if every token has its own timestep
    position: the position of this argument
    cross: an ungated branch lies between the two gated ones
    """
    if len({(table.dtype, table.device) for table in tables}) != 1:
        return None
    tables_LG1D = torch.stack([table.detach().reshape(6, -1) for table in tables])[:, 2::3, None]
    step = 2 if cross else 1

    def gates(*args: Any, **kwargs: Any) -> Tensor:
        x_BND = args[0] if args else kwargs["hidden_states"]
        time = kwargs[name] if name in kwargs else args[position]
        time_BN6D = time.reshape(len(x_BND), -1, 6, tables_LG1D.shape[-1])
        gates_LGBND = tables_LG1D[:, :, None].to(x_BND.device) + time_BN6D[:, :, 2::3].permute(2, 0, 1, 3)
        number, _, *shape = gates_LGBND.shape
        all_LKBND = x_BND.new_ones(number, 1 + step, *shape)
        all_LKBND[:, ::step] = gates_LGBND
        return all_LKBND.flatten(0, 1)

    return gates
