"""Forwards put on a model, and taken off again."""

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
    """Give modules these forwards, and on exit, by whatever road, the ones they had.

    A forward is set on the instance, as accelerate's hooks do it: no module, parameter, hook or class is touched.
    """
    with ExitStack() as stack:
        for module, forward in forwards:
            stack.enter_context(replaced(module, "forward", forward))
        yield


@contextmanager
def replaced(owner: object, name: str, function: Forward) -> Iterator[None]:
    """``owner.name`` is ``function`` inside the block, set on the instance alone. Blocks may end in any order.

    A deep copy of the owner does not have it: it would go on acting for the original.
    """
    own, mark = vars(owner), vars(function)
    mark["_forecache"] = own.get(name)  # what it replaces
    own[name] = function
    if _is_copied_plainly(type(owner)):
        own.setdefault("__deepcopy__", functools.partial(_bare_copy, owner))
    try:
        yield
    finally:
        before, top = mark["_forecache"], own.get(name)
        if (above := _above(function, top)) is not None:
            vars(above)["_forecache"] = before  # a later block goes on: it will restore what we would
        elif top is function and before is None:
            own.pop(name)
        elif top is function:
            own[name] = before
        # else somebody else has put something there since: it stays
        if not any(hasattr(each, "_forecache") for each in own.values()):
            own.pop("__deepcopy__", None)


def _is_copied_plainly(kind: type) -> bool:
    """Whether copy.deepcopy makes an object of the class and gives it a copy of the state."""
    return not hasattr(kind, "__deepcopy__") and all(
        getattr(kind, way) is getattr(object, way) for way in ("__reduce_ex__", "__reduce__")
    )


def _bare_copy(owner: Any, memo: dict[int, Any]) -> Any:
    """A deep copy with what our replacements have replaced."""
    kind: Any = type(owner)
    twin = memo[id(owner)] = kind.__new__(kind)
    state = {name: each for name, each in owner.__getstate__().items() if name != "__deepcopy__"}
    below = {name: _below(each) for name, each in state.items()}
    bare = copy.deepcopy({name: each for name, each in below.items() if each is not None or state[name] is None}, memo)
    if hasattr(twin, "__setstate__"):
        twin.__setstate__(bare)
    else:
        vars(twin).update(bare)
    return twin


def _below(found: Any) -> Any:
    """What replacements of ours lie over; None for nothing."""
    while isinstance(found, FunctionType) and "_forecache" in vars(found):
        found = vars(found)["_forecache"]
    return found


def is_in_place(owner: object, name: str, function: Forward) -> bool:
    """Whether ``owner.name`` still comes to ``function``; False if what was there before it is there again.

    Wrappers around either are seen through as far as they say what they wrap.
    """
    top, before = vars(owner).get(name), vars(function).get("_forecache")
    original = getattr(type(owner), name, None)
    left, seen = [top], set[int]()
    while left:
        each = left.pop()
        if each is function:
            return True
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            marks = getattr(each, "__dict__", {})
            left += [marks.get("_forecache"), marks.get("__wrapped__"), getattr(each, "__func__", None)]
    return top is not None and id(before) not in seen and id(original) not in seen


def _above(function: Forward, top: Any) -> Any:
    """The replacement of ours that was put over ``function``, looking down from ``top``; None if there is none."""
    while top is not None and (below := getattr(top, "__dict__", {}).get("_forecache")) is not function:
        top = below
    return top


def is_mounted(module: nn.Module) -> bool:
    """Whether the module's forward is one of ours."""
    return hasattr(vars(module).get("forward"), "_forecache")
