"""Ranks: the processes that sample parts of one request together, and decide alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from forecache.errors import PlanError


@dataclass(frozen=True)
class Ranks:
    """The processes of a group of torch.distributed, each with an equal part of every request.

    group: the group.
    """

    group: Any

    def over(self, means: Tensor) -> Tensor:
        """The means (...) over the parts of all processes, from those over the part of this one."""
        total = means.to(torch.float32)
        if total is means:
            total = means.clone()
        dist.all_reduce(total, group=self.group)
        return (total / dist.get_world_size(self.group)).to(means.dtype)

    def any(self, flag: bool, device: torch.device | None) -> bool:
        """Whether a flag is up on one of the processes at least. device: of what they sample."""
        up = torch.tensor(float(flag), device=device)
        dist.all_reduce(up, op=dist.ReduceOp.MAX, group=self.group)
        return bool(up)


def ranks_of(group: Any, model: nn.Module) -> Ranks | None:
    """The processes that sample a request together: of a group that was given, or of diffusers' context parallelism.

    Raises PlanError for a group that is none, or that this process does not belong to.
    """
    if group is not None and (not dist.is_available() or not dist.is_initialized()):
        raise PlanError(
            f"process_group={group!r} was given, and torch.distributed is not initialised: call "
            "torch.distributed.init_process_group before, or leave process_group= out."
        )
    if group is None:
        group = _of_context_parallelism(model)
    if group is None:
        return None
    if not isinstance(group, dist.ProcessGroup) or dist.get_rank(group) < 0:
        raise PlanError(
            f"process_group= is a group of torch.distributed with this process in it, such as "
            f"torch.distributed.group.WORLD; {group!r} was given."
        )
    return Ranks(group) if dist.get_world_size(group) > 1 else None


def _of_context_parallelism(model: nn.Module) -> Any:
    """The group over which diffusers divides the tokens of a model; None where it does not."""
    parallel = getattr(getattr(model, "_parallel_config", None), "context_parallel_config", None)
    mesh = getattr(parallel, "_flattened_mesh", None)
    return None if mesh is None else mesh.get_group()
