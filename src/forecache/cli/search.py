"""`forecache search`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import forecache as fc
from forecache import distributed
from forecache.cli.levels import takes_level_options
from forecache.cli.parameters import (
    DEFAULT_MODEL,
    AsJson,
    Batch,
    Device,
    Dtype,
    Guidance,
    Labels,
    Model,
    NoiseSeed,
    Prompts,
    Steps,
    out_folder,
)
from forecache.cli.terminal import app, emit, print_table, progress, results_table, resumable, say
from forecache.fit import scores
from forecache.models.levels import AskedSites
from forecache.parts.patterns import Constraints
from forecache.report import figures
from forecache.sampling import runs, sources
from forecache.zoo.open import open_source

MAX_ROWS = 20
"""Rows of the printed table; search.json has all of them."""


class ProxyName(StrEnum):
    psnr = "psnr"
    frechet = "frechet"
    clip = "clip"


@app.command("search")
@takes_level_options
def search_command(
    *,
    budget: Annotated[int, typer.Option(min=1, help="Number of computed steps.")],
    model: Model = DEFAULT_MODEL,
    steps: Steps = 20,
    v_min: Annotated[int, typer.Option(min=0, help="Fewest reused steps after each computed one.")] = 1,
    v_max: Annotated[int, typer.Option(min=0, help="Most reused steps after each computed one.")] = 3,
    any_order: Annotated[bool, typer.Option("--any-order", help="Let intervals grow towards the end.")] = False,
    proxy: Annotated[ProxyName, typer.Option(help="The score that ranks patterns.")] = ProxyName.psnr,
    samples: Annotated[int, typer.Option(min=1, help="Samples per pattern; classes or prompts are cycled.")] = 64,
    labels: Labels = None,
    prompts: Prompts = None,
    order: Annotated[
        int, typer.Option(min=0, help="Order of the Taylor forecast between computed steps; 0 is reuse.")
    ] = 0,
    candidates: Annotated[
        int, typer.Option(min=1, help="Most patterns to sample with; larger spaces are sampled at random.")
    ] = 100,
    sampling_seed: Annotated[int, typer.Option(min=0, help="Seed of the random patterns.")] = 0,
    sites: AskedSites,
    guidance: Guidance = None,
    seed: NoiseSeed = 1000,
    batch: Batch = 32,
    out: Annotated[Path, out_folder("Folder for plan.json, search.json and search.png.")] = Path("out/search"),
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Find which steps to compute: sample with every pattern within the constraints, and write the best as a plan.

    Ctrl-C loses one pattern at most, and the same command continues. Several GPUs share the patterns:
    `torchrun --nproc-per-node 8 -m forecache search ...`, or `accelerate launch -m forecache search ...`.

    Example: `forecache search --model digits --steps 20 --budget 7 --v-min 1 --v-max 3 --samples 64 --out out/search`

    Example: `forecache search --model facebook/DiT-XL-2-256 --steps 50 --budget 17 --order 1 --out out/dit-search`
    """
    space = Constraints(steps, budget, v_min, v_max, not any_order)
    with distributed.started() as world:
        source = open_source(model, device, dtype)
        conditions = runs.conditions(source, samples, labels, prompts)
        score = scores.by_name(proxy.value, source, conditions)
        if world.leads:
            say(_announcement(space, candidates, len(conditions)))
        with resumable(out / "search.json", leads=world.leads), progress(None, shown=world.leads) as (bar, task):
            result = fc.search(
                source,
                space,
                conditions,
                score=score,
                method=lambda base: fc.taylorseer(base, order) if order else base,
                guidance=sources.own_guidance(source) if guidance is None else guidance,
                seed=seed,
                batch=batch,
                candidates=candidates,
                sampling_seed=sampling_seed,
                **sites.options,
                path=out / "search.json",
                on_start=lambda calls: bar.update(task, description="sampling", total=calls),
                on_step=lambda _: bar.advance(task),
                on_candidate=lambda candidate: bar.update(task, description=f"{score.name} {candidate.score:#.4g}"),
            )
        if world.leads:
            result.plan.save(out / "plan.json")
            figures.draw_search(result, out / "search.png")
            if as_json:
                emit(_document(result, out))
            _say_result(result, out)


def _announcement(space: Constraints, candidates: int, samples: int) -> str:
    size = space.count()
    tried = "all are" if size <= candidates else f"{candidates} of them, drawn by stick-breaking, are"
    return f"{size:,} patterns fit the constraints: {tried} sampled with, {samples} images each."


def _document(result: fc.fit.SearchResult, out: Path) -> dict[str, Any]:
    ranked = [{"pattern": candidate.pattern, "score": candidate.score} for candidate in result.ranked]
    score = {"score": result.score.name, "better": result.score.better}
    return {"plan": str(out / "plan.json"), "search": str(out / "search.json"), **score, "ranked": ranked}


def _say_result(result: fc.fit.SearchResult, out: Path) -> None:
    print_table(_table(result))
    if (rest := len(result.ranked) - MAX_ROWS) > 0:
        say(f"and {rest} more in {out / 'search.json'}")
    origin = result.plan.provenance
    say(f"The {origin['search']}: {origin['method']}")
    say(f"Wrote {out / 'plan.json'}, {out / 'search.json'}, {out / 'search.png'}.")


def _table(result: fc.fit.SearchResult) -> Table:
    table = results_table()
    table.add_column("rank", justify="right")
    table.add_column("pattern", no_wrap=True)
    table.add_column(result.score.name, justify="right")
    table.add_column("")
    for rank, candidate in enumerate(result.ranked[:MAX_ROWS], 1):
        table.add_row(str(rank), candidate.pattern, f"{candidate.score:#.4g}", candidate.fewer_macs)
    return table
