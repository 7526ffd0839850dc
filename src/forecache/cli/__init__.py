"""The command line: `forecache --help` lists the commands."""

from __future__ import annotations

import sys

from forecache.errors import ForecacheError, MissingExtraError


def load() -> None:
    """Add every command to the application; MissingExtraError names the extra that it needs."""
    try:
        from forecache.cli import (
            bench,
            calibration,
            commands,
            compare,
            evaluation,
            methods,
            models,
            report,
            reproduction,
            routers,
            search,
            tune,
        )
    except ImportError as error:
        raise MissingExtraError(error.name or "typer", "cli", "The command line") from error


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, with a sentence on stderr, 2 wrong usage, 130 interrupted."""
    try:
        load()
        from forecache.cli.terminal import app

        app(prog_name="forecache")
    except ForecacheError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(1)
    except OSError as error:  # a disk that is full, a folder that is gone
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"Error: {where}{error.strerror or error}.\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)
