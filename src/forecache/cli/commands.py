"""`forecache demo` and `forecache sample`; what they do lives in the library."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

import forecache as fc
from forecache import distributed
from forecache.bench import demo
from forecache.cli.methods import Typed, takes_method_options
from forecache.cli.options import MethodName
from forecache.cli.shards import Many
from forecache.cli.terminal import STEPS, AsJson, app, console, emit, out_folder, progress, say
from forecache.environment import environment
from forecache.report import figures
from forecache.sampling import runs, sources
from forecache.zoo import load_digits, statistics_path
from forecache.zoo.open import open_source


@app.command("demo")
def demo_command(
    out: Annotated[Path, out_folder("Folder for the pictures and demo.json.")] = Path("out/demo"),
    samples: Annotated[int, typer.Option(min=2, help="Digits to sample.")] = 64,
    steps: Annotated[int, typer.Option(help="DDIM steps; the papers' lists are for 20.", min=20, max=20)] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 1.5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds; the median counts.")] = 2,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's choice by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sample the bundled, trained digits model with and without a cache: what it cost, what it did to the images.

    Example: `forecache demo --samples 64 --out out/demo`
    """
    if threads is not None:
        torch.set_num_threads(threads)
    source = load_digits()
    grid = fc.grid(source.target, steps)
    chosen = demo.methods() | demo.calibrated(fc.Statistics.load(statistics_path(steps)))
    out.mkdir(parents=True, exist_ok=True)
    with progress((len(chosen) + 1) * repeats * steps) as (bar, task):
        rows = demo.compare(
            source,
            grid,
            chosen,
            samples=samples,
            guidance=guidance,
            seed=seed,
            repeats=repeats,
            on_run=lambda name: bar.update(task, description=name),
            on_step=lambda _: bar.advance(task),
        )
    settings = {"model": "digits", "sampler": f"DDIM-{steps}", "samples": samples, "guidance": guidance, "seed": seed}
    settings["command"] = _typed()
    demo.save(rows, out / "demo.json", settings)
    figures.draw_grids(rows, out / "samples.png")
    title = f"digits, DDIM-{steps}, guidance {guidance:g}, {samples} samples"
    figures.draw_quality(rows, out / "quality.png", title)
    if as_json:
        emit(json.loads((out / "demo.json").read_text()))
    console.print(_table(rows, title))
    best, gain = demo.best_eta(rows)
    say(f"Best eta of GOC here: {best.name.split()[-1]}, {gain:+.1f} dB over FORA at the same MACs.")
    say(_legend(samples))
    if any(row.is_too_fast for row in rows):
        say("Some rows took less time than their MACs explain: something else ran meanwhile. Do not trust the times.")
    say(f"Wrote {out / 'samples.png'}, {out / 'quality.png'}, {out / 'demo.json'}.")


def _typed() -> str:
    return shlex.join(["forecache", *sys.argv[1:]])


def _table(rows: list[demo.Row], title: str) -> Table:
    """Narrow enough for a terminal of 80 columns."""
    table = Table(title=title, title_justify="left", header_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("plan", no_wrap=True)
    table.add_column("schedule", no_wrap=True)
    for name in ("GMACs/\nimage", "fewer\nMACs", "less\ntime", "PSNR\ndB", "Fré-\nchet", "class\n%", "cache\nMiB"):
        table.add_column(name, justify="right", no_wrap=True)
    cached = [row for row in rows if row.plan is not None and row.cost is not None]
    for row in rows:
        cost, plan = row.cost, row.plan
        macs = cost.macs if cost is not None else cached[0].cost.macs_uncached if cached[0].cost else 0
        table.add_row(
            row.name,
            _line(plan) if plan is not None else "every step computed",
            f"{macs / 1e9:.2f}",
            f"{cost.speedup:.2f}x" if cost is not None else "",
            f"{row.speedup:.2f}x" if cost is not None else "",
            f"{row.psnr:.1f}" if cost is not None else "",
            f"{row.frechet:.2f}",
            f"{100 * row.accuracy:.1f}",
            f"{row.cache_bytes / 2**20:.0f}",
        )
    return table


def _line(plan: fc.Plan) -> str:
    """The most frequent row, marked where it is not the only one."""
    first, *rest = plan.picture().split("\n")
    return f"{first} *" if rest else first


def _legend(samples: int) -> str:
    place = environment()
    return (
        "GOC is listed with its eta, Taylor (TaylorSeer) with its order; gate and EOC use the bundled statistics.\n"
        "# computed, . reused, ~ forecast, + corrected; * differs from site to site.\n"
        "Fewer MACs is what to expect, less time what was measured; PSNR is to the uncached samples.\n"
        f"Fréchet distance: classifier features, to the MNIST test set; biased upwards at {samples} samples, so\n"
        "compare it within the table only.\n"
        f"{place['cpu']}, {place['threads']} threads, torch {place['torch']}, diffusers {place['diffusers']}."
    )


@app.command("sample")
@takes_method_options
def sample_command(
    *,
    labels: Annotated[str | None, typer.Option(help="Classes, by number or name: 207,360 or 'shark,umbrella'.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A text, for text-to-image models; once an image.")] = None,
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="So many, in shards, as samples.npz: what is given, or classes, in turn.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="--num-samples: a file of texts, one a line.")] = None,
    model: Annotated[str, typer.Option(help="digits, digits-text, a pipeline folder, or a hub repository.")] = "digits",
    out: Annotated[Path, out_folder("Folder for images and run.json; a run in it goes.")] = Path("out/sample"),
    steps: Annotated[int | None, typer.Option(min=1, max=STEPS, help="Sampling steps; 20, or those of --plan.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Its scale [1.5 for classes, else the pipeline's].")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images a model call, at most; does not change the noise.")] = 16,
    plan: Annotated[Path | None, typer.Option(help="A plan file, instead of a method.")] = None,
    method: Annotated[MethodName, typer.Option(help="none samples without a cache.")] = MethodName.none,
    typed: Typed,
    compare: Annotated[bool, typer.Option(help="Sample without a cache too: PSNR and speed-up.")] = False,
    shard_size: Annotated[int | None, typer.Option(min=1, help="--num-samples: images a file [256].")] = None,
    call_size: Annotated[
        int | None, typer.Option(min=1, help="--num-samples: images in every model call, for equal bytes [16].")
    ] = None,
    exact: Annotated[
        bool | None, typer.Option(help="--num-samples: or calls of --batch images, equal up to rounding.")
    ] = None,
    random_classes: Annotated[
        bool | None, typer.Option("--random-classes", help="--num-samples: classes at random instead of in turn.")
    ] = None,
    png: Annotated[bool | None, typer.Option("--png", help="--num-samples: write PNGs as well.")] = None,
    as_json: AsJson = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16")] = "auto",
) -> None:
    """Sample images from class labels or texts, by a method or a plan file, and write how they were made.

    Example: `forecache sample --model digits --labels 3,1,4,1,5 --method goc --interval 2 --compare --out out/digits`

    Example: `forecache sample --model digits --labels 2,7 --method eoc --stats digits --form additive --compare`

    Example: `forecache sample --model digits --labels 2,7 --method goc --base l2c --router digits-22 --eta 1 --compare`

    Example: `forecache sample --model digits --labels 2,7 --steps 50 --method procache --pattern published --compare`

    Example: `forecache sample --model digits-text --prompt "a seven left of a three" --method goc --compare`

    Example: `forecache sample --model facebook/DiT-XL-2-256 --labels 207,360 --steps 20 --method goc --base fora
    --interval 2 --eta 1.2 --out out/`

    Example: `forecache sample --model PixArt-alpha/PixArt-XL-2-512x512 --prompt "a small cactus with a happy face"
    --steps 20 --method goc --out out/`

    With --num-samples it writes shards and an ADM .npz; the same command continues, and several GPUs or machines share
    the work: `torchrun --nproc-per-node 8 -m forecache sample ...`, or `accelerate launch -m forecache sample ...`.

    Example: `forecache sample --model digits --num-samples 1000 --method goc --out out/goc-1000`
    """
    many = Many(num_samples, prompts, shard_size, call_size, exact, random_classes, png)
    many.check(labels is not None or bool(prompt), compare)
    if plan is not None and method is not MethodName.none:
        raise fc.errors.InputError("--plan and --method both say how to sample: give one of them.")
    loaded = fc.Plan.load(plan) if plan is not None else None
    if loaded is not None and steps not in (None, loaded.num_steps):
        raise fc.errors.PlanError(
            f"{plan} is a plan for {loaded.num_steps} steps, --steps {steps} was asked for: leave --steps out, or make "
            "a plan for that number."
        )
    num_steps = loaded.num_steps if loaded is not None else steps or 20
    options = typed(method)
    if loaded is not None and options.given:
        raise fc.errors.InputError(f"{plan} has all that its method needs: leave {', '.join(options.given)} out.")
    built = options.build(num_steps)
    if num_samples is None:
        runs.check_folder(out)
    if num_samples is not None:
        distributed.take_gpu()
    source = open_source(model, device, dtype)
    scale = sources.own_guidance(source) if guidance is None else guidance
    asked = runs.chosen(source, labels, prompt or []) if labels is not None or prompt or num_samples is None else ()
    settings = runs.Settings(asked, num_steps, scale, seed, batch)
    chosen = loaded or (built.plan(fc.grid(source.target, num_steps)) if built is not None else None)
    if num_samples is not None:
        many.sample(source, chosen, settings, out, as_json=as_json)
        return
    batches = -(-len(settings.conditions) // batch)
    with progress(num_steps * batches * (1 + compare)) as (bar, task):
        bar.update(task, description="sampling")
        run = runs.generate(source, chosen, settings, lambda _: bar.advance(task))
        bar.update(task, description="sampling without a cache")
        uncached = runs.generate(source, None, settings, lambda _: bar.advance(task)) if compare else None
    cost = runs.cost(source, chosen, run) if chosen is not None else None
    record = runs.write(out, run, settings, model=model, plan=chosen, cost=cost, uncached=uncached, command=_typed())
    if as_json:
        emit(record)
        return
    if chosen is not None:
        say(f"{chosen.provenance.get('method', 'plan')}\n{chosen.picture()}\n{cost or 'cost not known from shapes'}")
    if uncached is not None:
        values = [entry["psnr_db"] for entry in record["images"]]
        worst = "equal images" if None in values else f"PSNR {min(values):.1f} to {max(values):.1f} dB"
        say(f"to no cache: {record['time_ratio']:.2f}x faster, {worst}")
    say(f"Wrote {len(record['images'])} images and run.json to {out} ({run.seconds:.1f} s).")
