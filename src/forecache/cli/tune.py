"""`forecache tune`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import forecache as fc
from forecache import distributed
from forecache.cli.levels import takes_level_options
from forecache.cli.parameters import (
    DEFAULT_MODEL,
    MAX_STEPS,
    AsJson,
    Batch,
    Guidance,
    Labels,
    Model,
    Prompts,
    out_folder,
)
from forecache.cli.pipelines import PipelineOptions, guidance_of, takes_pipeline_options
from forecache.cli.terminal import app, emit, progress, resumable, say
from forecache.fit.tuning import Tuned, budgets
from forecache.fit.tuning.forecasts import vocabulary
from forecache.fit.tuning.samplers import OWN, SAMPLERS
from forecache.fit.tuning.trials import Trial
from forecache.fit.tuning.tuner import DEFAULT_FORECASTS
from forecache.models.levels import AskedSites
from forecache.report import tuning_figures
from forecache.sampling import runs


class ReferenceName(StrEnum):
    """What images are compared with."""

    converged = "converged"
    own = "own"


@app.command("tune")
@takes_level_options
@takes_pipeline_options
def tune_command(
    *,
    model: Model = DEFAULT_MODEL,
    steps: Annotated[int, typer.Option(min=2, max=MAX_STEPS, help="Sampling steps.")] = 20,
    try_steps: Annotated[
        list[int] | None,
        typer.Option(min=2, max=MAX_STEPS, help="Another number of steps to choose from; repeatable."),
    ] = None,
    sampler: Annotated[
        list[str] | None,
        typer.Option(help=f"A sampler to choose from; repeatable: {', '.join(SAMPLERS)} [own]."),
    ] = None,
    calls: Annotated[
        list[int] | None, typer.Option(min=1, help="Budget as the number of computed model calls; repeatable.")
    ] = None,
    speedup: Annotated[
        list[float] | None, typer.Option(min=1.01, help="Budget as a MAC reduction; repeatable [3].")
    ] = None,
    milliseconds: Annotated[
        list[float] | None, typer.Option(min=0.01, help="Budget as the latency of a batch on this machine; repeatable.")
    ] = None,
    at_least: Annotated[
        list[float] | None, typer.Option(min=1, help="Budget as the lowest mean PSNR in dB; repeatable.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples per schedule; classes or prompts are cycled.")] = 16,
    held_out: Annotated[int, typer.Option(min=0, help="Held-out samples that judge the best plans; 0 for none.")] = 32,
    labels: Labels = None,
    prompts: Prompts = None,
    forecast: Annotated[
        list[str] | None, typer.Option(help=f"A forecast to choose from; repeatable: {vocabulary()}.")
    ] = None,
    schedules: Annotated[int, typer.Option(min=1, help="Schedules to sample with, for each budget.")] = 48,
    longest: Annotated[int, typer.Option(min=2, help="Longest interval between computed steps.")] = 8,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise that plans are tuned on.")] = 1000,
    held_out_seed: Annotated[int, typer.Option(min=0, help="Seed of the held-out noise.")] = 2000,
    search_seed: Annotated[int, typer.Option(min=0, help="Seed of the proposed schedules.")] = 0,
    reference: Annotated[
        ReferenceName,
        typer.Option(
            help="What ranks plans: closeness to the converged samples of the same noise, or to a run without a cache."
        ),
    ] = ReferenceName.converged,
    quick: Annotated[
        bool, typer.Option(help="Keep the search to the cost of 100 images without a cache, for all budgets together.")
    ] = False,
    correct: Annotated[bool, typer.Option(help="Try EOC's correction; its tensors are a file beside the plan.")] = True,
    refine: Annotated[
        bool, typer.Option(help="Refine the weights of the best plans by their effect on the images.")
    ] = True,
    hindsight: Annotated[
        bool, typer.Option(help="Try hindsight on the best plans, with a share for every gap.")
    ] = False,
    sites: AskedSites,
    batch: Batch = 32,
    out: Annotated[Path, out_folder("Folder for the plans, tune.json and tune.png.")] = Path("out/tune"),
    as_json: AsJson = False,
    pipeline: PipelineOptions,
) -> None:
    """Find the best plan for a budget: schedule and forecast together, on your model, judged on held-out samples.

    Ctrl-C loses at most one schedule or one round of refinement, and the same command continues. Each plan is a file
    for `forecache sample --plan` and `forecache.Plan.load`.

    Example: `forecache tune --model digits --steps 20 --speedup 2 --speedup 3 --out out/tune`

    Example: `forecache tune --model digits --steps 20 --try-steps 30 --sampler own --sampler dpmsolver++
    --sampler unipc --calls 10 --out out/tune-calls`

    Example: `forecache tune --model digits --steps 20 --at-least 40 --reference own --out out/tune-40dB`

    Example: `torchrun --nproc-per-node 8 -m forecache tune --model black-forest-labs/FLUX.1-dev --batch 1 --steps 28
    --prompts texts.txt --speedup 3`

    Example: `forecache tune --model facebook/DiT-XL-2-256 --steps 50 --samples 8 --batch 8 --out out/dit-tune`
    """
    asked = budgets.by_name(speedup or (), milliseconds or (), at_least or (), calls or ())
    with distributed.started() as world:
        source = pipeline.open(model)
        conditions = runs.conditions(source, samples, labels, prompts)
        held_out_conditions = runs.conditions(source, held_out, labels, prompts) if held_out else ()
        with resumable(out / "tune.json", leads=world.leads), progress(None, shown=world.leads) as (bar, task):
            best = float("-inf")

            def on_trial(trial: Trial) -> None:
                nonlocal best
                best = max(best, trial.psnr)
                bar.update(task, description=f"{trial.psnr:.1f} dB, best {best:.1f}")

            tuned = fc.tune(
                source,
                conditions,
                num_steps=steps,
                samplers=sampler or [OWN],
                steps=[steps, *(try_steps or [])],
                budget=list(asked.values()),
                held_out=held_out_conditions,
                forecasts=forecast or DEFAULT_FORECASTS,
                guidance=guidance_of(source, guidance),
                seed=seed,
                held_out_seed=held_out_seed,
                batch=batch,
                number=schedules,
                longest=longest,
                search_seed=search_seed,
                reference=reference.value,
                quick=quick,
                correcting=correct,
                refining=refine,
                hindsight=hindsight,
                **sites.options,
                path=out / "tune.json",
                on_start=lambda calls: bar.update(task, description="sampling", total=calls),
                on_cost=lambda images: say(f"The search costs at most {images:.0f} images without a cache."),
                on_step=lambda _: bar.advance(task),
                on_trial=on_trial,
            )
        if world.leads:
            paths = tuned.save(out, list(asked))
            tuning_figures.draw_tuned(tuned, out / "tune.png")
            if as_json:
                emit(tuned.document(paths))
            _say_result(tuned, list(asked), paths)
            if tuned.images:
                say(f"The search cost {tuned.images:.0f} images without a cache.")
            say(f"{len(tuned.trials)} schedules sampled with. Wrote the plans and {out / 'tune.png'}.")


def _say_result(tuned: Tuned, names: Sequence[str], paths: Sequence[Path]) -> None:
    say(f"PSNR to {tuned.reference}; in brackets to no cache.")
    for index, (name, path) in enumerate(zip(names, paths, strict=True)):
        say(f"{name:<8}{tuned.title(index)}")
        say(f"        {tuned.scores(index)}  {path}")
        for line in tuned.beside(index):
            say(f"    {line}")
