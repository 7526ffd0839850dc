"""`forecache tune`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import forecache as fc
from forecache import distributed
from forecache.cli.parameters import MAX_STEPS, AsJson, out_folder
from forecache.cli.terminal import app, emit, progress, resumable, say
from forecache.fit.tuning import AtLeast, Milliseconds, Tuned
from forecache.fit.tuning.budgets import Budget
from forecache.fit.tuning.forecasts import vocabulary
from forecache.fit.tuning.tuner import DEFAULT_FORECASTS
from forecache.report import tuning_figures
from forecache.sampling import runs, sources
from forecache.zoo.open import open_source


@app.command("tune")
def tune_command(
    model: Annotated[str, typer.Option(help="digits, digits-text, a pipeline folder, or a hub repository.")] = "digits",
    steps: Annotated[int, typer.Option(min=2, max=MAX_STEPS, help="Sampling steps.")] = 20,
    speedup: Annotated[
        list[float] | None, typer.Option(min=1.01, help="So many times fewer MACs; may stand several times [3].")
    ] = None,
    milliseconds: Annotated[
        list[float] | None,
        typer.Option(min=0.01, help="Or so long for a batch, measured here; may stand several times."),
    ] = None,
    at_least: Annotated[
        list[float] | None, typer.Option(min=1, help="Or the cheapest plan with so many dB; may stand several times.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples a schedule, the classes or texts in turn.")] = 16,
    held_out: Annotated[int, typer.Option(min=0, help="Other samples that judge what was found; 0 for none.")] = 32,
    labels: Annotated[str | None, typer.Option(help="These classes instead, one sample each: 207,360.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of texts, one a line, for a text-to-image model.")
    ] = None,
    forecast: Annotated[
        list[str] | None, typer.Option(help=f"To choose from, may stand several times: {vocabulary()}.")
    ] = None,
    schedules: Annotated[int, typer.Option(min=1, help="Schedules that are sampled with for every speed-up.")] = 48,
    longest: Annotated[int, typer.Option(min=2, help="The longest interval between computed steps.")] = 8,
    guidance: Annotated[float | None, typer.Option(help="Its scale [1.5 for classes, else the pipeline's].")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise that is tuned on.")] = 1000,
    held_out_seed: Annotated[int, typer.Option(min=0, help="Of the noise that judges.")] = 2000,
    search_seed: Annotated[int, typer.Option(min=0, help="Of what is proposed.")] = 0,
    correct: Annotated[
        bool, typer.Option(help="Try EOC's correction, whose tensors stand in a file beside the plan.")
    ] = True,
    refine: Annotated[
        bool, typer.Option(help="Refine the weights of the best plans by their effect on the images.")
    ] = True,
    batch: Annotated[int, typer.Option(min=1, help="Samples a model call.")] = 32,
    out: Annotated[Path, out_folder("Folder for the plans, tune.json and tune.png.")] = Path("out/tune"),
    as_json: AsJson = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16")] = "auto",
) -> None:
    """Find the best plan for a budget: schedule and forecast together, on your model, judged on other samples.

    Ctrl-C loses one schedule, or one round of refinement, at most, and the same command continues. Each plan is a file
    for `forecache sample --plan` and `forecache.Plan.load`.

    Example: `forecache tune --model digits --steps 20 --speedup 2 --speedup 3 --out out/tune`

    Example: `forecache tune --model digits --steps 20 --at-least 40 --out out/tune-40dB`

    Example: `torchrun --nproc-per-node 8 -m forecache tune --model black-forest-labs/FLUX.1-dev --batch 1 --steps 28
    --prompts texts.txt --speedup 3`

    Example: `forecache tune --model facebook/DiT-XL-2-256 --steps 50 --samples 8 --batch 8 --out out/dit-tune`
    """
    budgets = _budgets(speedup or [], milliseconds or [], at_least or [])
    with distributed.started() as world:
        source = open_source(model, device, dtype)
        conditions = runs.conditions(source, samples, labels, prompts)
        others = runs.conditions(source, held_out, labels, prompts) if held_out else ()
        with resumable(out / "tune.json", leads=world.leads), progress(None, shown=world.leads) as (bar, task):
            best = [float("-inf")]

            def show(trial: fc.fit.tuning.Trial) -> None:
                best[0] = max(best[0], trial.psnr)
                bar.update(task, description=f"{trial.psnr:.1f} dB, best {best[0]:.1f}")

            tuned = fc.tune(
                source,
                conditions,
                num_steps=steps,
                budget=list(budgets.values()),
                held_out=others,
                forecasts=forecast or DEFAULT_FORECASTS,
                guidance=sources.own_guidance(source) if guidance is None else guidance,
                seed=seed,
                held_out_seed=held_out_seed,
                batch=batch,
                number=schedules,
                longest=longest,
                search_seed=search_seed,
                correcting=correct,
                refining=refine,
                path=out / "tune.json",
                on_start=lambda calls: bar.update(task, description="sampling", total=calls),
                on_step=lambda _: bar.advance(task),
                on_trial=show,
            )
        if world.leads:
            _tell(tuned, list(budgets), out, as_json)


def _budgets(speedups: list[float], times: list[float], qualities: list[float]) -> dict[str, Budget]:
    """What was asked for, by its name in a table and in a file's name; three times fewer MACs if nothing was."""
    found: dict[str, Budget] = {f"{each:g}x": 1 / each for each in speedups}
    found |= {f"{each:g}ms": Milliseconds(each) for each in times}
    found |= {f"{each:g}dB": AtLeast(each) for each in qualities}
    return found or {"3x": 1 / 3}


def _tell(tuned: Tuned, names: list[str], out: Path, as_json: bool) -> None:
    """The table, the picture and the plans."""
    files = [out / f"plan-{name}.json" for name in names]
    for plan, file in zip(tuned.plans, files, strict=True):
        plan.save(file)
    tuning_figures.draw_tuned(tuned, out / "tune.png")
    if as_json:
        rows = [
            asdict(trial)
            | {"forecast": str(trial.forecast), "plan": str(file)}
            | {"even_psnr": even.psnr, "held_out_psnr": held}
            for trial, even, file, held in zip(
                tuned.best, tuned.even, files, tuned.held_out or [None] * len(files), strict=True
            )
        ]
        emit({"trials": len(tuned.trials), "plans": rows})
        return
    for place, (trial, even) in enumerate(zip(tuned.best, tuned.even, strict=True)):
        held = f", {tuned.held_out[place]:.2f} dB on held-out samples" if tuned.held_out else ""
        say(f"{names[place]:<8}{trial.pattern}  {trial.forecast}")
        say(f"        {trial.psnr:.2f} dB{held} (even steps: {even.psnr:.2f} dB)  {files[place]}")
    say(f"{len(tuned.trials)} schedules sampled with. Wrote the plans and {out / 'tune.png'}.")
