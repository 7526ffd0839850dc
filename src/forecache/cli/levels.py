"""The options that say what sites are, of every command that makes a plan."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from forecache.cli.options import expanded
from forecache.models.layout import Level
from forecache.models.levels import AskedSites
from forecache.models.span import Of

PANEL = "Options of the sites"


def takes_level_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with --level, --group, --of and --blocks in the place of its parameter ``sites``."""
    own = dict(inspect.signature(command, eval_str=True).parameters)
    return expanded(command, own, "sites", _parameters(), _asked)


def _asked(values: dict[str, Any]) -> AskedSites:
    return AskedSites(None, values["level"], values["group"], values["of"], values["blocks"] or None)


def _parameters() -> dict[str, inspect.Parameter]:
    lists = "Path of a list of blocks, repeatable, for --level blocks, groups, stack [those found]."
    feature = "The feature of groups and stack: what their blocks add, or the output of the last."
    return {
        "level": _option("level", Level | None, None, help="What sites are [the finest that the model is known by]."),
        "group": _option("group", int | None, None, min=1, help="Blocks of a site, for --level groups."),
        "of": _option("of", Of, "residual", help=feature),
        "blocks": _option("blocks", list[str] | None, None, help=lists),
    }


def _option(name: str, kind: Any, default: Any, **option: Any) -> inspect.Parameter:
    annotation = Annotated[kind, typer.Option(rich_help_panel=PANEL, **option)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
