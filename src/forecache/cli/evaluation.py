"""`forecache evaluate` and `forecache tabulate`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from forecache import evaluate
from forecache.cli.parameters import AsJson, out_file
from forecache.cli.terminal import app, console, emit, progress, say
from forecache.environment import environment
from forecache.errors import InputError
from forecache.evaluate import clip, imagesets, tables
from forecache.evaluate.evaluation import check, needs_extractor
from forecache.evaluate.metrics import ALIASES, METRICS, chosen
from forecache.io import files as files_module
from forecache.io.document import items
from forecache.sampling.device import resolve

LIST = ", ".join([*METRICS, *(f"{name} ({' '.join(of)})" for name, of in ALIASES.items())])


EXTRACTORS = ", ".join(evaluate.extractor_names())
REFERENCES = ", ".join(evaluate.reference_names())


class NetName(StrEnum):
    alex = "alex"
    vgg = "vgg"
    squeeze = "squeeze"


@app.command("evaluate")
def evaluate_command(
    samples: Annotated[Path, typer.Argument(help="A folder of images, an .npz (arr_0), or features (.safetensors).")],
    reference: Annotated[str | None, typer.Option(help=f"The same, ADM's statistics (.npz), or {REFERENCES}.")] = None,
    metrics: Annotated[str, typer.Option(help=f"With commas between: {LIST}.")] = "fid",
    extractor: Annotated[str, typer.Option(help=f"The network that features are of: {EXTRACTORS}.")] = "inception",
    weights: Annotated[str | None, typer.Option(help="Of inception, a file; of clip, a folder or repository.")] = None,
    uncached: Annotated[Path | None, typer.Option(help="For psnr, ssim, lpips; by name [--reference].")] = None,
    prompts: Annotated[Path | None, typer.Option(help="For clip: a line an image, or .json by name.")] = None,
    clip_model: Annotated[str, typer.Option(help="For clip: a folder or repository.")] = clip.USUAL,
    lpips_net: Annotated[NetName, typer.Option(help="The trunk of lpips.")] = NetName.alex,
    lpips_weights: Annotated[Path | None, typer.Option(help="Of the trunk; downloaded without it.")] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples for the intervals; 0 for none.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images a network call.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    save_features: Annotated[
        Path | None, out_file("Keep the samples' features (.safetensors).", "--save-features")
    ] = None,
    out: Annotated[Path | None, out_file("Write a JSON with resamples, for `forecache tabulate`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the quality of images, ours or any: each metric with a bootstrap interval.

    Example: `forecache evaluate out/digits --reference digits --extractor digits --metrics fid,accuracy --out fid.json`

    Example: `forecache evaluate out/samples.npz --reference VIRTUAL_imagenet256_labeled.npz --metrics fid,sfid,is,prc`

    Example: `forecache evaluate out/fast --uncached out/slow --metrics psnr,ssim --out fast.json`
    """
    names = chosen(metrics)  # first, since it is quickest to be wrong
    _refuse_inputs(samples, [reference, uncached, prompts], {"--out": out, "--save-features": save_features})
    where, _ = resolve(device)
    images = evaluate.Features.load(samples) if samples.suffix == ".safetensors" else evaluate.open_images(samples)
    against = _against(images, names, reference, uncached, prompts)
    check(images, against, names)
    if save_features is not None and isinstance(images, evaluate.Features):
        raise InputError(f"{samples} holds features already: --save-features takes images.")
    needed = save_features is not None or needs_extractor(images, against, names)
    judges = evaluate.Judges(
        evaluate.load_extractor(extractor, weights, where) if needed else None,
        evaluate.load_clip(clip_model, where) if "clip" in names else None,
        evaluate.load_lpips(lpips_net.value, lpips_weights, where) if "lpips" in names else None,
    )
    with progress(None) as (bar, task):

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        features = _kept(images, judges, batch, show, save_features) if save_features is not None else None
        found = evaluate.evaluate(
            images,
            against,
            names,
            judges,
            features=features,
            bootstrap=evaluate.Bootstrap(bootstrap, seed),
            batch=batch,
            device=where,
            on_progress=show,
        )
    typed = shlex.join(["forecache", *sys.argv[1:]])
    more = {"sampling_seeds": _seeds(samples), "environment": environment(), "command": typed}
    if out is not None:
        files_module.write_json(out, found.document() | more)
    if as_json:
        emit(found.document(draws=False) | more)
    else:
        _show(found, bootstrap, seed, more["sampling_seeds"])


def _refuse_inputs(samples: Path, others: Sequence[str | Path | None], outputs: Mapping[str, Path | None]) -> None:
    """Raises InputError for an output that is what is read, or a record of it."""
    read = {Path(each).resolve() for each in (samples, *others) if each is not None}
    folder = samples if samples.is_dir() else samples.parent
    read |= {(folder / name).resolve() for name in ("samples.npz", "run.json", "shards.json", "plan.json")}
    for option, path in outputs.items():
        if path is not None and path.resolve() in read:
            raise InputError(f"{path} belongs to what is evaluated: name another file for {option}.")


def _against(
    images: evaluate.ImageSet | evaluate.Features,
    names: tuple[str, ...],
    reference: str | None,
    uncached: Path | None,
    prompts: Path | None,
) -> evaluate.Against:
    pairs = any(METRICS[name].needs == "pairs" for name in names)
    if uncached is not None and not pairs:
        raise InputError(f"--uncached is for psnr, ssim and lpips; {', '.join(names)} was asked for.")
    if prompts is not None and ("clip" not in names or isinstance(images, evaluate.Features)):
        raise InputError("--prompts is for the metric clip, on images.")
    opened = evaluate.open_reference(reference) if reference is not None else None
    partners = evaluate.open_images(uncached) if uncached is not None else opened.images if opened and pairs else None
    texts = None
    if prompts is not None and not isinstance(images, evaluate.Features):
        texts = clip.read_prompts(prompts, images)
    return evaluate.Against(opened, partners, texts)


def _kept(images: Any, judges: evaluate.Judges, batch: int, show: Any, path: Path) -> evaluate.Features:
    assert judges.extractor is not None
    layers = judges.extractor.layers
    on_images = lambda done: show("samples", done, len(images))  # noqa: E731
    features = evaluate.extract(images, judges.extractor, layers, batch=batch, on_images=on_images)
    features.save(path)
    return features


def _seeds(samples: Path) -> list[int]:
    """The seed of the sampling, where `forecache sample` left it beside the images."""
    folder = samples if samples.is_dir() else samples.parent if samples.name == "samples.npz" else None
    record = imagesets.run_record(folder) if folder is not None else None
    settings = record.get("settings") if isinstance(record, dict) else None
    seed = settings.get("seed") if isinstance(settings, dict) else None
    return [seed] if isinstance(seed, int) else []


def _show(found: evaluate.Evaluation, resamples: int, seed: int, sampling: Any) -> None:
    table = Table(title=found.samples, title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("metric", no_wrap=True)
    for name in ("value", "95 % interval", "samples", "resamples"):
        table.add_column(name, justify="right", no_wrap=True)
    for figure in found.figures.values():
        kind = figure.kind
        interval = figure.interval
        between = f"{interval[0]:.{kind.digits}f} to {interval[1]:.{kind.digits}f}" if interval else ""
        value = f"{figure.value:.{kind.digits}f}"
        draws = str(len(figure.draws)) if figure.draws else ""
        table.add_row(f"{kind.title}, {kind.better} is better", value, between, str(figure.count), draws)
    console.print(table)
    said = [f"features of {found.extractor}"] if found.extractor else []
    said += [f"reference {found.reference}"] if found.reference else []
    said += [f"sampling seed {sampling[0]}"] if sampling else []
    said += [f"bootstrap seed {seed}; intervals are for the samples, the reference stays"] if resamples else []
    say("; ".join(said).capitalize() + "." if said else "")
    for note in found.notes:
        say(note)


@app.command("tabulate")
def tabulate_command(
    files: Annotated[list[Path], typer.Argument(help="What `forecache evaluate --out` wrote.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put evaluations side by side; bold is what is better than all others by more than the interval of the difference.

    Example: `forecache tabulate fid.json --markdown`
    """
    rows = [_row(path) for path in files]
    if as_json:
        emit([_document(row, rows) for row in rows])
    elif markdown:
        say("\n".join(tables.markdown(rows)))
    else:
        console.print(tables.rich_table(rows))
    say(tables.legend(rows))


def _document(row: evaluate.Row, rows: list[evaluate.Row]) -> dict[str, Any]:
    """A row for a JSON; best: the metrics by which it is better than every other, by more than the interval."""
    figures = {name: each for name, each in row.figures.items() if isinstance(each, evaluate.Estimate)}
    best = [name for name in figures if (first := tables.best(rows, name)) is not None and rows[first] is row]
    values = {
        name: {"value": each.value, "interval": each.interval, "count": each.count} for name, each in figures.items()
    }
    return {"name": row.name, "figures": values, "best": best}


def _row(path: Path) -> evaluate.Row:
    try:
        document = files_module.document(path, 16 * 2**20)
        figures = {str(name): evaluate.Estimate.read(each) for name, each in document["figures"].items()}
        return evaluate.Row(path.stem, figures, seeds=items(document["sampling_seeds"], "seeds", int))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not what `forecache evaluate --out` writes: {error}") from error
