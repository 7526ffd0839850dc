"""The contract between a plan and what others put on a model: patched forwards, hooks, offload, other caches.

It is looked at when a plan is applied and when a generation starts. docs/combining.md says it in a table.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

from forecache.errors import RunError
from forecache.models.blocks import Block
from forecache.models.layout import Layout
from forecache.models.mount.caches import MARKS, refuse_caches
from forecache.models.mount.offload import leaders, refuse_offloaded
from forecache.models.mount.replace import below, is_unchanged

AROUND = (
    "GroupOffloadingHook",
    "LayerExecutionTrackerHook",
    "LayerwiseCastingHook",
    "LazyPrefetchGroupOffloadingHook",
    "PeftInputAutocastDisableHook",
)
"""Hooks of diffusers that move or cast weights, and leave what a module computes as it is."""

MEASURES = "_forecache_measures"
"""Attribute of hooks of our own that measure a run in which everything is computed."""


DEPTH = 3
"""Parts of the paths of modules that are looked at, as in ``transformer_blocks.0.attn``."""


def layout_among_others(layout: Layout) -> Layout:
    """The layout of a model as others have prepared it.

    A block with a forward hook of torch ends a span of skipped blocks: the hook sees the stream as it is there, at
    every step. A block whose forward is not the one that its branches write out runs as it is, or is skipped as a
    whole. Where the model's own forward is another one, nothing is known about what it does between blocks, and no span
    is longer than one block.

    Raises RunError for a cache of another library, for weights that return only for a block's own forward, and for a
    forward hook inside of blocks that are one site together.
    """
    refuse_caches(layout.model)
    whole: set[int] = set()
    starts = set(layout.starts)
    for number, (_, block) in enumerate(layout.blocks):
        is_patched = not block.is_residual and _is_patched(block)
        if is_patched:
            whole.add(number)
        elif not block.is_residual:
            refuse_offloaded(block.module)
        if len(block.modules) > 1:
            _refuse_hooks_inside(layout, number)
        if is_patched or _has_hooks(block.module):
            starts |= {number, number + 1}
    if _has_global_hooks() or (layout.blocks and _runs_another_forward(layout)):
        starts |= set(range(len(layout.blocks)))
    needed = leaders(_modules_of_sites(layout))
    return replace(layout, starts=frozenset(starts), whole=frozenset(whole), needed=needed)


def _refuse_hooks_inside(layout: Layout, number: int) -> None:
    """Raises RunError for a hook that would see, at skipped steps, a stream between blocks that do not run.

    Hooks before the first block and after the last one see what they would see anyway.
    """
    site, block = layout.blocks[number]
    modules: Sequence[Any] = block.modules
    hooks = [*(module._forward_pre_hooks for module in modules[1:]), *(part._forward_hooks for part in modules[:-1])]
    inside = [hook for own in hooks for hook in own.values() if not hasattr(hook, MEASURES)]
    own_calls = [module for module in modules if _is_called_by_itself(module)]
    if inside or own_calls or _has_global_hooks():
        raise RunError(
            f"A forward hook, or a call of its own, is on a {type(modules[0]).__name__} inside of the site "
            f"{layout.sites[site].name}, whose {len(modules)} blocks do not run at skipped steps, so that it would see "
            'nothing there: take it off, or make a plan on forecache.grid(model, num_steps, level="blocks").'
        )


def refuse_patched(layout: Layout, purpose: str) -> None:
    """Raises RunError if a block runs another forward than its branches, so that they cannot be seen one by one."""
    for number in sorted(layout_among_others(layout).whole):
        first, block = layout.blocks[number]
        raise RunError(
            f"Block {number} of this {type(layout.model).__name__} ({layout.sites[first].name}) runs another forward "
            f"than that of {type(block.module).__name__}, so {purpose} its branches is not possible: take off what "
            "patches or hooks it."
        )


@dataclass(frozen=True)
class View:
    """What stood on a model when it was looked at, to be compared in microseconds.

    blocks: the attributes of its blocks and sites, and of modules that their branches write out
    modules: the attributes of its modules down to the parts of blocks, on which caches set hooks
    forwards_of_blocks, forwards: the forwards set on these
    hooks: dicts of torch's hooks on the blocks, and of its global hooks
    are_hooked: whether there are some in each
    owners: the model, its blocks, and modules that their branches write out
    class_forwards: the forwards of their classes
    marks: the attributes that caches set on a model
    """

    model: nn.Module
    blocks: tuple[dict[str, Any], ...]
    modules: tuple[dict[str, Any], ...]
    forwards_of_blocks: list[Any]
    forwards: list[Any]
    hooks: tuple[Any, ...]
    are_hooked: list[bool]
    owners: tuple[Any, ...]
    class_forwards: list[Any]
    marks: list[Any]

    @property
    def has_changed(self) -> bool:
        """Whether anything was put on the model since, or taken off."""
        return (
            self.blocks_have_changed
            or _have_changed([attributes.get("forward") for attributes in self.modules], self.forwards)
            or _marks(self.model) != self.marks
        )

    @property
    def blocks_have_changed(self) -> bool:
        """Whether anything was put on a block or a site since, or taken off."""
        return (
            _have_changed([attributes.get("forward") for attributes in self.blocks], self.forwards_of_blocks)
            or list(map(bool, self.hooks)) != self.are_hooked
            or [type(owner).forward for owner in self.owners] != self.class_forwards
        )


def view(layout: Layout) -> View:
    """What stands on the layout's model now."""
    model: Any = layout.model
    blocks = [module for _, block in layout.blocks for module in block.modules]
    inlined = [module for _, block in layout.blocks for module in _inlined(block)]
    parts = [*chain.from_iterable(_modules_of_sites(layout)), *inlined]
    of_blocks = tuple(vars(module) for module in parts)
    of_modules = tuple(vars(module) for path, module in model.named_modules() if path.count(".") < DEPTH)
    hooks = (
        *(hooks for module in (*blocks, *inlined) for hooks in (module._forward_hooks, module._forward_pre_hooks)),
        torch_module._global_forward_hooks,
        torch_module._global_forward_pre_hooks,
    )
    owners = (model, *blocks, *inlined)
    return View(
        model,
        of_blocks,
        of_modules,
        [attributes.get("forward") for attributes in of_blocks],
        [attributes.get("forward") for attributes in of_modules],
        hooks,
        list(map(bool, hooks)),
        owners,
        [type(owner).forward for owner in owners],
        _marks(model),
    )


def _have_changed(now: list[Any], then: list[Any]) -> bool:
    """Whether forwards are others than they were, but for those of further sessions on the model."""
    return now != then and not all(map(is_unchanged, now, then))


def _marks(model: Any) -> list[Any]:
    return [getattr(model, "_cache_config", None), *(getattr(model, mark, None) for mark in MARKS)]


def _modules_of_sites(layout: Layout) -> list[tuple[nn.Module, ...]]:
    """The modules that are skipped with every site, in order of sites."""
    if layout.blocks:
        return [block.modules for _, block in layout.blocks for _ in block.branches]
    return [(layout.model.get_submodule(site.name),) for site in layout.sites]


def _inlined(block: Block) -> list[nn.Module]:
    return [block.module.get_submodule(path) for path in block.inlined]


def _is_patched(block: Block) -> bool:
    """Whether calling the block's parts leaves out something that its own forward does."""
    if runs_another_forward(block.module, block.native):
        return True
    inlined = _inlined(block)
    return any(_has_hooks(module) or runs_another_forward(module) for module in inlined)


def _runs_another_forward(layout: Layout) -> bool:
    """Whether the model's forward is not that of its class, or its class's not that of a model that is known."""
    model = layout.model
    known = [kind for kind in type(model).__mro__ if kind.__module__.startswith("diffusers.")]
    is_known = bool(known) and any(block.native or block.is_residual for _, block in layout.blocks)
    return runs_another_forward(model, known[0].__name__ if is_known else None, around=True)


def runs_another_forward(module: Any, native: str | None = None, around: bool = False) -> bool:
    """Whether a module runs another forward than that of its class.

    native: the class of diffusers whose forward is expected; None for the module's own class.
    around: whether hooks that run before or after the forward count as none.
    """
    module = vars(module).get("_modules", {}).get("_orig_mod", module)  # compiled by itself
    return not _is_of_class(type(module), native) or any(_foreign(module, around))


def _is_of_class(kind: type, native: str | None) -> bool:
    """Whether the forward of the class was written with the class, and not put there afterwards."""
    home = next(base for base in kind.__mro__ if "forward" in vars(base))
    function = vars(home)["forward"]
    written_in = getattr(function, "__globals__", {}).get("__name__", "")
    if native is not None:
        return home.__name__ == native and written_in.startswith("diffusers.")
    packages = ("torch", home.__module__.partition(".")[0])
    is_decorated = hasattr(function, "__wrapped__") and written_in.partition(".")[0] in packages
    return written_in == home.__module__ or is_decorated


def _foreign(module: Any, around: bool) -> Iterator[Any]:
    """What others have put around a module's forward, or in its place."""
    own = vars(module)
    registry, hook = own.get("_diffusers_hook"), own.get("_hf_hook")
    hooks = getattr(registry, "hooks", {})
    if registry is not None:
        yield from (part for part in hooks.values() if not _is_around(part, around))
    if hook is not None:
        parts = getattr(hook, "hooks", (hook,))
        yield from (part for part in parts if not around and not type(part).__module__.startswith("accelerate."))
    layers = [own.get("forward"), *(reference.forward for reference in getattr(registry, "_fn_refs", ()) if hooks)]
    if hook is not None:
        layers.append(own.get("_old_forward"))
    yield from (layer for layer in map(below, layers) if not _is_known(layer, module))


def _is_around(hook: Any, around: bool) -> bool:
    """Whether a hook of diffusers leaves what a module computes as it is."""
    kind = type(hook)
    if kind.__module__.startswith("diffusers.") and kind.__name__ in AROUND:
        return True
    return around and not hasattr(hook, "new_forward")


def _is_known(layer: Any, module: nn.Module) -> bool:
    """Whether a layer of a module's forward is its class's, or the call of hooks that are looked at by themselves."""
    if layer is None:
        return True
    function = layer.func if isinstance(layer, functools.partial) else getattr(layer, "__func__", layer)
    if function is getattr(type(module).forward, "__func__", type(module).forward):
        return True
    home, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    return isinstance(layer, functools.partial) and (
        (home == "diffusers.hooks.hooks" and name.startswith("HookRegistry."))
        or (home == "accelerate.hooks" and name.startswith("add_hook_to_module."))
    )


def _has_hooks(module: Any) -> bool:
    """Whether something runs around a module's forward: hooks of torch, or a call that its class has of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or _is_called_by_itself(module)


def _is_called_by_itself(module: Any) -> bool:
    return type(module).__call__ is not nn.Module.__call__ and not hasattr(module, "_orig_mod")


def _has_global_hooks() -> bool:
    """Whether hooks of all modules are set, besides those of torch's own counters, which only watch."""
    hooks: Iterable[Any] = (
        *torch_module._global_forward_hooks.values(),
        *torch_module._global_forward_pre_hooks.values(),
    )
    return any(not str(getattr(hook, "__module__", "")).startswith("torch.") for hook in hooks)
