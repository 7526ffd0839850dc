"""`forecache evaluate` and `forecache tabulate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from forecache import evaluate
from forecache.cli.parameters import AsJson, Device, out_file
from forecache.cli.terminal import app, console, emit, print_table, progress, results_table, say, typed_command
from forecache.errors import InputError
from forecache.evaluate import clip, tables
from forecache.evaluate import files as evaluation_files
from forecache.evaluate.evaluation import check, needs_extractor
from forecache.evaluate.metrics import ALIASES, METRICS, parse_metrics
from forecache.io import files as io_files
from forecache.sampling.device import resolve

NAMES = ", ".join([*METRICS, *(f"{name} ({' '.join(metrics)})" for name, metrics in ALIASES.items())])
EXTRACTORS = ", ".join(evaluate.extractor_names())
REFERENCES = ", ".join(evaluate.reference_names())


class NetName(StrEnum):
    alex = "alex"
    vgg = "vgg"
    squeeze = "squeeze"


@app.command("evaluate")
def evaluate_command(
    samples: Annotated[Path, typer.Argument(help="A folder of images, an .npz (arr_0), or features (.safetensors).")],
    reference: Annotated[
        str | None, typer.Option(help=f"Real images in the same forms, ADM's statistics (.npz), or {REFERENCES}.")
    ] = None,
    metrics: Annotated[str, typer.Option(help=f"Separated by commas: {NAMES}.")] = "fid",
    extractor: Annotated[str, typer.Option(help=f"Network that extracts features: {EXTRACTORS}.")] = "inception",
    weights: Annotated[
        str | None,
        typer.Option(help="Extractor weights: a file (inception), a folder or repository (clip)."),
    ] = None,
    uncached: Annotated[
        Path | None, typer.Option(help="For psnr, ssim, lpips: the uncached images, paired by name [--reference].")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="For clip: a file with a prompt per image and line, or .json by image name.")
    ] = None,
    clip_model: Annotated[str, typer.Option(help="CLIP, for the metric clip: a folder or repository.")] = clip.USUAL,
    lpips_net: Annotated[NetName, typer.Option(help="Trunk of LPIPS.")] = NetName.alex,
    lpips_weights: Annotated[Path | None, typer.Option(help="A file of the trunk's weights [downloaded].")] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Bootstrap resamples for the intervals; 0 for none.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images in a call of a network.")] = 64,
    device: Device = "auto",
    save_features: Annotated[
        Path | None, out_file("Write the samples' features to a file (.safetensors).", "--save-features")
    ] = None,
    out: Annotated[
        Path | None, out_file("Write the results with their resamples as JSON, for `forecache tabulate`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the quality of images, of forecache or of anything else; each metric with a bootstrap interval.

    Example: `forecache evaluate out/digits --reference digits --extractor digits --metrics fid,accuracy --out fid.json`

    Example: `forecache evaluate out/samples.npz --reference VIRTUAL_imagenet256_labeled.npz --metrics fid,sfid,is,prc`

    Example: `forecache evaluate out/fast --uncached out/slow --metrics psnr,ssim --out fast.json`
    """
    names = parse_metrics(metrics)  # first, because it takes no time
    _refuse_inputs(samples, [reference, uncached, prompts], {"--out": out, "--save-features": save_features})
    place, _ = resolve(device)
    images = evaluate.Features.load(samples) if samples.suffix == ".safetensors" else evaluate.open_images(samples)
    against = _against(images, names, reference, uncached, prompts)
    check(images, against, names)
    if save_features is not None and isinstance(images, evaluate.Features):
        raise InputError(f"{samples} holds features already: --save-features takes images.")
    needed = save_features is not None or needs_extractor(images, against, names)
    judges = evaluate.Judges(
        evaluate.load_extractor(extractor, weights, place) if needed else None,
        evaluate.load_clip(clip_model, place) if "clip" in names else None,
        evaluate.load_lpips(lpips_net.value, lpips_weights, place) if "lpips" in names else None,
    )
    with progress(None) as (bar, task):

        def on_progress(phase: str, done: int, total: int) -> None:
            bar.update(task, description=phase, completed=done, total=total)

        features = None
        if save_features is not None and judges.extractor is not None and not isinstance(images, evaluate.Features):
            count, layers = len(images), judges.extractor.layers
            on_images = lambda done: on_progress("samples", done, count)  # noqa: E731
            features = evaluate.extract(images, judges.extractor, layers, batch=batch, on_images=on_images)
            features.save(save_features)
        evaluation = evaluate.evaluate(
            images,
            against,
            names,
            judges,
            features=features,
            bootstrap=evaluate.Bootstrap(bootstrap, seed),
            batch=batch,
            device=place,
            on_progress=on_progress,
        )
    if out is not None:
        io_files.write_json(out, evaluation_files.document(evaluation, samples, typed_command()))
    if as_json:
        emit(evaluation_files.document(evaluation, samples, typed_command(), draws=False))
    else:
        _say_evaluation(evaluation, samples, seed if bootstrap else None)


def _refuse_inputs(samples: Path, others: Sequence[str | Path | None], outputs: Mapping[str, Path | None]) -> None:
    """Raises InputError for an output that would replace an input, or the record of one."""
    inputs = {Path(path).resolve() for path in (samples, *others) if path is not None}
    folder = samples if samples.is_dir() else samples.parent
    inputs |= {(folder / name).resolve() for name in evaluation_files.RECORDS}
    for option, path in outputs.items():
        if path is not None and path.resolve() in inputs:
            raise InputError(f"{path} belongs to what is evaluated: name another file for {option}.")


def _against(
    images: evaluate.ImageSet | evaluate.Features,
    names: tuple[str, ...],
    reference: str | None,
    uncached: Path | None,
    prompts: Path | None,
) -> evaluate.Against:
    """What the images are compared with. Raises InputError for an option that no metric uses."""
    pairs = any(METRICS[name].needs == "pairs" for name in names)
    if uncached is not None and not pairs:
        raise InputError(f"--uncached is for psnr, ssim and lpips; {', '.join(names)} was asked for.")
    if prompts is not None and ("clip" not in names or isinstance(images, evaluate.Features)):
        raise InputError("--prompts is for the metric clip, on images: leave it out, or ask for --metrics clip.")
    opened = evaluate.open_reference(reference) if reference is not None else None
    partners = evaluate.open_images(uncached) if uncached is not None else opened.images if opened and pairs else None
    texts = None
    if prompts is not None and not isinstance(images, evaluate.Features):
        texts = clip.read_prompts(prompts, images)
    return evaluate.Against(opened, partners, texts)


def _say_evaluation(evaluation: evaluate.Evaluation, samples: Path, bootstrap_seed: int | None) -> None:
    print_table(_table(evaluation))
    facts = [f"features of {evaluation.extractor}"] if evaluation.extractor else []
    facts += [f"reference {evaluation.reference}"] if evaluation.reference else []
    facts += [f"sampling seed {seed}" for seed in evaluation_files.sampling_seeds(samples)]
    if bootstrap_seed is not None:
        facts += [f"bootstrap seed {bootstrap_seed}; the samples are resampled, the reference is not"]
    if facts:
        say("; ".join(facts).capitalize() + ".")
    for note in evaluation.notes:
        say(note)


def _table(evaluation: evaluate.Evaluation) -> Table:
    table = results_table(evaluation.samples)
    table.add_column("metric", no_wrap=True)
    for name in ("value", "95 % interval", "samples", "resamples"):
        table.add_column(name, justify="right", no_wrap=True)
    for figure in evaluation.figures.values():
        metric, interval = figure.kind, figure.interval
        between = f"{interval[0]:.{metric.digits}f} to {interval[1]:.{metric.digits}f}" if interval else ""
        table.add_row(
            f"{metric.title}, {metric.better} is better",
            f"{figure.value:.{metric.digits}f}",
            between,
            str(figure.count),
            str(len(figure.draws)) if figure.draws else "",
        )
    return table


@app.command("tabulate")
def tabulate_command(
    files: Annotated[list[Path], typer.Argument(help="Results of `forecache evaluate --out`.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put evaluations side by side; a bold figure beats all others by more than the interval of the difference.

    Example: `forecache tabulate fid.json --markdown`
    """
    rows = [evaluation_files.read_row(path) for path in files]
    if as_json:
        emit([evaluation_files.row_document(row, rows) for row in rows])
    elif markdown:
        say("\n".join(tables.markdown(rows)))
    else:
        console.print(tables.rich_table(rows))
    say(tables.legend(rows))
