"""Gates of adaLN-single: a table in every block plus what is made of the timestep once.

L blocks, B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forecache.models.blocks import Gates


def stacked(tables: Sequence[Tensor], name: str, position: int, cross: bool) -> Gates | None:
    """The gates of blocks of which each has a table (6, D) of shift, scale, gate, shift, scale, gate; one sum for all.

    name, position: where the blocks' forward takes the timestep's part, (B, 6 D) or (B, 6, D), or (B, N, 6, D) where
    every token has a timestep of its own. cross: between the two
    gated branches there is one without a gate. None where the tables cannot be stacked.
    """
    if len({(each.dtype, each.device) for each in tables}) != 1:
        return None
    tables_LG1D = torch.stack([table.detach().reshape(6, -1) for table in tables])[:, 2::3, None]
    step = 2 if cross else 1

    def gates(*args: Any, **kwargs: Any) -> Tensor:
        x_BND = args[0] if args else kwargs["hidden_states"]
        time = kwargs[name] if name in kwargs else args[position]
        time_BN6D = time if time.ndim == 4 else time.reshape(len(x_BND), 1, 6, -1)
        made_LGBND = tables_LG1D[:, :, None].to(x_BND.device) + time_BN6D[:, :, 2::3].permute(2, 0, 1, 3)
        number, _, *shape = made_LGBND.shape
        all_LKBND = x_BND.new_ones(number, 1 + step, *shape)
        all_LKBND[:, ::step] = made_LGBND
        return all_LKBND.flatten(0, 1)

    return gates
