"""The constants of a plan: tensors of its corrections, in a safetensors file beside the plan's JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from forecache.errors import PlanFileError
from forecache.io import files
from forecache.io.text import mib, short

MAX_BYTES = 16 * 2**30
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Constants(Mapping[str, Tensor]):
    """Named tensors of a plan, immutable; equal if their names, dtypes and values are equal.

    A tensor has the shape of a feature without its batch, (tokens, width), or (width,) with one value a channel.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        self._tensors = dict(tensors or {})

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Constants):
            return NotImplemented
        return self.keys() == other.keys() and all(_same(tensor, other[name]) for name, tensor in self.items())

    def __hash__(self) -> int:
        return hash(frozenset(self._tensors))

    def __repr__(self) -> str:
        return f"Constants({len(self)} tensors, {mib(self.nbytes)})"

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.values())


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def encode(constants: Constants) -> tuple[bytes, str]:
    """The contents of a constants file, and the SHA-256 by which its plan knows it."""
    data = save({name: tensor.contiguous() for name, tensor in constants.items()})
    return data, hashlib.sha256(data).hexdigest()


def read(path: Path, digest: str) -> Constants:
    """The tensors of a constants file; PlanFileError for one that is unreadable or has not this SHA-256 ``digest``."""
    try:
        data = files.contents(path, MAX_BYTES)
    except FileNotFoundError:
        raise PlanFileError(f"The plan's constants are not at {path}: keep the two files together.") from None
    except OSError as error:
        raise PlanFileError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise PlanFileError(f"{path} cannot hold the constants of a plan: {error}.") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise PlanFileError(f"{path} is not the file that the plan was saved with: save the plan again.")
    try:
        tensors = load(data)
    except Exception as error:  # safetensors has no error of its own that is public, and torch has several
        raise PlanFileError(f"{path} is not a readable safetensors file: {error}.") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or not bool(tensor.isfinite().all()):
            raise PlanFileError(f"{short(name)} in {path} is no tensor of finite numbers ({tensor.dtype}).")
    return Constants(tensors)
