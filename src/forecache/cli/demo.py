"""`forecache demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

import forecache as fc
from forecache.bench import demo
from forecache.cli.levels import takes_level_options
from forecache.cli.parameters import DEFAULT_MODEL, AsJson, Threads, out_folder
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
from forecache.io import files
from forecache.io.text import MIB
from forecache.models.levels import AskedSites
from forecache.report import figures
from forecache.zoo import load_digits, record


@app.command("demo")
@takes_level_options
def demo_command(
    *,
    out: Annotated[Path, out_folder("Folder for the pictures and demo.json.")] = Path("out/demo"),
    samples: Annotated[int, typer.Option(min=2, help="Number of digits to sample.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds; the median counts.")] = 2,
    sites: AskedSites,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Sample the bundled, trained digits model without a cache, by published methods and by a tuned plan.

    --level is that of the published methods; the tuned plans are by branches.

    Example: `forecache demo --samples 64 --out out/demo`
    """
    if threads is not None:
        torch.set_num_threads(threads)
    source = load_digits()
    steps, guidance = record(DEFAULT_MODEL).steps, record(DEFAULT_MODEL).guidance  # the tuned plans are for these
    grid = fc.grid(source.target, steps, **sites.options)
    plans = demo.plans(grid)
    out.mkdir(parents=True, exist_ok=True)
    settings = {"model": DEFAULT_MODEL, "sampler": f"DDIM-{steps}", "samples": samples, "guidance": guidance}
    settings |= {"seed": seed, "command": typed_command()}
    settings |= {"sites": sites.words} if sites.words else {}
    rounds_done: list[int] = []

    def keep(rows: list[demo.Row]) -> None:
        demo.save(rows, out / "demo.json", settings)
        figures.draw_grids(rows, out / "samples.png")
        rounds_done.append(len(rows[0].seconds))

    with (
        interruptible(lambda: stopped_at(rounds_done, repeats, out / "demo.json")),
        progress((len(plans) + 1) * repeats * steps) as (bar, task),
    ):
        rows = demo.compare(
            source,
            grid,
            plans,
            samples=samples,
            guidance=guidance,
            seed=seed,
            repeats=repeats,
            on_run=lambda name: bar.update(task, description=name),
            on_step=lambda _: bar.advance(task),
            on_round=keep,
        )
    title = f"{DEFAULT_MODEL}, DDIM-{steps}, guidance {guidance:g}, {samples} samples"
    if as_json:
        emit(files.document(out / "demo.json", 2**24))
    print_table(_table(rows, title))
    tuned, published = demo.best_published(rows)
    say(f"The tuned plan is {tuned.psnr - published.psnr:+.1f} dB from {published.name}, at as many computed steps.")
    say(_legend(samples))
    if any(row.is_too_fast for row in rows):
        say("Some rows are faster than their MACs explain: other programs ran meanwhile. Do not trust the times.")
    say(f"Wrote {out / 'samples.png'}, {out / 'demo.json'}. See them: forecache report {out / 'demo.json'}")


def _table(rows: list[demo.Row], title: str) -> Table:
    table = results_table(title, gap=1)  # fits a terminal of 80 columns
    table.add_column("plan", no_wrap=True)
    table.add_column("schedule", no_wrap=True)
    for name in ("GMACs/\nimage", "fewer\nMACs", "less\ntime", "PSNR\ndB", "Fré-\nchet", "class\n%", "cache\nMiB"):
        table.add_column(name, justify="right", no_wrap=True)
    uncached_macs = next(row.cost.macs_uncached for row in rows if row.cost is not None)
    for row in rows:
        cost = row.cost
        table.add_row(
            row.name,
            _schedule(row.plan) if row.plan is not None else "every step computed",
            f"{(cost.macs if cost is not None else uncached_macs) / 1e9:.2f}",
            f"{cost.speedup:.2f}x" if cost is not None else "",
            f"{row.speedup:.2f}x" if cost is not None else "",
            f"{row.psnr:.1f}" if cost is not None else "",
            f"{row.frechet:.2f}",
            f"{100 * row.accuracy:.1f}",
            f"{row.cache_bytes / MIB:.0f}",
        )
    return table


def _schedule(plan: fc.Plan) -> str:
    """The most frequent schedule of the plan's sites, with a star where other sites have others."""
    first, *others = plan.picture().split("\n")
    return f"{first} *" if others else first


def _legend(samples: int) -> str:
    machine = environment()
    return (
        "GOC is listed with its eta, Taylor (TaylorSeer) with its order; tuned: found by `forecache tune`, ships.\n"
        "# computed, . reused, ~ forecast, + corrected.\n"
        "Fewer MACs is the speed-up to expect, less time the measured one; PSNR is to the uncached samples.\n"
        f"Fréchet distance: classifier features, to the MNIST test set; biased upwards at {samples} samples, so\n"
        "compare it within the table only.\n"
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, diffusers {machine['diffusers']}."
    )
