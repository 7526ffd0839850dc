"""`forecache compare-methods`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from forecache.bench.comparison import result
from forecache.bench.comparison.columns import Request
from forecache.bench.comparison.quality import NAMES, Judges, open_judges
from forecache.bench.comparison.rounds import Rounds
from forecache.cli.levels import takes_level_options
from forecache.cli.options import checked_speedup
from forecache.cli.parameters import DEFAULT_MODEL, MAX_STEPS, AsJson, Guidance, Model, out_folder
from forecache.cli.parameters import Rounds as RoundsOption
from forecache.cli.pipelines import PipelineOptions, guidance_of, nouns, takes_pipeline_options
from forecache.cli.terminal import (
    app,
    emit,
    interruptible,
    print_table,
    progress,
    results_table,
    say,
    typed_command,
)
from forecache.errors import InputError
from forecache.evaluate.metrics import METRICS
from forecache.fit import step_errors
from forecache.io import files
from forecache.io.text import MIB
from forecache.models.levels import AskedSites
from forecache.report import comparison_figure, html
from forecache.sampling import runs
from forecache.sampling.sources import Sampling, Source
from forecache.sampling.timing import ROUNDS


@app.command("compare-methods")
@takes_level_options
@takes_pipeline_options
def compare_methods_command(
    *,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method, such as 'taylorseer interval=3 order=2', or a recipe in braces; repeatable."),
    ] = None,
    plan: Annotated[list[Path] | None, typer.Option(help="A plan file; repeatable.")] = None,
    speedup: Annotated[
        list[float] | None, typer.Option(help="The recipe on record for so many times fewer MACs; repeatable.")
    ] = None,
    sites: AskedSites,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeatable.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts, one a line.")] = None,
    labels: Annotated[str | None, typer.Option(help="Classes by number or name, such as 207,360.")] = None,
    seeds: Annotated[
        str, typer.Option(help="Seeds of the noise, such as 0,1,2; every prompt is sampled from each.")
    ] = "0",
    model: Model = DEFAULT_MODEL,
    steps: Annotated[
        int | None, typer.Option(min=1, max=MAX_STEPS, help="Sampling steps [20, or those of --plan].")
    ] = None,
    guidance: Guidance = None,
    batch: Annotated[int, typer.Option(min=1, help="Most images in a model call; does not change the noise.")] = 4,
    rounds: RoundsOption = None,
    fewer_steps: Annotated[
        list[int] | None,
        typer.Option(min=1, max=MAX_STEPS, help="A run without a cache in so many steps; repeatable."),
    ] = None,
    reference_steps: Annotated[
        int | None, typer.Option(min=1, max=MAX_STEPS, help="Measure quality to a run of so many steps as well.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help=f"Of {', '.join(NAMES)} [those whose networks are on this machine].")
    ] = None,
    errors: Annotated[
        bool, typer.Option("--errors", help="Measure every estimate's error, in one more run without a cache.")
    ] = False,
    out: Annotated[Path, out_folder("Folder for images, comparison.json, grid.png and report.html.")] = Path(
        "out/compare-methods"
    ),
    as_json: AsJson = False,
    pipeline: PipelineOptions,
) -> None:
    """Compare methods on your own prompts or classes: images side by side, quality, cost, cache, time, one report.

    Every method samples the same prompts from the same noise as the model without a cache. Times are those of rounds in
    which all methods run in turn, after all have run once. Ctrl-C keeps every finished image, and the same command goes
    on; another method is added by naming it, too.

    Example: `forecache compare-methods --model digits --labels 3,1,4 --method fora --method "goc eta=0.8"
    --method "taylorseer interval=3 order=2" --out out/methods`

    Example: `forecache compare-methods --model black-forest-labs/FLUX.1-dev --prompts texts.txt --seeds 0,1
    --steps 28 --batch 1 --method "taylorseer interval=3" --plan tuned.json --height 1024 --width 1024 --offload model`

    Example: `forecache compare-methods --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --prompt "a happy cat" --frames 33
    --steps 30 --batch 1 --method fora --method taylorseer --out out/wan-methods`
    """
    speedups = [checked_speedup(value) for value in speedup or ()]
    request = Request.of(method or (), plan or (), steps, fewer_steps or (), reference_steps, speedups)
    numbers = _seeds(seeds)
    asked = [name.strip() for name in metrics.split(",")] if metrics is not None else None
    source = pipeline.open(model)
    conditions = _conditions(source, labels, prompt or (), prompts)
    columns = request.columns(source, sites)
    scale = guidance_of(source, guidance)
    settings = runs.Settings(conditions, request.num_steps, scale, numbers[0], batch)
    comparison = Rounds(source, columns, settings, numbers, out)
    if asked is not None:
        open_judges(
            asked, texts=not source.classes, size=10**6
        )  # a metric that is not there is refused before any work
    kept = f"of {comparison.total} {nouns(source)} are kept in {out}: the same command continues."
    with interruptible(lambda: f"{comparison.finished} {kept}"):
        document = _compared(comparison, model, asked, ROUNDS if rounds is None else rounds, errors)
        files.write_json(out / result.FILE, document)
        comparison_figure.draw(document, out, out / "grid.png")
        html.write(out / result.FILE, out / "report.html", command=typed_command())
    if as_json:
        emit(document)
    print_table(_table(document))
    for note in result.notes(document):
        say(note)
    say(f"Wrote {out / 'report.html'}, {out / result.FILE}, {out / 'grid.png'}, and the {nouns(source)}.")


def _conditions(source: Source, labels: str | None, prompt: Sequence[str], prompts: Path | None) -> tuple[Any, ...]:
    if prompts is not None:
        if prompt:
            raise InputError("--prompt and --prompts both say what to sample: give one of them.")
        prompt = runs.read_prompts(prompts)
    return runs.parse_conditions(source, labels, prompt)


def _seeds(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and word.isascii() for word in words):
        raise InputError(f"--seeds takes whole numbers from 0 with commas between them, such as 0,1,2; not {text!r}.")
    return tuple(dict.fromkeys(map(int, words)))


def _compared(comparison: Rounds, model: str, asked: Sequence[str] | None, rounds: int, errors: bool) -> dict[str, Any]:
    """Sample, time and judge; the document of the result."""
    with progress(None, still=True) as (bar, task):

        def on_run(name: str, done: int, total: int) -> None:
            bar.update(task, description=name[:28], completed=done, total=total, refresh=True)

        turns = comparison.run(rounds, on_run)
        tables = _errors(comparison) if errors else {}
        judges = _judges(comparison, asked)

        def on_image(done: int, total: int) -> None:
            bar.update(task, description="measuring quality", completed=done, total=total, refresh=True)

        return result.document(
            comparison, judges, turns, model=model, command=typed_command(), errors=tables, on_image=on_image
        )


def _judges(comparison: Rounds, asked: Sequence[str] | None) -> Judges:
    first = comparison.folders[comparison.columns[0].name].image(comparison.seeds[0], 0)
    return open_judges(asked, texts=not comparison.source.classes, size=min(first.shape[-2:]))


def _errors(comparison: Rounds) -> dict[str, Any]:
    """The errors of the estimates of every plan, by column."""
    settings = comparison.settings
    how = Sampling(settings.num_steps, settings.guidance, comparison.seeds[0])
    first = settings.conditions[: settings.batch]
    planned = [(column.name, column.plan) for column in comparison.columns if column.plan is not None]
    grams = {
        sites: step_errors.measured_features(comparison.source, first, how, settings.batch, sites=plan.grid)
        for sites, plan in {plan.grid.sites: plan for _, plan in planned}.items()
    }
    return {name: step_errors.document(grams[plan.grid.sites], plan) for name, plan in planned}


def _table(document: Mapping[str, Any]) -> Table:
    table = results_table(gap=1)
    table.add_column("method", no_wrap=True)
    names = list(dict.fromkeys(name for column in document["columns"] for name in column["quality"]))
    for title in (
        "calls",
        "fewer\nMACs",
        "as\nfast",
        "quartiles",
        *(METRICS[name].title for name in names),
        "cache\nMiB",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for column in document["columns"]:
        ratio, quality = column["time_ratio"], column["quality"]
        macs = column["cost"].get("macs_ratio")
        table.add_row(
            column["name"],
            f"{column['computed_calls']}/{column['steps']}",
            f"{macs:.2f}x" if macs else "",
            f"{ratio['median']:.2f}x" if ratio else "",
            f"{ratio['low']:.2f}-{ratio['high']:.2f}" if ratio else "",
            *(f"{quality[name]['mean']:.{METRICS[name].digits}f}" if name in quality else "" for name in names),
            f"{column['cost']['cache_bytes'] / MIB:.1f}",
        )
    return table
