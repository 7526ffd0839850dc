"""Device and dtype of a model."""

from __future__ import annotations

import torch

from forecache.errors import InputError


def resolve(device: str = "auto", dtype: str = "auto") -> tuple[str, torch.dtype]:
    """The device and dtype that two options name on this machine.

    device: ``auto`` is a GPU if there is one, else the CPU
    dtype: ``auto`` is float32 on the CPU and bfloat16 elsewhere

    Raises InputError if the device cannot be used, or the dtype is unknown.
    """
    placement = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    precision = _dtype(dtype, placement)
    try:
        torch.empty(0, device=placement)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"The device {placement!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return placement, precision


def as_dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The argument of diffusers' ``from_pretrained`` for the dtype of the weights: its name changed with 0.40."""
    from diffusers import __version__

    major, minor = map(int, __version__.split(".")[:2])
    return {"dtype" if (major, minor) >= (0, 40) else "torch_dtype": dtype}


def _dtype(name: str, device: str) -> torch.dtype:
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    if name not in names:
        raise InputError(f"dtype must be auto, {', '.join(names)}; not {name!r}.")
    return names[name]
