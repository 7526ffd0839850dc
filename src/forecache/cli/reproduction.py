"""`forecache reproduce`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from forecache import distributed
from forecache.cli.parameters import AsJson, out_folder
from forecache.cli.terminal import app, emit, progress, say
from forecache.errors import InputError
from forecache.evaluate import clip
from forecache.report import figures
from forecache.reproduce import Protocol, Reproduction, TestbedOptions, open_table, open_testbed, reproduce
from forecache.reproduce.table import bundled


@app.command("reproduce")
def reproduce_command(
    table: Annotated[str | None, typer.Argument(help="A name from the list, or a .toml file; none lists them.")] = None,
    on: Annotated[
        str | None, typer.Option(help="digits, digits-text, a pipeline folder, a repository [the paper's model].")
    ] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only this row; may be given more than once.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="A row [the table's; 320 on bundled models].")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples at a time [the table's].")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise, and of random classes.")] = 0,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples for the intervals; 0 for none.")] = 100,
    reference: Annotated[str | None, typer.Option(help="Real images: ADM's .npz, or a folder.")] = None,
    weights: Annotated[str | None, typer.Option(help="Of Inception, a file; downloaded without it.")] = None,
    router: Annotated[str | None, typer.Option(help="For rows with L2C: a router file, published ones too.")] = None,
    stats: Annotated[str | None, typer.Option(help="For rows with EOC; measured without it.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="For a text-to-image model: a file, one a line.")] = None,
    clip_model: Annotated[str, typer.Option(help="For clip: a folder or repository.")] = clip.USUAL,
    metrics: Annotated[str | None, typer.Option(help="Instead of the table's, as in `evaluate`.")] = None,
    out: Annotated[Path | None, out_folder("Folder [out/reproduce/TABLE, with -ON after it].")] = None,
    as_json: AsJson = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16")] = "auto",
) -> None:
    """Measure a table of a paper again, and put its published figures beside it.

    The same command continues after any interruption: finished rows and shards are kept. Several GPUs or machines share
    the sampling: `torchrun --nproc-per-node 8 -m forecache reproduce ...`, or `accelerate launch`.

    Example: `forecache reproduce`

    Example: `forecache reproduce goc-table-3 --on digits`

    Example: `forecache reproduce goc-table-3 --reference VIRTUAL_imagenet256_labeled.npz --router ddim20_router.pt`
    """
    if table is None:
        if on or row:
            raise InputError("Which table? `forecache reproduce` without anything lists them.")
        _list(as_json)
        return
    chosen = open_table(table)
    given = TestbedOptions(reference, weights, router, stats, prompts, clip_model, metrics)
    folder = out or Path("out/reproduce") / "-".join([chosen.name, *([Path(on).name] if on else [])])
    world = distributed.launched()
    distributed.take_gpu()
    with progress(None, shown=world.leads) as (bar, task):
        testbed = open_testbed(chosen, on, given, device, dtype, judges=world.leads)
        found = reproduce(
            chosen,
            testbed,
            folder,
            Protocol(samples, batch, seed, bootstrap),
            rows=row or (),
            command=shlex.join(["forecache", *sys.argv[1:]]),
            on_progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    if not world.leads:
        return
    figures.draw_reproduction(found, folder / "quality.png")
    if as_json:
        emit(found.document)
    else:
        _tell(found, folder)


def _list(as_json: bool) -> None:
    tables = [open_table(name) for name in bundled()]
    if as_json:
        emit([{"name": table.name, "title": table.title, "source": table.source} for table in tables])
    for table in tables:
        say(f"{table.name:<18}{table.title} ({table.source})")


def _tell(found: Reproduction, folder: Path) -> None:
    say("\n".join([found.table.title, *found.markdown()]))
    for note in (*found.table.notes, *found.document["notes"]):
        say(note)
    for row in found.document["rows"]:
        if row["note"]:
            say(f"{row['name']}: {row['note']}.")
    if missing := found.document["missing"]:
        say(f"Not measured yet: {', '.join(missing)}.")
    say(f"Wrote {folder / 'result.json'}, table.md, quality.png.")
