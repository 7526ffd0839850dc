"""Where a model is put, and in which numbers."""

from __future__ import annotations

import torch

from forecache.errors import InputError


def resolve(device: str = "auto", dtype: str = "auto") -> tuple[str, torch.dtype]:
    """The device and dtype that these words stand for here; InputError if the device cannot be used."""
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    kind = _dtype(dtype, where)
    try:
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"The device {where!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return where, kind


def as_dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """What diffusers' ``from_pretrained`` is told to load weights in this dtype: the word for it changed with 0.40."""
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
