"""Values as text, for messages and tables."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch

MIB = 2**20
"""Bytes in a MiB, for columns of numbers under that unit."""


def short(value: Any) -> str:
    """The value's ``repr`` in at most 60 characters; a long value is cut before it is spelled out."""
    if isinstance(value, str | bytes) and len(value) > 80:
        value = value[:80]
    elif isinstance(value, list | tuple) and len(value) > 20:
        value = value[:20]
    elif isinstance(value, dict) and len(value) > 20:
        value = dict(islice(value.items(), 20))
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def mib(nbytes: float, digits: int = 1) -> str:
    """A number of bytes in MiB, such as ``1,234.5 MiB``."""
    return f"{nbytes / MIB:,.{digits}f} MiB"


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype without its module: ``float32``."""
    return str(dtype).removeprefix("torch.")
