"""Regional compilation: blocks that were compiled one by one stay compiled where they are computed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

NAME = "_compiled_call_impl"
"""Where `nn.Module.compile`, and diffusers' `compile_repeated_blocks` by it, keep the compiled call."""


@dataclass
class _Held:
    """A compiled call that is kept off its module, and how many open blocks want it so."""

    call: Any
    blocks: int = 1


_HELD: WeakKeyDictionary[nn.Module, _Held] = WeakKeyDictionary()


def forward_of(module: nn.Module) -> Callable[..., Any]:
    """The forward of a module, compiled with the options of its call where it was compiled in place.

    A compiled call holds the forward that the module has when it runs. While that is ours, the call would be traced
    through decisions of the run, so the module is called plainly (`called_plainly`), and its own forward is compiled.
    """
    compiled = vars(module).get(NAME)
    if compiled is None:
        return module.forward
    options: Any = inspect.getclosurevars(compiled).nonlocals.get("self")
    return options(module.forward) if options is not None else module.forward


@contextmanager
def called_plainly(module: nn.Module) -> Iterator[None]:
    """Call a module that was compiled in place as if it were not, in this block; blocks may end in any order."""
    own = vars(module)
    held = _HELD.get(module)
    if held is not None:
        held.blocks += 1
    elif own.get(NAME) is not None:
        _HELD[module] = held = _Held(own[NAME])
        own[NAME] = None
    try:
        yield
    finally:
        if held is not None:
            held.blocks -= 1
            if not held.blocks:
                del _HELD[module]
                if own.get(NAME) is None:  # it was not compiled anew in the meantime
                    own[NAME] = held.call
