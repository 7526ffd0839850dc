"""What the commands share: the application, and how it talks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

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

app = typer.Typer(
    name="forecache",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Diffusion transformers that sample faster by forecasting features instead of computing them.",
)
console = Console()


def say(text: str) -> None:
    """Plain text, wrapped by the terminal alone."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


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
    shown = shown and console.is_terminal
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not shown,
        auto_refresh=not still,
    ) as bar:
        yield bar, bar.add_task("", total=total)
