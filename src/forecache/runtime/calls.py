"""What a session reads from the arguments of a model call: which generation it can belong to, and its timestep."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

TIMESTEP_NAMES = ("timestep", "timesteps", "t", "time", "sigma")
Inputs = tuple[torch.Size, torch.dtype, torch.device]


def inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs | None:
    """Shape, dtype and device of the first tensor of a model call."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value.shape, value.dtype, value.device
    return None


class Seen:
    """The sample that a call was given, to tell whether the next one is given the same: the first tensor but the time.

    It is not held, and nothing is said of one that counts no versions, or of none.
    """

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any], timestep: Any) -> None:
        found = (each for each in (*args, *kwargs.values()) if isinstance(each, Tensor) and each is not timestep)
        sample = next(found, None)
        self._sample = weakref.ref(sample) if sample is not None and not sample.is_inference() else None
        self._version = sample._version if self._sample is not None and sample is not None else None

    def again(self, before: Seen | None) -> bool:
        """Whether the call before was given the very same."""
        if before is None or self._sample is None or before._sample is None:
            return False
        sample = self._sample()
        return sample is not None and sample is before._sample() and self._version == before._version


def timestep_of(forward: Callable[..., Any]) -> Callable[[tuple[Any, ...], Mapping[str, Any]], Any]:
    """Finds the timestep among the arguments of the model's forward, if it has one."""
    names = list(inspect.signature(forward).parameters)
    name = next((each for each in TIMESTEP_NAMES if each in names), TIMESTEP_NAMES[0])
    position = names.index(name) if name in names else len(names)

    def find(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return args[position] if position < len(args) else kwargs.get(name)

    return find


def is_at_hand(timestep: Any) -> bool:
    """Whether it can be read without waiting for a device."""
    return not isinstance(timestep, Tensor) or timestep.device.type in ("cpu", "meta")


def number(timestep: Any, rising: bool = False) -> float | None:
    """The timestep of a call as a number, the largest of its samples; None if it is none. Negated where it rises."""
    if isinstance(timestep, Tensor):
        if timestep.is_meta or timestep.numel() == 0:
            return None
        timestep = float(timestep.detach().to(torch.float64).max())
    return (-float(timestep) if rising else float(timestep)) if isinstance(timestep, int | float) else None
