"""`forecache reproduce`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

import forecache as fc
from forecache import distributed, zoo
from forecache.cli.parameters import BUNDLED, AsJson, Device, Dtype, names, out_folder
from forecache.cli.terminal import app, emit, progress, resumable, say, typed_command
from forecache.errors import InputError
from forecache.evaluate import clip
from forecache.report import figures, paper_figures
from forecache.reproduce import Protocol, Reproduction, TestbedOptions, open_table, open_testbed, reproduce
from forecache.reproduce.figures import FIGURES, PaperFigure, Settings, measure, settings_of
from forecache.reproduce.table import bundled
from forecache.sampling.respaced import respaced
from forecache.sampling.runs import parse_labels, read_prompts
from forecache.sampling.sources import DiTSource, Source
from forecache.zoo.open import open_source


@app.command("reproduce")
def reproduce_command(
    table: Annotated[
        str | None,
        typer.Argument(
            help="The name of a table or figure, or a .toml file; without one, all are listed.",
            autocompletion=names(*bundled(), *FIGURES),
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            help=f"{BUNDLED}, a pipeline folder, or a hub repository [the paper's model].",
            autocompletion=names(*zoo.models()),
        ),
    ] = None,
    row: Annotated[list[str] | None, typer.Option(help="Measure only this row; repeatable.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples per row [the table's; at most 320 on bundled models].")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples in memory at a time [the table's].")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise and of random classes.")] = 0,
    bootstrap: Annotated[int, typer.Option(min=0, help="Bootstrap resamples for the intervals; 0 for none.")] = 100,
    reference: Annotated[str | None, typer.Option(help="Real images: ADM's .npz, or a folder.")] = None,
    weights: Annotated[str | None, typer.Option(help="A file of Inception's weights [downloaded].")] = None,
    router: Annotated[str | None, typer.Option(help="For rows with L2C: a router file, published or ours.")] = None,
    stats: Annotated[str | None, typer.Option(help="For rows with EOC: a statistics file [measured].")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="For a text-to-image model: a file of prompts, one a line.")
    ] = None,
    clip_model: Annotated[str, typer.Option(help="CLIP, for the metric clip: a folder or repository.")] = clip.USUAL,
    labels: Annotated[
        str | None, typer.Option(help="Of figures: classes by number or name, one sample each: 2,7 [all classes].")
    ] = None,
    plan: Annotated[
        list[Path] | None, typer.Option(help="Of GOC's figures 4 and 5: a plan file to show as well; repeatable.")
    ] = None,
    vae: Annotated[
        str | None, typer.Option(help="A folder or repository of the VAE, or own [the table's, on its own model].")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="Metrics as in `forecache evaluate` [the table's].")] = None,
    out: Annotated[Path | None, out_folder("Folder of the results [out/reproduce/TABLE or TABLE-ON].")] = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Measure a paper's table again, its published figures beside the measured ones; or draw a figure of it.

    The same command continues after an interruption: finished rows and shards are kept. Several GPUs or machines share
    the sampling: `torchrun --nproc-per-node 8 -m forecache reproduce ...`, or `accelerate launch`.

    Example: `forecache reproduce`

    Example: `forecache reproduce goc-table-3 --on digits`

    Example: `forecache reproduce goc-figure-1 --on digits`

    Example: `forecache reproduce goc-figure-4 --on digits --labels 4,4,7,7`

    Example: `forecache reproduce goc-table-3 --reference VIRTUAL_imagenet256_labeled.npz --router ddim20_router.pt`
    """
    if table is None:
        if on or row:
            raise InputError(
                "--on and --row need the name of a table: `forecache reproduce` without arguments lists them."
            )
        _list(as_json)
        return
    if table in FIGURES:
        given = {"row": row, "batch": batch, "reference": reference, "weights": weights, "router": router,
                 "stats": stats, "vae": vae, "metrics": metrics}  # fmt: skip
        if idle := [name for name, value in given.items() if value]:
            raise InputError(f"{table} is a figure, which takes no --{idle[0]}: leave it out.")
        shown = Shown(labels, prompts, tuple(plan or ()))
        _figure(FIGURES[table], on, samples, seed, shown, out, device, dtype, as_json)
        return
    if idle := [name for name, value in {"labels": labels, "plan": plan}.items() if value]:
        raise InputError(f"{table} is a table, whose samples and plans are its own: leave --{idle[0]} out.")
    paper_table = open_table(table)
    options = TestbedOptions(reference, weights, router, stats, prompts, clip_model, metrics, vae)
    folder = out or Path("out/reproduce") / "-".join([paper_table.name, *([Path(on).name] if on else [])])
    world = distributed.launched()
    distributed.take_gpu()
    with resumable(folder, leads=world.leads), progress(None, shown=world.leads) as (bar, task):
        testbed = open_testbed(paper_table, on, options, device, dtype, judges=world.leads)
        result = reproduce(
            paper_table,
            testbed,
            folder,
            Protocol(samples, batch, seed, bootstrap),
            rows=row or (),
            command=typed_command(),
            on_progress=lambda phase, done, total: bar.update(task, description=phase, completed=done, total=total),
        )
    if not world.leads:
        return
    figures.draw_reproduction(result, folder / "quality.png")
    if as_json:
        emit(result.document)
    else:
        _say_result(result, folder)


PAPERS_MODEL = "facebook/DiT-XL-2-256"


@dataclass(frozen=True)
class Shown:
    """The samples and plans of a figure, as typed.

    labels: classes with commas between them.
    prompts: a file of prompts.
    plans: plan files.
    """

    labels: str | None
    prompts: Path | None
    plans: tuple[Path, ...]

    def settings(self, figure: PaperFigure, source: Source, on: str, samples: int | None, seed: int) -> Settings:
        """The settings of the figure. Raises InputError for samples or plans that it cannot show."""
        if self.labels is not None and self.prompts is not None:
            raise InputError("--labels and --prompts both say what to sample: give one of them.")
        if self.labels is not None and not source.classes:
            raise InputError("The model takes prompts, not classes: leave --labels out, or give --prompts.")
        plans = {path.stem: fc.Plan.load(path) for path in self.plans}
        if len(plans) < len(self.plans):
            raise InputError(
                "A figure calls plans by the names of their files, and two of these are called alike: rename one."
            )
        return settings_of(
            figure,
            source,
            on,
            samples=samples,
            seed=seed,
            labels=parse_labels(self.labels, source) if self.labels is not None else (),
            prompts=read_prompts(self.prompts) if self.prompts is not None else (),
            plans=plans,
        )


def _figure(
    figure: PaperFigure, on: str | None, samples: int | None, seed: int, shown: Shown, out: Path | None,
    device: str, dtype: str, as_json: bool,
) -> None:  # fmt: skip
    """Measure and draw a figure: figure.json and figure.png."""
    folder = out or Path("out/reproduce") / "-".join([figure.name, *([Path(on).name] if on else [])])
    folder.mkdir(parents=True, exist_ok=True)
    with resumable(folder, leads=True), progress(None, shown=True) as (bar, task):
        source = open_source(on or PAPERS_MODEL, device, dtype)
        source = respaced(source.pipe) if isinstance(source, DiTSource) else source
        settings = shown.settings(figure, source, on or PAPERS_MODEL, samples, seed)
        path = folder / "figure.json"
        document = measure(
            figure,
            source,
            settings,
            path,
            on_point=lambda done, total: bar.update(task, description=figure.name, completed=done, total=total),
        )
    paper_figures.draw(figure, document, folder / "figure.png")
    if as_json:
        emit(document)
    else:
        say(f"{figure.title} ({figure.source})\nWrote {path} and figure.png.")


def _list(as_json: bool) -> None:
    tables = [open_table(name) for name in bundled()]
    tables = [*tables, *FIGURES.values()]
    if as_json:
        emit([{"name": table.name, "title": table.title, "source": table.source} for table in tables])
    for table in tables:
        say(f"{table.name:<18}{table.title} ({table.source})")


def _say_result(result: Reproduction, folder: Path) -> None:
    say("\n".join([result.table.title, *result.markdown()]))
    for note in (*result.table.notes, *result.document["notes"]):
        say(note)
    for row in result.document["rows"]:
        if row["note"]:
            say(f"{row['name']}: {row['note']}.")
    for name, reason in result.document["absent"].items():
        say(f"{name} is not measured: {reason}.")
    if missing := result.document["missing"]:
        say(f"Not measured yet: {', '.join(missing)}.")
    say(f"Wrote {folder / 'result.json'}, table.md, quality.png.")
