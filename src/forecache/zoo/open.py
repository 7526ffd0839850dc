"""Models by name: bundled ones, pipeline folders and hub repositories."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from forecache.errors import InputError, MissingExtraError
from forecache.sampling.device import as_dtype, resolve
from forecache.sampling.sources import Source, as_source, takes_texts
from forecache.zoo.bundled import models, record
from forecache_command import unknown_model

UNREACHABLE = re.compile(
    r"LocalEntryNotFound|couldn't connect|[Cc]annot (reach|send)|Connection ?(Error|refused|reset)|Name or service|"
    r"Max retries|offline|client has been closed|ConnectTimeout|resolve"
)

OFFLOADS = ("none", "model", "group")
"""Where the weights of a pipeline wait for their use: on the GPU; on the CPU, one component at a time; by leaves."""


def open_source(name: str, device: str = "auto", dtype: str = "auto", offload: str = "none") -> Source:
    """The model of a name: a bundled one (`models`), a folder of ``save_pretrained``, or a repository on the hub.

    device: ``auto`` takes a GPU if there is one
    dtype: ``auto`` is bfloat16 on a GPU and float32 on the CPU
    offload: one of `OFFLOADS`; diffusers' model offload, or its group offload by leaves

    Raises InputError for an unknown name, a pipeline that cannot be loaded or sampled from, and for offloading without
    a GPU.
    """
    placement, precision = resolve(device, dtype)
    _check_offload(offload, placement, name)
    if name in models():
        return record(name).open(precision, placement)
    return as_source(_placed(_pipeline(name, precision), placement, offload))


def _check_offload(offload: str, device: str, name: str) -> None:
    if offload not in OFFLOADS:
        raise InputError(f"offload is one of {', '.join(OFFLOADS)}; not {offload!r}.")
    if offload != "none" and device == "cpu":
        raise InputError(
            f"Offload by {offload} keeps weights on the CPU while a GPU does not need them, and this run is on the "
            "CPU: leave it out, or give a device such as cuda."
        )
    if offload != "none" and name in models():
        raise InputError(f"{name} is a small model that is not offloaded: leave offload out.")
    if offload != "none" and find_spec("accelerate") is None:
        raise MissingExtraError("accelerate", "diffusers", "Offloading")


def _placed(pipe: Any, device: str, offload: str) -> Any:
    """The pipeline with its weights on the device, or set up to bring them there."""
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "group":
        if not hasattr(pipe, "enable_group_offload"):
            raise InputError("This diffusers offloads no pipelines by group: update it, or offload by model.")
        pipe.enable_group_offload(
            onload_device=torch.device(device), offload_device=torch.device("cpu"), offload_type="leaf_level"
        )
    else:
        pipe.to(device)
    return pipe


def open_structure(name: str) -> Any:
    """The transformers, without weights, and the scheduler of a pipeline: all that a plan and its cost need.

    name: a pipeline folder or a hub repository, of which the configs alone are read

    Raises InputError for an unknown name, or one without a transformer.
    """
    check_name(name)
    with _loading(name):
        import diffusers

        loaded: Any = diffusers.DiffusionPipeline.load_config(name)
        index: dict[str, Any] = dict(loaded)
        parts = {part: entry for part in ("transformer", "transformer_2") if (entry := index.get(part)) and entry[1]}
        structure = SimpleNamespace()
        for part, (_, kind) in parts.items():
            module: Any = getattr(diffusers, kind)
            with torch.device("meta"):
                setattr(structure, part, module.from_config(module.load_config(name, subfolder=part)).eval())
        if entry := index.get("scheduler"):
            structure.scheduler = getattr(diffusers, entry[1]).from_pretrained(name, subfolder="scheduler")
    if not parts:
        raise InputError(f"{name} is a {index.get('_class_name', 'pipeline')}, which has no transformer to plan for.")
    return structure


def check_name(name: str, *others: str) -> None:
    """Raises InputError for a name that is no bundled model, none of ``others``, no folder and no repository."""
    if sentence := unknown_model(name, [*models(), *others]):
        raise InputError(sentence)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Errors of loading a pipeline in this block as one sentence, an InputError; diffusers may be missing."""
    try:
        import diffusers  # noqa: F401 - so that its absence is told apart from a failure to load
    except ImportError as error:
        raise MissingExtraError("diffusers", "diffusers", f"Loading {name}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers' own, of its own calls
            yield
    except Exception as error:  # the hub, files and configurations fail in many ways; the reason is kept
        folder = " from the folder" if Path(name).is_dir() else ""
        raise InputError(f"{name} cannot be loaded as a diffusers pipeline{folder}: {_reason(name, error)}") from error


def _pipeline(name: str, dtype: torch.dtype) -> Any:
    check_name(name)
    with _loading(name):
        from diffusers import DiffusionPipeline

        pipe: Any = DiffusionPipeline.from_pretrained(name, **as_dtype(dtype))
    if type(pipe).__name__ != "DiTPipeline" and not takes_texts(pipe):
        raise InputError(
            f"{name} is a {type(pipe).__name__}; the command line samples from DiTPipelines, and from pipelines with a "
            "transformer that make images or videos of texts alone. In Python, forecache.apply works on any pipeline "
            "with a transformer, and forecache.tune and calibrate take a source of your own, as "
            "examples/tune_video.py has one."
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised for."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(name: str, error: BaseException) -> str:
    """Why a pipeline could not be loaded, in one sentence: of the hub, what was tried and what to do."""
    chain = list(_chain(error))
    kinds = [kind.__name__ for link in chain for kind in type(link).__mro__]
    text = "\n".join(str(link).strip() for link in chain)
    if "HFValidationError" in kinds or "RepositoryNotFoundError" in kinds:
        return "the hub has no repository of this name that you may read: check the name, or log in (hf auth login)."
    if "GatedRepoError" in kinds:
        return "the hub asks you to accept its terms first, on its page, and to log in (hf auth login)."
    if not Path(name).is_dir() and ("OfflineModeIsEnabled" in kinds or os.environ.get("HF_HUB_OFFLINE") == "1"):
        return "HF_HUB_OFFLINE is set and the files are not in the hub's cache: unset it once, or give a folder."
    if not Path(name).is_dir() and UNREACHABLE.search(text):
        return (
            "the hub cannot be reached from here, and the files are not in its cache: check the network, or give a "
            "folder that save_pretrained wrote."
        )
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
