"""The arguments of a call: of a model, or of a module inside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn


class Arguments(NamedTuple):
    """The arguments of one call of a module: ``module(*args, **kwargs)``."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]


KEYWORD_ONLY = 2**31
"""The position of a parameter that is given by its name alone, behind every positional argument."""


def positions(module: nn.Module, names: Sequence[str]) -> dict[str, int] | None:
    """The positions of parameters in the module's forward; None if no signature has these names.

    A forward of ``(*args, **kwargs)``, as wrappers of other libraries have it, is followed through ``__wrapped__``;
    where it wraps nothing, the forward of the module's class tells its parameters.
    """
    for forward in (module.forward, type(module).forward.__get__(module)):
        known = _positional(forward)
        if all(name in known for name in names):
            return {name: known[name] for name in names}
    return None


def _positional(forward: Callable[..., Any]) -> dict[str, int]:
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):  # compiled by another library
        return {}
    named = [
        parameter for parameter in parameters if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    return {
        parameter.name: KEYWORD_ONLY if parameter.kind is parameter.KEYWORD_ONLY else position
        for position, parameter in enumerate(named)
    }


def named_arguments(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, in order of the parameters; a position where the signature has no name for it.

    A forward of ``(*args, **kwargs)`` that wraps nothing names none of its positions.
    """
    known = (_positional(forward) for forward in (module.forward, type(module).forward.__get__(module)))
    parameters = next(filter(None, known), {})
    names = [name for name, place in parameters.items() if place < KEYWORD_ONLY]
    names += [f"argument {place}" for place in range(len(names), len(args))]
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    order = {name: place for place, name in enumerate(names)}
    return dict(sorted(named.items(), key=lambda pair: order.get(pair[0], len(order))))
