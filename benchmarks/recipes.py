"""Every base with every forecast that needs no calibration, on the bundled models, samplers and numbers of steps.

    python benchmarks/recipes.py                        what is not measured yet (about an hour of one core)
    python benchmarks/recipes.py --only digits-ddim-20  one setting; several processes can share the work

Measures what `fc.enable(pipe, speedup=...)` chooses from: `benchmarks/recommended.py` reads the result. A row is a
schedule and a forecast at a speedup; its figures are PSNR in dB to the uncached images of the same noise, capped at 80:
the mean, the mean of the worst quarter, and the mean to the converged images (DPM-Solver++, 100 steps). Noise and
conditions of a setting are the same for all of its rows. Every setting is written when it is done (out/recipes/), and
not measured again. Writes benchmarks/results/recipes.json with command, hardware and versions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import common
import diffusers
import torch
from torch import Tensor

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.evaluate import psnr
from forecache.sampling import sources
from forecache.sampling.sources import Sampling, Source, in_batches

SPEEDUPS = (1.3, 2.0, 2.5, 3.0, 4.0, 5.0)
BASES: Mapping[str, Mapping[str, Any]] = {
    "even": {},
    "last": {"last": True},
    "first 2": {"first": 2},
    "denser early": {"bend": 0.4},
    "denser late": {"bend": -0.4},
}
"""The options of `spread`."""
FORECASTS: Mapping[str, Mapping[str, Any]] = {
    "reuse": {},
    "goc 0.8": {"method": "goc", "eta": 0.8},
    "taylor 1": {"method": "taylorseer", "order": 1},
    "taylor 2": {"method": "taylorseer", "order": 2},
    "feedback 1, 0.5": {"method": "feedback", "order": 1, "strength": 0.5},
    "feedback 1, 0.8": {"method": "feedback", "order": 1, "strength": 0.8},
    "feedback 2, 0.5": {"method": "feedback", "order": 2, "strength": 0.5},
}
SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "dpm": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
}


class Setting(NamedTuple):
    """What samples: a bundled model, a sampler, a number of steps."""

    model: str
    sampler: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.sampler}-{self.steps}"


SETTINGS = (
    Setting("digits", "ddim", 20),
    Setting("digits-text", "dpm", 20),
    Setting("digits", "dpm", 12),
    Setting("digits-text", "dpm", 12),
    Setting("digits", "unipc", 8),
    Setting("digits-text", "dpm", 8),
    Setting("digits-text", "unipc", 28),
)
SEED, MOST, CONVERGED = 11, 80.0, 100


def recipe(speedup: float, base: str, forecast: str) -> dict[str, Any]:
    """The recipe of a row."""
    schedule = {"method": "spread", "speedup": speedup, **BASES[base]}
    return {**FORECASTS[forecast], "base": schedule} if FORECASTS[forecast] else schedule


def source_of(setting: Setting) -> Source:
    """The model of a setting with its sampler."""
    model: Any = zoo.record(setting.model).open(torch.float32, "cpu")
    scheduler = SCHEDULERS[setting.sampler].from_config(model.scheduler.config)
    return sources.as_source(replace(model, scheduler=scheduler))


def measure(setting: Setting, samples: int) -> dict[str, Any]:
    """The rows of a setting: [speedup][base][forecast] -> (mean, worst quarter, to converged)."""
    source, guidance = source_of(setting), zoo.record(setting.model).guidance
    conditions = sources.all_conditions(source)
    asked = [conditions[7 * index % len(conditions)] for index in range(samples)]
    how = Sampling(setting.steps, guidance, SEED)
    uncached = in_batches(source, asked, how, samples)
    fine = source_of(setting._replace(sampler="dpm"))
    converged = in_batches(fine, asked, replace(how, num_steps=CONVERGED), samples)
    grid = fc.grid(source.target, setting.steps)
    rows: dict[str, Any] = {}
    for speedup in SPEEDUPS:
        rows[f"{speedup:g}"] = {base: {} for base in BASES}
        for base in BASES:
            for forecast in FORECASTS:
                plan = fc.methods.build(recipe(speedup, base, forecast)).plan(grid)
                with fc.apply(source.target, plan):
                    images = in_batches(source, asked, how, samples)
                rows[f"{speedup:g}"][base][forecast] = figures(images, uncached, converged)
        print(f"{setting.name}, {speedup:g}: {best(rows[f'{speedup:g}'])}", flush=True)
    distance = figures(uncached, converged)[0]
    return {"guidance": guidance, "samples": samples, "uncached to converged": distance, "rows": rows}


def figures(images: Tensor, *references: Tensor) -> list[float]:
    """PSNR to the first reference, mean and worst quarter, and the mean to every other one, in dB."""
    first, *others = (psnr(images, reference).clamp_max(MOST) for reference in references)
    worst = first.sort().values[: max(1, len(first) // 4)]
    return [round(value.mean().item(), 3) for value in (first, worst, *others)]


def best(rows: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The row that is closest to the uncached images, beside plain reuse on even steps."""
    (base, forecast), figure = max(
        (((base, forecast), row[0]) for base, group in rows.items() for forecast, row in group.items()),
        key=lambda pair: pair[1],
    )
    return f"{base}, {forecast} {figure:.1f} dB; even, reuse {rows['even']['reuse'][0]:.1f}"


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--samples", type=int, default=8, help="images of a row")
    parser.add_argument("--only", help="one setting, by its name")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    folder = common.WORK / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    for setting in SETTINGS:
        path = folder / f"{setting.name}-{args.samples}.json"
        if not path.exists() and args.only in (None, setting.name):
            path.write_text(json.dumps(measure(setting, args.samples) | {"environment": environment()}))
    paths = {setting: folder / f"{setting.name}-{args.samples}.json" for setting in SETTINGS}
    measured = {setting.name: json.loads(path.read_text()) for setting, path in paths.items() if path.exists()}
    about = {"command": common.command("recipes.py", words), "environment": environment(), "seed": SEED}
    common.save("recipes", about | {"bases": BASES, "forecasts": FORECASTS, "settings": measured})


if __name__ == "__main__":
    main(sys.argv[1:])
