"""`forecache bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

import forecache as fc
from forecache.bench import benchmark, speed
from forecache.bench.subjects import PRESETS
from forecache.cli.levels import takes_level_options
from forecache.cli.parameters import BUNDLED, MAX_STEPS, AsJson, Device, Dtype, Threads, names, out_folder
from forecache.cli.terminal import (
    app,
    emit,
    interruptible,
    print_table,
    progress,
    results_table,
    say,
    stopped_at,
    typed_command,
)
from forecache.environment import environment
from forecache.io.text import MIB
from forecache.models.levels import AskedSites
from forecache.report import figures
from forecache.zoo import SHAPES, models


@app.command("bench")
@takes_level_options
def bench_command(
    *,
    model: Annotated[
        str,
        typer.Option(
            help=f"{BUNDLED}, {', '.join(SHAPES)} (random weights), a pipeline folder, or a hub repository.",
            autocompletion=names(*models(), *SHAPES),
        ),
    ] = "tiny",
    presets: Annotated[
        list[str] | None, typer.Option("--preset", help=f"A method by name; repeatable: {', '.join(PRESETS)}.")
    ] = None,
    plans: Annotated[list[Path] | None, typer.Option("--plan", help="A plan file; repeatable.")] = None,
    sites: AskedSites,
    steps: Annotated[
        int | None, typer.Option(min=1, max=MAX_STEPS, help="Sampling steps [20, or those of --plan].")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in a model call.")] = 1,
    guidance: Annotated[
        bool, typer.Option(help="Two samples for each image, as classifier-free guidance needs.")
    ] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds; each times all plans in turn.")] = 5,
    threads: Threads = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the model with torch first.")] = False,
    out: Annotated[Path, out_folder("Folder for bench.json, bench.md and bench.png.")] = Path("out/bench"),
    as_json: AsJson = False,
) -> None:
    """Time plans on a model: whole runs, full and skipped steps, and the cache, each against its prediction.

    All plans run in one process in turn; ratios are to the bare model in the same round. No weights are needed.

    Example: `forecache bench --model tiny --preset fora-50 --preset goc-50 --rounds 3 --threads 1`

    Example: `forecache bench --model dit-xl-2 --plan plan.json --batch 8 --device cuda --out out/bench`
    """
    if threads is not None:
        torch.set_num_threads(threads)
    saved_plans = {path.stem: fc.Plan.load(path) for path in plans or ()}
    setup = benchmark.Setup(presets or (), saved_plans, steps, batch, guidance, rounds, compiled, sites)
    subject = setup.open(model, device, dtype)
    timed_plans = setup.all_plans(subject)
    rounds_done: list[int] = []

    def keep(so_far: benchmark.Benchmark) -> None:
        so_far.write(out)
        rounds_done.append(so_far.rows[0].run.count)

    with (
        interruptible(lambda: stopped_at(rounds_done, rounds, out / "bench.json")),
        progress(rounds * (len(timed_plans) + 1), still=True) as (bar, task),
    ):
        result = benchmark.run(
            subject,
            timed_plans,
            setup,
            command=typed_command(),
            on_run=lambda name: bar.update(task, advance=1, description=name, refresh=True),
            on_round=keep,
        )
    figures.draw_speed(result.rows, out / "bench.png", result.title)
    if as_json:
        emit(result.document)
    print_table(_table(result))
    say(_legend())
    say(f"Wrote {out / 'bench.json'}, {out / 'bench.md'}, {out / 'bench.png'}.")


def _table(result: benchmark.Benchmark) -> Table:
    table = results_table(result.title, gap=1)  # fits a terminal of 80 columns
    table.add_column("plan", no_wrap=True)
    names = "fewer\nMACs", "less\ntime", "reali-\nsed", "full\nstep", "skipped\nstep", "mixed\nstep", "cache\nMiB"
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        if row.cost is None:
            step = f"{row.steps['full'].median * 1e3:.2f} ms"
            table.add_row(row.name, "", f"{row.run.median:.3f} s", "", step, "", "", "")
            continue
        shares = [f"{row.step_ratios[kind].median:.1%}" if kind in row.steps else "" for kind in speed.KINDS]
        differs = "" if row.cache_bytes == row.cost.cache_bytes else " !"
        ratios = f"{row.cost.speedup:.2f}x", f"{row.time_ratio.median:.2f}x", f"{row.realised:.0%}"
        table.add_row(row.name, *ratios, *shares, f"{row.cache_bytes / MIB:.2f}{differs}")
    return table


def _legend() -> str:
    machine = environment()
    return (
        "Fewer MACs: the speed-up to expect. Less time: the measured one. Realised: the one divided by the other.\n"
        "Steps: share of the bare model's time, with every site computed (full), none (skipped), or some (mixed).\n"
        "! marks a cache that is not as large as predicted.\n"
        f"torch {machine['torch']}, diffusers {machine['diffusers']}."
    )
