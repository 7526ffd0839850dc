"""The model families that forecache knows, and how a user adds one.

Built-in families are the ``FAMILIES`` of every module in `forecache.models.families`: a new file there is a new family.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, get_args

from torch import nn

from forecache.errors import ModelError
from forecache.models import families as built_in
from forecache.models.family import Family
from forecache.models.layout import Layout, Level

_registered: dict[type, Family] = {}


class Registration:
    """A registered family; `remove`, or the end of a ``with`` block, takes it out again."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def remove(self) -> None:
        """Forget the family; a second call does nothing."""
        _registered.pop(self._kind, None)

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def register(kind: type, layout: Callable[[Any], Layout], *, name: str | None = None) -> Registration:
    """Teach forecache a model family of your own; it is asked before the built-in ones.

    kind: the class of its models; subclasses belong to the family
    layout: model -> its sites, usually `forecache.models.layout.from_blocks` of one `forecache.models.blocks.Block`
        a block
    name: the name in `forecache models`; by default that of the class

    Raises ModelError if ``kind`` is no module class, or is registered already.
    """
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ModelError(f"A family is registered for a class of torch modules, not for {kind!r}.")
    if kind in _registered:
        raise ModelError(
            f"There is a family for {kind.__name__} already ({_registered[kind].name}): call remove() on what "
            "register returned for it, or use it in a `with` block."
        )
    if not callable(layout):
        raise ModelError(f"The layout of {kind.__name__} must be a function of the model, not {layout!r}.")

    def checked_layout(model: Any) -> Layout:
        result = layout(model)
        if not isinstance(result, Layout):
            raise ModelError(
                f"The layout function of {kind.__name__} returned a {type(result).__name__} instead of a layout: end "
                "it with `return forecache.models.layout.from_blocks(model, blocks)`."
            )
        return result

    _registered[kind] = Family(
        name or kind.__name__, kind.__name__, "branches", (), lambda model: isinstance(model, kind), checked_layout
    )
    return Registration(kind)


@cache
def _built_in() -> tuple[Family, ...]:
    """The families of all modules in `forecache.models.families`, branches first, those by structure last.

    Of a class that is known by branches and by blocks, the finer one stands here.
    """
    paths = [f"{built_in.__name__}.{module.name}" for module in pkgutil.iter_modules(built_in.__path__)]
    every = [family for path in paths for family in getattr(import_module(path), "FAMILIES", ())]
    levels = get_args(Level)
    in_branches = {family.kind for family in every if family.level == "branches"}
    every = [family for family in every if family.level == "branches" or family.kind not in in_branches]
    return tuple(sorted(every, key=lambda family: (family.by_structure, levels.index(family.level), family.name)))


def families() -> tuple[Family, ...]:
    """All known families in the order in which they are asked: the user's, the last registered first, then built-in."""
    return (*reversed(_registered.values()), *_built_in())


def family_of(model: nn.Module) -> Family | None:
    """The first family that a model belongs to; None if there is none."""
    return next((family for family in families() if family.fits(model)), None)


def table() -> list[dict[str, str]]:
    """One row a family, for documents: name, model, level, sites."""
    return [
        {"name": family.name, "model": family.kind, "level": family.level, "sites": ", ".join(family.sites)}
        for family in families()
    ]
