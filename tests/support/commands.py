"""Every command of the command line, by its name."""

import typer

import forecache.cli
from forecache.cli import terminal

forecache.cli.load()
COMMANDS = typer.main.get_command(terminal.app).commands
