"""Weights that lie elsewhere until a module's own forward brings them back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from forecache.errors import RunError

LEAVES = ", or its leaves (enable_group_offload with offload_type='leaf_level')"


def refuse_offloaded(module: nn.Module) -> None:
    """Raises RunError if a hook brings the block's weights back for its own forward alone."""
    group = group_of(module)
    if _is_away(group) or _returns_for_a_call(module):
        is_leaf = group is not None and not group.modules  # leaf_level moves what the block holds itself, too
        raise RunError(
            f"The weights of a {type(module).__name__} are offloaded and return only for its own forward, but a plan "
            "calls its parts: offload the model as a whole (pipe.enable_model_cpu_offload)"
            f"{'' if is_leaf else LEAVES}, or make a plan by blocks (forecache.grid(pipe, num_steps, level='blocks'))."
        )


def group_of(module: nn.Module) -> Any:
    """The group that diffusers offloads a module with; None for none."""
    registry = vars(module).get("_diffusers_hook")
    return getattr(registry.get_hook("group_offloading"), "group", None) if registry is not None else None


def leaders(modules: Sequence[Sequence[nn.Module]]) -> tuple[tuple[int, int], ...]:
    """The pairs (follower, leader) of sites, by number: weights of one come back with a call of the other.

    modules: those of every site
    """
    number = {id(module): index for index, own in reversed(list(enumerate(modules))) for module in own}
    pairs: dict[tuple[int, int], None] = {}
    for index, own in enumerate(modules):
        for module in own:
            group = group_of(module)
            leader = number.get(id(group.onload_leader)) if _is_away(group) else None
            if leader is not None and all(other is not part for other in modules[leader] for part in own):
                pairs[index, leader] = None
    return tuple(pairs)


def _is_away(group: Any) -> bool:
    """Whether the weights of a group are elsewhere between its calls; on a disk, what is left in memory is noise."""
    return group is not None and (
        group.onload_device != group.offload_device or bool(getattr(group, "offload_to_disk_path", None))
    )


def _returns_for_a_call(module: nn.Module) -> bool:
    """Whether a hook of accelerate holds weights of the module."""
    hook = vars(module).get("_hf_hook")
    parts = [part for part in getattr(hook, "hooks", (hook,)) if getattr(part, "offload", False)]
    inside = any(getattr(part, "place_submodules", False) for part in parts)
    return bool(parts) and any(weight.is_meta for weight in module.parameters(recurse=inside))
