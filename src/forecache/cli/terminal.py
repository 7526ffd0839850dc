"""What the commands share: the application, and how it talks."""

from __future__ import annotations

import functools
import inspect
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from forecache._version import __version__
from forecache.errors import InputError

console = Console()
bars = Console(stderr=True)
"""Where progress is drawn."""
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, instead of sentences.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing and draw no progress; errors are still said.")
]


class _App(typer.Typer):
    """An application whose commands all have --quiet; with --json, sentences and tables stay away."""

    def command(self, name: str | None = None, **how: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return lambda command: super(_App, self).command(name, **how)(_spoken(command))


def _spoken(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the option --quiet."""
    own = inspect.signature(command, eval_str=True).parameters.values()

    @functools.wraps(command)
    def run(*, quiet: bool, **given: Any) -> None:
        console.quiet, bars.quiet = quiet or bool(given.get("as_json")), quiet
        command(**given)

    by_name = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    by_name.append(inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet))
    del run.__wrapped__  # type: ignore[attr-defined]
    run.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in by_name}
    return run


def out_file(help: str, *names: str) -> Any:
    """The option --out, -o, or another one, for a file; one that cannot be written is refused before any work."""
    return typer.Option(*(names or ("--out", "-o")), help=help, callback=_writable_file)


def out_folder(help: str) -> Any:
    """The option --out, -o for a folder."""
    return typer.Option("--out", "-o", help=help, callback=_writable_folder)


def _writable_file(path: Path | None) -> Path | None:
    if path is not None and path.is_dir():
        raise InputError(f"{path} is a folder: name a file in it.")
    return path if path is None else _writable(path, path.parent)


def _writable_folder(path: Path | None) -> Path | None:
    return path if path is None else _writable(path, path)


def _writable(path: Path, folder: Path) -> Path:
    """The path, if files can be made in a folder, or in what is there of it."""
    nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return path
    except OSError as error:
        reason = "it is a file" if not nearest.is_dir() else error.strerror
        raise InputError(f"{path} cannot be written, since nothing can be put into {nearest}: {reason}.") from error


STEPS = 1000
"""The most steps of a run: as many as models are trained with, which is what their schedulers take."""


@contextmanager
def resumable(path: Path, *, leads: bool = True) -> Iterator[None]:
    """Says on Ctrl-C that what stands in this file is not lost. leads: this process talks."""
    try:
        yield
    except KeyboardInterrupt:
        if leads and path.exists():
            say(f"What was sampled is kept in {path}: the same command continues.")
        raise


app = _App(
    name="forecache",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Diffusion transformers that sample faster by forecasting features instead of computing them.",
    epilog="Exit codes: 0 done, 1 failed (a sentence says why), 2 wrong usage, 130 interrupted.",
)


def say(text: str) -> None:
    """Plain text, wrapped by the terminal alone."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def emit(document: Any) -> None:
    """A result as JSON on stdout, for --json."""
    typer.echo(json.dumps(document, indent=2))


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if show:
        say(f"forecache {__version__}")
        raise typer.Exit


@contextmanager
def progress(total: int | None, *, shown: bool = True, still: bool = False) -> Iterator[tuple[Progress, TaskID]]:
    """A bar with the time that is left, on a terminal only; it leaves no line behind.

    still: it is drawn when it is told to (``refresh=True``) and never by itself, so that nothing runs beside a timing.
    """
    columns = TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    shown = shown and console.is_terminal and not bars.quiet
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=bars,
        transient=True,
        disable=not shown,
        auto_refresh=not still,
    ) as bar:
        yield bar, bar.add_task("", total=total)
