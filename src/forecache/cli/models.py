"""`forecache models`."""

from __future__ import annotations

from rich.table import Table

from forecache.cli.parameters import AsJson
from forecache.cli.terminal import app, console, emit
from forecache.models import registry


@app.command("models")
def models_command(
    as_json: AsJson = False,
) -> None:
    """List the models that forecache knows, and what it can skip in them.

    By branches, norms and modulations of what is skipped do not run either, and gates are the current step's; by
    blocks, what a whole block adds is one site. Any other model works by the names of its modules.

    Example: `forecache models`
    """
    rows = registry.table()
    if as_json:
        emit(rows)
        return
    shown = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    for name in rows[0]:
        shown.add_column(name)
    for row in rows:
        shown.add_row(*row.values())
    console.print(shown)
