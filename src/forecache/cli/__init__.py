"""The command line: `forecache --help` lists the commands."""

from __future__ import annotations

import io
import sys

from forecache.errors import ForecacheError, MissingExtraError


def load() -> None:
    """Register every command; MissingExtraError names the extra that is not installed."""
    try:
        from forecache.cli import (
            bench,
            calibrate,
            compare,
            compare_methods,
            demo,
            evaluate,
            export,
            methods,
            models,
            report,
            reproduce,
            routers,
            sample,
            search,
            show,
            tune,
        )
    except ImportError as error:
        raise MissingExtraError(error.name or "typer", "cli", "The command line") from error


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed with a sentence on stderr, 2 wrong usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII only gets "?" instead of a traceback
    try:
        load()
        from forecache.cli.terminal import app

        app(prog_name="forecache")
    except ForecacheError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(1)
    except OSError as error:  # a full disk, a deleted folder
        file = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"Error: {file}{error.strerror or error}.\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)
