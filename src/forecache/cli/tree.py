"""The commands and their options as data, for ``forecache_command``: ``python -m forecache.cli.tree`` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forecache.io import files

FILE = Path(__file__).with_name("commands.json")


def described() -> dict[str, list[dict[str, Any]]]:
    """Every command by name, with its options and arguments: their names, help, values and kind."""
    import typer

    from forecache.cli import load
    from forecache.cli.terminal import app

    load()
    commands: Any = typer.main.get_command(app)
    return {
        name: [_described(command, entry) for entry in command.params] for name, command in commands.commands.items()
    }


def _described(command: Any, entry: Any) -> dict[str, Any]:
    import typer

    context: Any = typer.Context(command)
    values = [item.value for item in entry.shell_complete(context, "") if item.value]
    is_option = entry.param_type_name == "option"
    return {
        "names": [*entry.opts, *entry.secondary_opts] if is_option else [],
        "help": (getattr(entry, "help", None) or "").split("\n")[0],
        "values": values,
        "is_flag": bool(getattr(entry, "is_flag", False)),
        "is_model": is_option and "--model" in entry.opts,
    }


if __name__ == "__main__":
    files.write_json(FILE, described())
