"""`forecache calibrate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import forecache as fc
from forecache import distributed
from forecache.cli.levels import takes_level_options
from forecache.cli.parameters import (
    DEFAULT_MODEL,
    AsJson,
    Batch,
    Guidance,
    Labels,
    Model,
    NoiseSeed,
    Prompts,
    Steps,
    out_file,
)
from forecache.cli.pipelines import PipelineOptions, guidance_of, takes_pipeline_options
from forecache.cli.terminal import app, emit, interruptible, progress, say
from forecache.fit.calibrate import SIGNALS, with_resolution
from forecache.io.text import mib
from forecache.models.levels import AskedSites
from forecache.parts.gates import proposed
from forecache.sampling import runs
from forecache.sampling.sources import Source


class KeepName(StrEnum):
    full = "full"
    half = "half"
    channel = "channel"


class RowsName(StrEnum):
    first = "first"
    second = "second"
    all = "all"


@app.command("calibrate")
@takes_level_options
@takes_pipeline_options
def calibrate_command(
    *,
    model: Model = DEFAULT_MODEL,
    steps: Steps = 20,
    samples: Annotated[int, typer.Option(min=1, help="Number of samples; classes or prompts are cycled.")] = 256,
    labels: Labels = None,
    prompts: Prompts = None,
    guidance: Guidance = None,
    seed: NoiseSeed = 1000,
    shared_noise: Annotated[
        bool, typer.Option("--shared-noise", help="Start all samples from the same noise, as the EOC paper does.")
    ] = False,
    batch: Batch = 32,
    gaps: Annotated[int, typer.Option(min=1, help="Measure changes over 1 to this many steps.")] = 3,
    signals: Annotated[
        int, typer.Option(min=0, help="Samples whose signals are kept, for rules that decide while a plan runs.")
    ] = SIGNALS,
    rows: Annotated[RowsName | None, typer.Option(help="Half of a guidance pair [the conditional one].")] = None,
    keep: Annotated[
        KeepName, typer.Option(help="Means per token in float32 or float16, or per channel.")
    ] = KeepName.full,
    sites: AskedSites,
    keep_on: Annotated[str | None, typer.Option(help="Device of the means; cpu saves GPU memory.")] = None,
    out: Annotated[Path, out_file("The statistics file; a partial one is continued.")] = Path("statistics.safetensors"),
    pipeline: PipelineOptions,
    as_json: AsJson = False,
) -> None:
    """Measure a model's mean features and changes without a cache, and what rules need that decide while they run.

    GOC's gate, EOC, SmoothCache, TeaCache, MagCache, adaptive and the thresholds of rules take them.

    Ctrl-C keeps what was measured, and the same command continues. Several GPUs share the work:
    `torchrun --nproc-per-node 8 -m forecache calibrate ...`, or `accelerate launch -m forecache calibrate ...`.

    Example: `forecache calibrate --model digits --steps 20 --samples 256 --out statistics.safetensors`

    Example: `forecache calibrate --model facebook/DiT-XL-2-256 --steps 20 --samples 1000 --keep-on cpu --out
    dit.safetensors`
    """
    with distributed.started() as world:
        source = pipeline.open(model)
        conditions = runs.conditions(source, samples, labels, prompts)
        if world.leads:
            grid = fc.grid(source.target, steps, **sites.options)
            size = f"{grid.size}, {len(conditions)} samples"
            say(f"{grid.model}: {size}. {_memory(source, steps, min(batch, len(conditions)), gaps, sites)}")
        with (
            interruptible(lambda: _kept_samples(out), leads=world.leads),
            progress(None, shown=world.leads) as (bar, task),
        ):
            stats = fc.calibrate(
                source,
                conditions,
                num_steps=steps,
                guidance=guidance_of(source, guidance),
                seed=seed,
                batch=batch,
                gaps=gaps,
                signals=signals,
                rows=rows.value if rows is not None else None,
                shared_noise=shared_noise,
                keep_on=keep_on,
                **sites.options,
                path=out,
                on_start=lambda calls: bar.update(task, description="calibrating", total=calls),
                on_step=lambda _: bar.advance(task),
            )
        if world.leads:
            stats = with_resolution(stats, keep.value, out)
            if as_json:
                emit({"statistics": str(out), **summary(stats)})
            say(
                f"{stats.count} samples, one mean per {stats.resolution}. N: share of sites with an inverse gradient.\n"
                f"{proposed(stats).show(fc.Grid(stats.num_steps, stats.sites))}\n{_rules(stats)}"
                f"Wrote {out} ({mib(out.stat().st_size)}). See it: forecache show {out}"
            )


def _memory(source: Source, steps: int, batch: int, gaps: int, sites: AskedSites) -> str:
    """The memory that a calibration takes, as a sentence."""
    try:
        memory = fc.fit.calibration_bytes(source, steps, batch=batch, gaps=gaps, **sites.options)
    except fc.errors.InputError:  # its arguments are known to its pipeline alone
        return "How much memory the means take is not known from shapes alone; --keep-on cpu keeps them off the GPU."
    return f"Memory: {mib(memory.means)} of means and {mib(memory.recent)} of features, for any number of samples."


def _rules(stats: fc.Statistics) -> str:
    """What the statistics fit for rules that decide while a plan runs, as a sentence."""
    r2 = _r2(stats)
    fit = "" if r2 is None else f" TeaCache's polynomial explains {r2:.0%} of the changes of the output."
    return "" if stats.signals is None else f"Signals of {len(stats.signals.samples)} samples for rules.{fit}\n"


def _r2(stats: fc.Statistics) -> float | None:
    """R2 of TeaCache's polynomial; None where the model does not show its modulated input."""
    try:
        return stats.known_signals().polynomial()[1]
    except fc.errors.StatisticsError:
        return None


def _kept_samples(out: Path) -> str:
    if not out.exists():
        return ""
    return f"{fc.Statistics.load(out).count} samples are kept in {out}: the same command continues."


def summary(stats: fc.Statistics) -> dict[str, Any]:
    """What the statistics were measured on, for JSON."""
    return {
        "model": stats.origin.model,
        "guidance": stats.origin.guidance,
        "steps": stats.num_steps,
        "sites": [site.name for site in stats.sites],
        "samples": stats.count,
        "of": len(stats.origin.conditions),
        "resolution": stats.resolution,
        "signals": len(stats.signals.samples) if stats.signals is not None else 0,
        "teacache_r2": _r2(stats),
    }
