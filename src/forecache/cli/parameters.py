"""Options that several commands share, one annotated type each, and the check that an output path can be written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from forecache import zoo
from forecache.errors import InputError

DEFAULT_MODEL = zoo.DEFAULT
MAX_STEPS = 1000
"""Most sampling steps of a run: the training steps of diffusion models, which their schedulers choose from."""

BUNDLED = ", ".join(zoo.models())
"""The models that ship with forecache, as help texts name them."""


def names(*values: str) -> Callable[[str], list[str]]:
    """The completion of a value that is usually one of these."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


Model = Annotated[
    str,
    typer.Option(help=f"{BUNDLED}, a pipeline folder, or a hub repository.", autocompletion=names(*zoo.models())),
]
Steps = Annotated[int, typer.Option(min=1, max=MAX_STEPS, help="Sampling steps.")]
Labels = Annotated[str | None, typer.Option(help="Class labels, one sample each, such as 207,360.")]
Prompts = Annotated[Path | None, typer.Option(help="A file of prompts, one a line, for a text-to-image model.")]
Guidance = Annotated[
    float | None, typer.Option(help="Classifier-free guidance scale [1.5 for classes, else the pipeline's].")
]
NoiseSeed = Annotated[int, typer.Option(min=0, help="Seed of the noise; measure quality with another one.")]
Batch = Annotated[int, typer.Option(min=1, help="Samples in a model call.")]
Rounds = Annotated[
    int | None,
    typer.Option(min=0, help="Timed rounds, in turn after all have run once; 0 measures no time [3]."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads [torch's choice].")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of sentences.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing and draw no progress; errors are printed.")]


def out_file(help: str, *names: str) -> Any:
    """The option --out, -o, or another one, for a file. One that cannot be written is refused before any work."""
    return typer.Option(*(names or ("--out", "-o")), help=help, callback=_writable_file)


def out_folder(help: str) -> Any:
    """The option --out, -o for a folder. One that cannot be written is refused before any work."""
    return typer.Option("--out", "-o", help=help, callback=_writable_folder)


def _writable_file(path: Path | None) -> Path | None:
    if path is not None and path.is_dir():
        raise InputError(f"{path} is a folder: name a file in it.")
    return path if path is None else _writable(path, path.parent)


def _writable_folder(path: Path | None) -> Path | None:
    return path if path is None else _writable(path, path)


def _writable(path: Path, folder: Path) -> Path:
    """The path, if files can be created in the folder or in the nearest existing folder above it."""
    nearest = next(ancestor for ancestor in (folder, *folder.absolute().parents) if ancestor.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return path
    except OSError as error:
        reason = "it is a file" if not nearest.is_dir() else error.strerror
        raise InputError(f"{path} cannot be written, since nothing can be created in {nearest}: {reason}.") from error
