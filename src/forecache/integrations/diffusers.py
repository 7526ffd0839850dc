"""Forecache in the style of diffusers' caches: a config, a function that applies it, a hook in the model's registry.

from forecache import ForecacheConfig, apply_forecache

apply_forecache(pipe.transformer, ForecacheConfig(speedup=2.0, num_inference_steps=20))
...
remove_forecache(pipe.transformer)

diffusers' own ``enable_cache`` takes its own configs alone. `forecache.enable(pipe)` knows more: it follows what the
pipeline's scheduler announces. This is for code that has the transformer only, such as Modular pipelines and servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from forecache.errors import AlreadyAppliedError, MissingExtraError, RunError
from forecache.models.layout import Level
from forecache.plan.method import Method
from forecache.plan.plan import Plan
from forecache.runtime.apply import apply
from forecache.runtime.session import Session

NAME = "forecache"
"""The name of the hook in a model's registry."""


@dataclass
class ForecacheConfig:
    """The settings of forecache on a transformer; every field is one of `forecache.apply`.

    plan: a plan or a method; None, the default, takes what is on record for ``speedup``.
    speedup: times fewer MACs, 1.3 to 5, without a plan or method; None, the default, is 2.
    num_inference_steps: model calls of a run, for a method or speedup; None, the default, for pipelines that tell
        ``cache_context`` the number of a step and of all steps, as Cosmos 3 does.
    level: "branches", "blocks" or "stack", for a method or speedup; None, the default, is the finest that is known.
    lanes: names of the model calls of one step, where no ``cache_context`` names them; () by default.
    resample: whether a plan is resampled to a run of another length; False by default.
    cache_dtype: dtype of kept features; None, the default, keeps each in its own.
    cache_device: device of kept features; None, the default, keeps each on its own.
    max_cache_bytes: the most bytes that a generation may keep; None, the default, is no limit.
    """

    plan: Plan | Method | None = None
    speedup: float | None = None
    num_inference_steps: int | None = None
    level: Level | None = None
    lanes: Sequence[str] = ()
    resample: bool = False
    cache_dtype: torch.dtype | None = None
    cache_device: str | torch.device | None = None
    max_cache_bytes: int | None = None

    def session(self, module: nn.Module) -> Session:
        """A session on a transformer with these settings."""
        own = {**vars(self)}
        plan, num_steps = own.pop("plan"), own.pop("num_inference_steps")
        return apply(module, plan, num_steps=num_steps, **own)


def apply_forecache(module: nn.Module, config: ForecacheConfig | None = None) -> None:
    """Let a diffusers transformer sample with fewer computed features, until `remove_forecache`.

    A hook named "forecache" in the module's registry holds the session: ``_reset_stateful_cache()`` starts a new
    generation, and whatever removes the hook ends the session.

    module: a diffusers transformer.
    config: None, the default, is about twice the speed.

    Raises AlreadyAppliedError for a second one, and what `forecache.apply` raises for the settings.
    """
    try:
        from diffusers.hooks import HookRegistry
    except ImportError as error:
        raise MissingExtraError("diffusers", "diffusers", "apply_forecache") from error
    registry = HookRegistry.check_if_exists_or_initialize(module)
    if registry.get_hook(NAME) is not None:
        raise AlreadyAppliedError(
            f"This {type(module).__name__} has forecache's hook already: call remove_forecache before another."
        )
    session = (config or ForecacheConfig()).session(module)
    registry.register_hook(_hook(session), NAME)
    try:
        session.__enter__()
    except BaseException:
        registry.remove_hook(NAME, recurse=False)
        raise


def remove_forecache(module: nn.Module) -> None:
    """Undo `apply_forecache`: restore the transformer and drop all features. Raises RunError if it was not applied."""
    registry: Any = getattr(module, "_diffusers_hook", None)
    if registry is None or registry.get_hook(NAME) is None:
        raise RunError(f"There is no forecache on this {type(module).__name__}: give what apply_forecache was given.")
    registry.remove_hook(NAME, recurse=False)


def session_of(module: nn.Module) -> Session | None:
    """The session that `apply_forecache` opened on a transformer; None if there is none."""
    registry: Any = getattr(module, "_diffusers_hook", None)
    hook = None if registry is None else registry.get_hook(NAME)
    return None if hook is None else hook.session


def _hook(session: Session | None) -> Any:
    """A stateful hook of diffusers that runs the forward as it is, and ends the session when it is removed."""
    from diffusers.hooks import ModelHook

    class ForecacheHook(ModelHook):
        _is_stateful = True

        def __init__(self) -> None:
            super().__init__()
            self.session = session

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            return _hook(None)  # a copy of the model has no plan

        def deinitalize_hook(self, module: nn.Module) -> nn.Module:
            if self.session is not None and self.session.is_open:
                self.session.close()
            return module

        def reset_state(self, module: nn.Module) -> nn.Module:
            if self.session is not None:
                self.session.new_run()
            return module

    return ForecacheHook()
