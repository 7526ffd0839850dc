"""Caches of other libraries on a model, beside which a plan does not work."""

from __future__ import annotations

from typing import Any

from torch import nn

from forecache.errors import RunError

MARKS = {
    "_is_cached": "cache-dit or ParaAttention",
    "enable_teacache": "TeaCache",
    "_deepcache_helper": "DeepCache",
}
"""Attributes that caches set on a model or its class, if they are true, with the names of these caches."""


def refuse_caches(model: nn.Module) -> None:
    """Raises RunError if another cache is on the model."""
    if (name := cache_of(model)) is not None:
        raise RunError(
            f"Another cache is on this {type(model).__name__} ({name}), and two caches would skip the same blocks: "
            "disable it first (transformer.disable_cache() for those of diffusers), or leave the plan."
        )


def cache_of(model: nn.Module) -> str | None:
    """The name of another library's cache on the model; None if there is none."""
    if (config := getattr(model, "_cache_config", None)) is not None:  # of diffusers' enable_cache
        return type(config).__name__
    for attribute, name in MARKS.items():
        if getattr(model, attribute, False):
            return name
    for module in model.modules():
        registry = vars(module).get("_diffusers_hook")
        for hook in getattr(registry, "hooks", {}).values():
            if is_cache(hook):
                return type(hook).__name__
    return None


def is_cache(hook: Any) -> bool:
    """Whether a hook of diffusers belongs to one of its caches."""
    home = type(hook).__module__
    return home.startswith("diffusers.hooks.") and home.endswith(("_cache", "pyramid_attention_broadcast"))
