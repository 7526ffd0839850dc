"""`forecache models`."""

from __future__ import annotations

from typing import Annotated

import typer

from forecache.cli.parameters import AsJson
from forecache.cli.terminal import app, emit, print_table, results_table
from forecache.models import registry, tested


@app.command("models")
def models_command(
    every: Annotated[
        bool,
        typer.Option("--all", help="Every transformer class of the installed diffusers, with what was tested."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the model families that forecache knows, and the sites that it can skip in them.

    Level branches: a skipped attention or MLP costs nothing, its norm and modulation included, and is added with the
    gate of the current step. Level blocks: a whole block's contribution is one site. Any other model works by its
    blocks, groups of them, or their stack, which are found in it, and by the names of its modules.

    Example: `forecache models`

    Example: `forecache models --all`
    """
    rows = tested.rows() if every else registry.table()
    if as_json:
        emit(rows)
        return
    table = results_table()
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*row.values())
    print_table(table)
