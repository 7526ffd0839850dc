"""The command line: `forecache --help` lists the commands."""

from __future__ import annotations

import sys

from forecache._errors import ForecacheError, MissingExtraError


def main() -> None:
    """Run the command line; errors are a sentence on stderr and exit code 1, an interruption is exit code 130."""
    try:
        try:
            from forecache.cli import (  # noqa: F401 - each adds its commands
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
            from forecache.cli.terminal import app
        except ImportError as error:
            raise MissingExtraError(error.name or "typer", "cli", "The command line") from error
        app()
    except ForecacheError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)
