"""Replacement of forwards on a model, and their removal."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

from torch import nn

from forecache.models.blocks import Forward


@contextmanager
def mounted(forwards: Iterable[tuple[nn.Module, Forward]]) -> Iterator[None]:
    """Replace the forwards of modules in this block; on exit, also by an exception, they have their own again.

    A forward is set on the instance, as accelerate's hooks do it: modules, parameters, hooks and classes stay as they
    are.
    """
    with ExitStack() as stack:
        for module, forward in forwards:
            stack.enter_context(replaced(module, "forward", forward))
        yield


@contextmanager
def replaced(owner: object, name: str, function: Forward) -> Iterator[None]:
    """Set ``owner.name`` to ``function`` in this block, on the instance alone. Blocks may end in any order.

    A deep copy of the owner does not get the replacement, which would act for the original.
    """
    own, mark = vars(owner), vars(function)
    mark["_forecache"] = own.get(name)  # the replaced function
    own[name] = function
    if _is_copied_plainly(type(owner)):
        own.setdefault("__deepcopy__", functools.partial(_bare_copy, owner))
    try:
        yield
    finally:
        before, top = mark["_forecache"], own.get(name)
        if (above := _above(function, top)) is not None:
            vars(above)["_forecache"] = before  # a later block is still open: it will restore what this one would
        elif top is function and before is None:
            own.pop(name)
        elif top is function:
            own[name] = before
        # else another library has replaced it since: its function stays
        if not any(hasattr(value, "_forecache") for value in own.values()):
            own.pop("__deepcopy__", None)


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
    below = {name: _below(value) for name, value in state.items()}
    originals = {name: value for name, value in below.items() if value is not None or state[name] is None}
    bare = copy.deepcopy(originals, memo)
    if hasattr(twin, "__setstate__"):
        twin.__setstate__(bare)
    else:
        vars(twin).update(bare)
    return twin


def _below(value: Any) -> Any:
    """The original under our replacements of a value; None if there was none."""
    while isinstance(value, FunctionType) and "_forecache" in vars(value):
        value = vars(value)["_forecache"]
    return value


def is_in_place(owner: object, name: str, function: Forward) -> bool:
    """Whether a call of ``owner.name`` still reaches ``function``; False if the original is in place again.

    Wrappers are followed through ``__wrapped__``.
    """
    top, before = vars(owner).get(name), vars(function).get("_forecache")
    original = getattr(type(owner), name, None)
    left, seen = [top], set[int]()
    while left:
        layer = left.pop()
        if layer is function:
            return True
        if layer is not None and id(layer) not in seen:
            seen.add(id(layer))
            marks = getattr(layer, "__dict__", {})
            left += [marks.get("_forecache"), marks.get("__wrapped__"), getattr(layer, "__func__", None)]
    return top is not None and id(before) not in seen and id(original) not in seen


def _above(function: Forward, top: Any) -> Any:
    """The next of our replacements over ``function``, below ``top``; None if there is none."""
    while top is not None and (below := getattr(top, "__dict__", {}).get("_forecache")) is not function:
        top = below
    return top


def is_mounted(module: nn.Module) -> bool:
    """Whether the module's forward is one of ours."""
    return hasattr(vars(module).get("forward"), "_forecache")
