"""Replacement of forwards on a model, and their removal."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from forecache.models.blocks import Forward
from forecache.models.regional import called_plainly


@dataclass(eq=False)
class Replacement:
    """What one of our functions stands for.

    below: the function that it replaced; None for the method of the owner's class.
    is_open: whether its block is open. One that has ended passes calls on, where others still hold it.
    """

    below: Any
    is_open: bool = True


_REPLACEMENTS: WeakKeyDictionary[Any, Replacement] = WeakKeyDictionary()
"""Every function that was set by `replaced` and is still held by someone."""


@contextmanager
def mounted(forwards: Iterable[tuple[nn.Module, Forward]]) -> Iterator[None]:
    """Replace the forwards of modules in this block; on exit, also by an exception, they have their own again.

    A forward is set on the instance, as accelerate's hooks do it: modules, parameters, hooks and classes stay as they
    are.
    """
    with ExitStack() as stack:
        for module, forward in forwards:
            stack.enter_context(replaced(module, "forward", forward))
            stack.enter_context(called_plainly(module))
        yield


@contextmanager
def replaced(owner: object, name: str, function: Forward) -> Iterator[None]:
    """Set ``owner.name`` to ``function`` in this block, on the instance alone. Blocks may end in any order.

    Others may wrap the function in the meantime. When the block ends, their wrappers stay and get what it replaced. A
    deep copy of the owner does not get the replacement, which would act for the original.
    """
    own = vars(owner)
    drop_ended(owner, name)
    _REPLACEMENTS[function] = Replacement(own.get(name))
    own[name] = function
    if _is_copied_plainly(type(owner)):
        own.setdefault("__deepcopy__", functools.partial(_bare_copy, owner))
    try:
        yield
    finally:
        replacement = _REPLACEMENTS.get(function)
        if replacement is not None:  # the interpreter drops it where a process ends with a session open
            _end(owner, name, function, replacement)


def _end(owner: object, name: str, function: Forward, replacement: Replacement) -> None:
    """Give ``owner.name`` back what the function replaced."""
    own = vars(owner)
    replacement.is_open = False
    above = _above(function, own.get(name))
    if above is not None:
        above.below = replacement.below  # a later block is still open: it will restore what this one would
    drop_ended(owner, name)
    _give_back(owner, name, function, replacement.below)
    if not any(ours(value) is not None for value in own.values()):
        own.pop("__deepcopy__", None)


def drop_ended(owner: object, name: str) -> None:
    """Take functions whose blocks have ended from the top of ``owner.name``, where others have put them back."""
    own = vars(owner)
    top = own.get(name)
    while (function := ours(top)) is not None and not (replacement := _REPLACEMENTS[function]).is_open:
        top = replacement.below
        if top is None:
            del own[name]
        else:
            own[name] = top


def _give_back(owner: object, name: str, function: Forward, below: Any) -> None:
    """Give those who wrapped the function what it had replaced: hooks of diffusers and accelerate, and attributes."""
    own = vars(owner)
    of_class: Any = getattr(type(owner), name, None)
    before = of_class.__get__(owner) if below is None and hasattr(of_class, "__get__") else below
    for attribute, value in list(own.items()):
        if attribute != name and ours(value) is function:  # accelerate's _old_forward
            own[attribute] = before
    holders = [*getattr(own.get("_diffusers_hook"), "_fn_refs", ()), *_wrappers(own.get(name))]
    for holder in holders:
        for attribute in ("forward", "original_forward", "__wrapped__"):
            if ours(vars(holder).get(attribute)) is function:
                setattr(holder, attribute, before)


def _wrappers(top: Any) -> list[Any]:
    """The functions from ``top`` on that wrap one another, as ``__wrapped__`` tells."""
    layers: list[Any] = []
    while hasattr(top := getattr(top, "__func__", top), "__dict__") and all(top is not layer for layer in layers):
        layers.append(top)
        top = vars(top).get("__wrapped__")
    return layers


def ours(value: Any) -> Any:
    """The function of ours that a value is, bound to an object or not; None if it is none."""
    function = value.__func__ if isinstance(value, MethodType) else value
    return function if isinstance(function, FunctionType) and function in _REPLACEMENTS else None


def below(value: Any) -> Any:
    """What lies under our functions; None for the method of the class."""
    while (function := ours(value)) is not None:
        value = _REPLACEMENTS[function].below
    return value


def _is_copied_plainly(kind: type) -> bool:
    """Whether copy.deepcopy creates an object of the class and copies its state, without methods of its own."""
    return not hasattr(kind, "__deepcopy__") and all(
        getattr(kind, way) is getattr(object, way) for way in ("__reduce_ex__", "__reduce__")
    )


def _bare_copy(owner: Any, memo: dict[int, Any]) -> Any:
    """A deep copy with the original functions in the place of our replacements."""
    kind: Any = type(owner)
    twin = memo[id(owner)] = kind.__new__(kind)
    state = {name: value for name, value in owner.__getstate__().items() if name != "__deepcopy__"}
    under = {name: below(value) for name, value in state.items()}
    originals = {name: value for name, value in under.items() if value is not None or state[name] is None}
    bare = copy.deepcopy(originals, memo)
    if hasattr(twin, "__setstate__"):
        twin.__setstate__(bare)
    else:
        vars(twin).update(bare)
    return twin


def is_unchanged(now: Any, then: Any) -> bool:
    """Whether a forward is what it was, apart from functions of ours that were put over it or have ended since."""
    if now == then:
        return True
    top = now
    while isinstance(top, FunctionType) and top in _REPLACEMENTS:
        top = _REPLACEMENTS[top].below
        if top == then:
            return True
    has_ended = isinstance(then, FunctionType) and then in _REPLACEMENTS and not _REPLACEMENTS[then].is_open
    return has_ended and below(now) == below(then)


def is_on_top(owner: object, name: str, function: Forward) -> bool:
    """Whether a call of ``owner.name`` reaches ``function`` first, or after others of ours."""
    top = vars(owner).get(name)
    while top is not function and isinstance(top, FunctionType) and top in _REPLACEMENTS:
        top = _REPLACEMENTS[top].below
    return top is function


def is_in_place(owner: object, name: str, function: Forward) -> bool:
    """Whether a call of ``owner.name`` still reaches ``function``; False if the original is in place again.

    Wrappers are followed through ``__wrapped__``.
    """
    top, before = vars(owner).get(name), _REPLACEMENTS[function].below
    original = getattr(type(owner), name, None)
    layers = _reached(top)
    if any(layer is function for layer in layers):
        return True
    seen = set(map(id, layers))
    return top is not None and id(before) not in seen and id(original) not in seen


def _reached(top: Any) -> list[Any]:
    """The functions that a call of ``top`` reaches, as far as is known."""
    left, layers = [top], []
    while left:
        layer = left.pop()
        if layer is not None and all(layer is not other for other in layers):
            layers.append(layer)
            under = _REPLACEMENTS[layer].below if ours(layer) is layer else None
            left += [under, getattr(layer, "__dict__", {}).get("__wrapped__"), getattr(layer, "__func__", None)]
    return layers


def _above(function: Forward, top: Any) -> Replacement | None:
    """The next of our replacements over ``function``, below ``top``; None if there is none."""
    while (layer := ours(top)) is not None:
        if ours((replacement := _REPLACEMENTS[layer]).below) is function:
            return replacement
        top = replacement.below
    return None


def is_mounted(module: nn.Module) -> bool:
    """Whether the module's forward is one of ours, below wrappers of others or not."""
    functions = map(ours, _reached(vars(module).get("forward")))
    return any(function is not None and _REPLACEMENTS[function].is_open for function in functions)
