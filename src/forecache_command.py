"""The console script ``forecache``: what needs no model is answered without importing the library and torch.

Completions and the version come from ``forecache/cli/commands.json``, which ``python -m forecache.cli.tree`` writes. An
unknown name of a model is refused here, too. Everything else is the command line itself.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

COMPLETE = "_FORECACHE_COMPLETE"
"""The variable that a shell sets to ask for completions."""


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed with a sentence on stderr, 2 wrong usage, 130 interrupted."""
    try:
        if os.environ.get(COMPLETE, "").startswith("complete"):
            complete()
        if sys.argv[1:] == ["--version"]:
            sys.stdout.write(f"forecache {_version()}\n")
            return
        if sentence := typo(sys.argv[1:]):
            sys.stderr.write(f"Error: {sentence}\n")
            sys.exit(1)
        from forecache.cli import main as command_line
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)
    command_line()


def _package() -> Path:
    """The folder of the library, which is not imported for it."""
    spec = importlib.util.find_spec("forecache")
    return Path(str(spec.origin)).parent if spec is not None else Path()


def _version() -> str:
    return (_package() / "_version.py").read_text(encoding="utf-8").split('"')[1]


def tree() -> Mapping[str, Any]:
    """Every command by name, with its options: their names, help and values."""
    return json.loads((_package() / "cli" / "commands.json").read_text(encoding="utf-8"))


def unknown_model(name: str, known: Sequence[str]) -> str | None:
    """A sentence about a name that is none of ``known``, no folder and no repository of the hub; None for others."""
    if name in known or Path(name).is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return None
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {close[0]!r}? There are" if close else "give"
    return (
        f"There is no model {name!r}: {meant} {', '.join(map(repr, known))}, a pipeline folder or a hub repository "
        "owner/name."
    )


def typo(words: Sequence[str]) -> str | None:
    """A sentence about the first option of a model whose value is none; None if there is no such."""
    command = tree().get(words[0]) if words else None
    if command is None or "--help" in words:
        return None
    values = {name: entry["values"] for entry in command for name in entry["names"] if entry["is_model"]}
    for option, value in zip(words, [*words[1:], ""], strict=True):
        name, joined, given = option.partition("=")
        if (
            name in values
            and (given or value)
            and (sentence := unknown_model(given if joined else value, values[name]))
        ):
            return sentence
    return None


def complete() -> None:
    """Answer a shell's question for completions, and exit."""
    try:
        import typer
    except ImportError:
        sys.exit(0)  # without the extra there is nothing to complete
    app = typer.Typer(name="forecache")
    app.callback()(lambda: None)
    for name, parameters in tree().items():
        app.command(name)(_command(parameters))
    app(prog_name="forecache")


def _command(parameters: Sequence[Mapping[str, Any]]) -> Callable[..., None]:
    def command(**_: Any) -> None:
        """Never runs: the application is only asked for completions."""

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [_parameter(f"p{number}", entry) for number, entry in enumerate(parameters)]
    )
    command.__annotations__ = {
        name: parameter.annotation for name, parameter in inspect.signature(command).parameters.items()
    }
    return command


def _parameter(name: str, entry: Mapping[str, Any]) -> inspect.Parameter:
    import typer

    values = entry["values"]
    how: dict[str, Any] = {"help": entry["help"]}
    if values:
        how["autocompletion"] = lambda incomplete: [value for value in values if value.startswith(incomplete)]
    kind: Any = bool if entry["is_flag"] else str
    option = typer.Option(*entry["names"], **how) if entry["names"] else typer.Argument(**how)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


if __name__ == "__main__":
    main()
