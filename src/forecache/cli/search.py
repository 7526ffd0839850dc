"""`forecache search`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import forecache as fc
from forecache import distributed
from forecache.cli.parameters import MAX_STEPS, AsJson, out_folder
from forecache.cli.terminal import app, console, emit, progress, resumable, say
from forecache.fit.scores import Score
from forecache.parts.patterns import Constraints
from forecache.report import figures
from forecache.sampling import runs, sources
from forecache.zoo import Digits, DigitsText
from forecache.zoo.open import open_source

SHOWN = 20
"""Rows of the table; search.json has all of them."""


class ProxyName(StrEnum):
    psnr = "psnr"
    frechet = "frechet"
    clip = "clip"


@app.command("search")
def search_command(
    budget: Annotated[int, typer.Option(min=1, help="Steps that are computed.")],
    model: Annotated[str, typer.Option(help="digits, digits-text, a pipeline folder, or a hub repository.")] = "digits",
    steps: Annotated[int, typer.Option(min=1, max=MAX_STEPS, help="Sampling steps.")] = 20,
    v_min: Annotated[int, typer.Option(min=0, help="Reused steps after each computed one, at least.")] = 1,
    v_max: Annotated[int, typer.Option(min=0, help="Reused steps after each computed one, at most.")] = 3,
    any_order: Annotated[bool, typer.Option("--any-order", help="Intervals may grow towards the end.")] = False,
    proxy: Annotated[ProxyName, typer.Option(help="What ranks the patterns.")] = ProxyName.psnr,
    samples: Annotated[int, typer.Option(min=1, help="Samples a pattern, the classes or texts in turn.")] = 64,
    labels: Annotated[str | None, typer.Option(help="These classes instead, one sample each: 207,360.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of texts, one a line, for a text-to-image model.")
    ] = None,
    order: Annotated[int, typer.Option(min=0, help="Taylor forecast of this order in between; 0 is reuse.")] = 0,
    candidates: Annotated[int, typer.Option(min=1, help="Larger spaces are sampled, so many patterns.")] = 100,
    sampling_seed: Annotated[int, typer.Option(min=0, help="Which patterns of a larger space.")] = 0,
    guidance: Annotated[float | None, typer.Option(help="Its scale [1.5 for classes, else the pipeline's].")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise; use another one to measure quality.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Samples a model call.")] = 32,
    out: Annotated[Path, out_folder("Folder for plan.json, search.json and search.png.")] = Path("out/search"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Find which steps to compute: every pattern within the constraints is sampled with, and the best becomes a plan.

    Ctrl-C loses one pattern at most, and the same command continues. Several GPUs share the patterns:
    `torchrun --nproc-per-node 8 -m forecache search ...`, or `accelerate launch -m forecache search ...`.

    Example: `forecache search --model digits --steps 20 --budget 7 --v-min 1 --v-max 3 --samples 64 --out out/search`

    Example: `forecache search --model facebook/DiT-XL-2-256 --steps 50 --budget 17 --order 1 --out out/dit-search`
    """
    space = Constraints(steps, budget, v_min, v_max, not any_order)
    with distributed.started() as world:
        source = open_source(model, device, dtype)
        conditions = runs.conditions(source, samples, labels, prompts)
        score = _score(proxy, source, conditions)
        if world.leads:
            say(_what(space, candidates, len(conditions)))
        with resumable(out / "search.json", leads=world.leads), progress(None, shown=world.leads) as (bar, task):

            def show(found: fc.fit.Candidate) -> None:
                bar.update(task, description=f"{score.name} {found.score:#.4g}")

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
                path=out / "search.json",
                on_start=lambda calls: bar.update(task, description="sampling", total=calls),
                on_step=lambda _: bar.advance(task),
                on_candidate=show,
            )
        if world.leads:
            _tell(result, out)
        if world.leads and as_json:
            emit(_document(result, out))


def _what(space: Constraints, candidates: int, samples: int) -> str:
    size = space.count()
    how = "all are" if size <= candidates else f"{candidates} of them, drawn by stick-breaking, are"
    return f"{size:,} patterns fit: {how} sampled with, {samples} images each."


def _score(proxy: ProxyName, source: sources.Source, conditions: tuple[sources.Condition, ...]) -> Score:
    """The proxy by its name, with what it needs of the model."""
    if proxy is ProxyName.psnr:
        return fc.fit.scores.psnr_to_uncached()
    if proxy is ProxyName.frechet:
        judge = source
        if not isinstance(judge, Digits | DigitsText):
            raise fc.errors.InputError(
                "--proxy frechet has features and a reference for the bundled models alone: use --proxy psnr, or in "
                "Python forecache.search with scores.frechet(features, reference)."
            )
        return fc.fit.scores.frechet(judge.features, judge.reference, "Fréchet distance to MNIST test")
    if not source.classes:
        return fc.fit.scores.clip_score([str(text) for text in conditions])
    names = {label: name for name, label in getattr(getattr(source, "pipe", None), "labels", {}).items()}
    if missing := [label for label in conditions if label not in names]:
        raise fc.errors.InputError(
            f"--proxy clip needs a text for every class, and the model has no name for class {missing[0]}: use --proxy "
            "psnr, or in Python forecache.search with scores.clip_score(prompts)."
        )
    return fc.fit.scores.clip_score([f"a photo of a {names[label]}" for label in conditions])


def _tell(result: fc.fit.SearchResult, out: Path) -> None:
    """The table, the picture and the plan."""
    result.plan.save(out / "plan.json")
    figures.draw_search(result, out / "search.png")
    console.print(_table(result))
    if (rest := len(result.ranked) - SHOWN) > 0:
        say(f"and {rest} more in {out / 'search.json'}")
    made = result.plan.provenance
    say(f"The {made['search']}: {made['method']}")
    say(f"Wrote {out / 'plan.json'}, {out / 'search.json'}, {out / 'search.png'}.")


def _document(result: fc.fit.SearchResult, out: Path) -> dict[str, Any]:
    ranked = [{"pattern": each.pattern, "score": each.score} for each in result.ranked]
    score = {"score": result.score.name, "better": result.score.better}
    return {"plan": str(out / "plan.json"), "search": str(out / "search.json"), **score, "ranked": ranked}


def _table(result: fc.fit.SearchResult) -> Table:
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("rank", justify="right")
    table.add_column("pattern", no_wrap=True)
    table.add_column(result.score.name, justify="right")
    table.add_column("")
    for place, each in enumerate(result.ranked[:SHOWN], 1):
        table.add_row(str(place), each.pattern, f"{each.score:#.4g}", each.fewer_macs)
    return table
