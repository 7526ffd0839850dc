"""The arguments of a model call: its signature, its sample, its timestep."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forecache.models.arguments import Arguments

TIMESTEP_NAMES = ("timestep", "timesteps", "t", "time", "sigma")


class CallSignature(NamedTuple):
    """Shape, dtype and device of the first tensor of a model call; all calls of a generation have the same."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def signature_of(arguments: Arguments) -> CallSignature | None:
    """The signature of a call; None if no argument is a tensor."""
    for value in (*arguments.args, *arguments.kwargs.values()):
        if isinstance(value, Tensor):
            return CallSignature(value.shape, value.dtype, value.device)
    return None


class LastSample:
    """The sample of a model call, to tell whether the next call gets the same: the first tensor besides the timestep.

    The sample is referenced weakly. An inference tensor counts no versions, so it is never called the same.
    """

    def __init__(self, arguments: Arguments, timestep: Any) -> None:
        self._sample: weakref.ref[Tensor] | None = None
        self._version: int | None = None
        for value in (*arguments.args, *arguments.kwargs.values()):
            if isinstance(value, Tensor) and value is not timestep:
                if not value.is_inference():
                    self._sample, self._version = weakref.ref(value), value._version
                break

    def is_same(self, before: LastSample | None) -> bool:
        """Whether the call before had the very same sample, and nothing has written into it since."""
        if before is None or self._sample is None or before._sample is None:
            return False
        sample = self._sample()
        return sample is not None and sample is before._sample() and self._version == before._version


def timestep_finder(forward: Callable[..., Any]) -> Callable[[Arguments], Any]:
    """A function that finds the timestep among the arguments of this forward; it gives None where there is none."""
    names = list(inspect.signature(forward).parameters)
    name = next((known for known in TIMESTEP_NAMES if known in names), TIMESTEP_NAMES[0])
    position = names.index(name) if name in names else len(names)

    def find(arguments: Arguments) -> Any:
        args, kwargs = arguments
        return args[position] if position < len(args) else kwargs.get(name)

    return find


def is_at_hand(timestep: Any) -> bool:
    """Whether the timestep can be read without waiting for a device."""
    return not isinstance(timestep, Tensor) or timestep.device.type in ("cpu", "meta")


def as_number(timestep: Any, rising: bool = False) -> float | None:
    """The timestep as a number, the largest of its samples, negated where time rises; None if it is no number."""
    if isinstance(timestep, Tensor):
        if timestep.is_meta or timestep.numel() == 0:
            return None
        timestep = float(timestep.detach().to(torch.float64).max())
    return (-float(timestep) if rising else float(timestep)) if isinstance(timestep, int | float) else None
