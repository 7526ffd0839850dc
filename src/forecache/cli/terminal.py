"""The application, and how its commands print: sentences, tables, JSON and progress bars."""

from __future__ import annotations

import functools
import inspect
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
from rich.table import Table

from forecache._version import __version__
from forecache.cli.parameters import Quiet
from forecache.runtime import unused

console = Console()
"""Prints results on stdout; silent with --quiet and --json."""
bars = Console(stderr=True)
"""Draws progress bars on stderr."""


class _App(typer.Typer):
    """An application that gives every command the option --quiet, and keeps sentences out of --json output."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return lambda command: super(_App, self).command(name, **settings)(_with_quiet(command))


SILENT = {
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
"""Environment variables that diffusers, transformers, the hub's client and tqdm read when they are imported."""


@contextmanager
def _no_tqdm() -> Iterator[None]:
    """Without bars of a tqdm that was imported before its variable was set, as torch does."""
    if (bar := getattr(sys.modules.get("tqdm"), "tqdm", None)) is None:
        yield
        return
    start = bar.__init__
    bar.__init__ = functools.partialmethod(start, disable=True)
    try:
        yield
    finally:
        bar.__init__ = start


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """Without the warnings and progress bars of the libraries that load and run a pipeline.

    The warning about a session that did nothing is ours, and stays.

    A variable that the user has set stays as it is.
    """
    ours = SILENT.keys() - os.environ.keys()
    os.environ.update({name: SILENT[name] for name in ours})
    try:
        with warnings.catch_warnings(), _no_tqdm():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", unused.SENTENCE, ResourceWarning)
            yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _with_quiet(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the option --quiet."""
    own = inspect.signature(command, eval_str=True).parameters.values()

    @functools.wraps(command)
    def run(*, quiet: bool, **values: Any) -> None:
        console.quiet, bars.quiet = quiet or bool(values.get("as_json")), quiet
        with _silent_libraries() if quiet else nullcontext():
            command(**values)

    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    parameters.append(inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet))
    del run.__wrapped__  # type: ignore[attr-defined]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


app = _App(
    name="forecache",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Diffusion transformers that sample faster by forecasting features instead of computing them.",
    epilog="Exit codes: 0 done, 1 failed (a sentence says why), 2 wrong usage, 130 interrupted.",
)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if show:
        say(f"forecache {__version__}")
        raise typer.Exit


def say(text: str) -> None:
    """Print plain text; only the terminal wraps its lines."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def emit(document: Any) -> None:
    """Print a result as JSON on stdout, for --json."""
    typer.echo(json.dumps(document, indent=2))


def results_table(title: str | None = None, *, gap: int = 2) -> Table:
    """An empty table without lines. gap: blanks between its columns."""
    return Table(title=title, title_justify="left", header_style="bold", box=None, padding=(0, gap, 0, 0))


def print_table(table: Table) -> None:
    """Print a table; one that is piped or written to a file is never cut to a terminal's width."""
    wide = Console(width=1000, quiet=console.quiet)
    (console if console.is_terminal else wide).print(table)


def typed_command() -> str:
    """The command as it was typed, quoted for a shell, for the record of a result."""
    return shlex.join(["forecache", *sys.argv[1:]])


@contextmanager
def progress(total: int | None, *, shown: bool = True, still: bool = False) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar with the remaining time, drawn on a terminal only; it is removed at the end.

    shown: False draws nothing, for a process that does not print.
    still: draw only on request (``refresh=True``), so that no thread runs beside a measurement of time.
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


@contextmanager
def interruptible(message: Callable[[], str], *, leads: bool = True) -> Iterator[None]:
    """On Ctrl-C, say what is kept and how to continue.

    message: returns the sentence; an empty one is not printed.
    leads: whether this process prints; of several, the first one does.
    """
    try:
        yield
    except KeyboardInterrupt:
        if leads and (text := message()):
            say(text)
        raise


def stopped_at(rounds_done: Sequence[int], rounds: int, path: Path) -> str:
    """What is kept of a measurement in rounds that was stopped.

    rounds_done: the numbers of finished rounds. path: the file of their results.
    """
    if not rounds_done:
        return f"Nothing was written: the first of {rounds} rounds was not finished."
    done = f"{rounds_done[-1]} of {rounds} rounds"
    return f"{path} has the results of {done}. The same command begins anew: timings of two runs do not mix."


def resumable(path: Path, *, leads: bool = True) -> Any:
    """`interruptible` for a command that keeps its progress in a file or folder."""
    return interruptible(
        lambda: f"Finished work is kept in {path}: the same command continues." if path.exists() else "", leads=leads
    )
