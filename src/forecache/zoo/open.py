"""Models by name: bundled ones, pipeline folders and hub repositories."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from forecache.errors import InputError, MissingExtraError
from forecache.sampling.device import as_dtype, resolve
from forecache.sampling.sources import Source, as_source, takes_texts
from forecache.zoo.bundled import models, record


def open_source(name: str, device: str = "auto", dtype: str = "auto") -> Source:
    """The model of a name: a bundled one (`models`), a folder of ``save_pretrained``, or a repository on the hub.

    device: ``auto`` takes a GPU if there is one
    dtype: ``auto`` is bfloat16 on a GPU and float32 on the CPU

    Raises InputError for an unknown name, or a pipeline that cannot be loaded or sampled from.
    """
    placement, precision = resolve(device, dtype)
    if name in models():
        return record(name).open(precision, placement)
    return as_source(_pipeline(name, precision).to(placement))


def _pipeline(name: str, dtype: torch.dtype) -> Any:
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise MissingExtraError("diffusers", "diffusers", f"Loading {name}") from error
    is_folder = Path(name).is_dir()
    if not is_folder and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(
            f"There is no model {name!r}: give {', '.join(map(repr, models()))}, a pipeline folder or a hub "
            "repository owner/name."
        )
    try:
        pipe = DiffusionPipeline.from_pretrained(name, **as_dtype(dtype))
    except Exception as error:  # the hub, files and configurations fail in many ways; the reason is kept
        origin = "the folder" if is_folder else "the hub"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{name} cannot be loaded as a diffusers pipeline from {origin}: {reason}") from error
    if type(pipe).__name__ != "DiTPipeline" and not takes_texts(pipe):
        raise InputError(
            f"{name} is a {type(pipe).__name__}; `sample` runs DiTPipelines, and pipelines with a transformer that "
            "make images of texts. In Python, forecache.apply works on any pipeline with a transformer."
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe
