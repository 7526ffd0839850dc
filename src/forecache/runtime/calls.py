"""The arguments of a model call: its signature, its sample, its timestep."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from forecache.models.arguments import KEYWORD_ONLY, Arguments, positions

TIMESTEP_NAMES = ("timestep", "timesteps", "t", "time", "sigma")

TensorKind = tuple[torch.Size, torch.dtype, torch.device]
"""Shape, dtype and device of a tensor."""


@dataclass(frozen=True)
class CallSignature:
    """What all calls of a generation have in common, so that features of one fit another.

    sample: shape, dtype and device of the first tensor; None if no argument is a tensor.
    inputs: the same of every tensor among the arguments, also inside lists, tuples and dicts, and the arguments that
        are strings, such as the mode of a model's own KV cache; by name, or by position.
    """

    sample: TensorKind | None
    inputs: Mapping[str | int, Any]

    @property
    def device(self) -> torch.device | None:
        """Device of the sample; None if no argument is a tensor."""
        return None if self.sample is None else self.sample[2]

    def changes(self, other: CallSignature) -> list[str]:
        """The arguments that differ, in words."""
        names = [name for name in {**self.inputs, **other.inputs} if self.inputs.get(name) != other.inputs.get(name)]
        return [f"argument {name}" if isinstance(name, int) else name for name in names]


def signature_of(arguments: Arguments, timestep: Any) -> CallSignature:
    """The signature of a call; the timestep, which may be a number or a tensor of any dtype, is no part of it."""
    inputs: dict[str | int, Any] = {}
    sample = None
    for name, value in (*enumerate(arguments.args), *arguments.kwargs.items()):
        if value is timestep:
            continue
        kind = inputs[name] = _kind_of(value)
        if sample is None and isinstance(value, Tensor):
            sample = kind
    return CallSignature(sample, inputs)


def sample_shape(arguments: Arguments) -> torch.Size | None:
    """The shape of the first tensor of a call; None if no argument is a tensor."""
    for value in (*arguments.args, *arguments.kwargs.values()):
        if isinstance(value, Tensor):
            return value.shape
    return None


def shapes_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[torch.Size, ...]:
    """The shapes of the tensors among arguments."""
    return tuple([value.shape for value in (*args, *kwargs.values()) if isinstance(value, Tensor)])


def _kind_of(value: Any) -> Any:
    """The `TensorKind` of a tensor, the kinds of all tensors inside a list, tuple or dict, a string; () otherwise."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return tuple(kind for part in value if (kind := _kind_of(part)) != ())
    if isinstance(value, dict):
        return tuple((name, kind) for name, part in value.items() if (kind := _kind_of(part)) != ())
    return ()


class LastSample:
    """The sample of a model call, to tell whether the next call gets the same: the first tensor besides the timestep.

    The sample is referenced weakly. An inference tensor counts no versions, so it is never called the same.
    """

    def __init__(self, arguments: Arguments, timestep: Any) -> None:
        self._sample: weakref.ref[Tensor] | None = None
        self._version: int | None = None
        for value in (*arguments.args, *arguments.kwargs.values()):
            if isinstance(value, Tensor) and value is not timestep:
                self._sample = weakref.ref(value)
                self._version = None if value.is_inference() else value._version
                break

    def is_same(self, before: LastSample | None) -> bool:
        """Whether the call before had the very same sample, and nothing has written into it since."""
        return (
            before is not None
            and self._version is not None
            and (self._version == before._version and self.is_same_tensor(before))
        )

    def is_same_tensor(self, before: LastSample | None) -> bool:
        """Whether the call before had the same tensor as its sample, whatever was written into it since."""
        if before is None or self._sample is None or before._sample is None:
            return False
        sample = self._sample()
        return sample is not None and sample is before._sample()


class Told(NamedTuple):
    """What a host tells of a model call beside its lane; a field is None where it does not.

    step: number of the step in the whole run, from 0.
    num_steps: model calls of the whole run in each lane.
    timestep: in the scheduler's units, a number or a tensor.
    sigma: noise level of the sample, a number or a tensor.
    """

    step: int | None = None
    num_steps: int | None = None
    timestep: Any = None
    sigma: Any = None


NOTHING = Told()
"""What is told of a call by a host that names its lane alone."""


class Call(NamedTuple):
    """A model call.

    arguments: its arguments.
    value: its timestep as the model is given it; None if there is none.
    signature: its signature.
    sample: its sample.
    timestep: its timestep as a number; None if it is unknown, or was not read.
    told: what its host told of it.
    """

    arguments: Arguments
    value: Any
    signature: CallSignature
    sample: LastSample
    timestep: float | None = None
    told: Told = NOTHING

    @property
    def time(self) -> Any:
        """Its timestep as the host told it, else as the model is given it; None if there is none."""
        return self.value if self.told.timestep is None else self.told.timestep


def timestep_finder(model: nn.Module) -> Callable[[Arguments], Any]:
    """A function that finds the timestep among the arguments of a model call; it gives None where there is none."""
    places = (positions(model, [name]) for name in TIMESTEP_NAMES)
    ((name, position),) = next(filter(None, places), {TIMESTEP_NAMES[0]: KEYWORD_ONLY}).items()

    def find(arguments: Arguments) -> Any:
        args, kwargs = arguments
        return args[position] if position < len(args) else kwargs.get(name)

    return find


def is_at_hand(timestep: Any) -> bool:
    """Whether the timestep can be read without waiting for a device."""
    return not isinstance(timestep, Tensor) or timestep.device.type in ("cpu", "meta")


def as_number(timestep: Any) -> float | None:
    """The timestep as a number, the largest of its samples; None if it is no number."""
    if isinstance(timestep, Tensor):
        if timestep.is_meta or timestep.numel() == 0:
            return None
        timestep = float(timestep.detach().to(torch.float64).max())
    return float(timestep) if isinstance(timestep, int | float) else None


def fills_kv_cache(arguments: Mapping[str, Any]) -> bool:
    """Whether a call only fills the model's own cache of keys and values, and is no step of a run.

    AnyFlow makes such a call after every chunk of a video, GLM-Image one for every image that it is given. All blocks
    have to run, or their keys and values are missing later.
    """
    flag = arguments.get("kv_cache_flag")
    if isinstance(flag, Mapping):
        return bool(flag.get("is_cache_step"))
    layers = getattr(arguments.get("kv_caches"), "caches", None)
    return isinstance(layers, list) and any(getattr(layer, "mode", None) == "write" for layer in layers)
