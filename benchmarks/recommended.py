"""The recipes that `fc.enable(pipe, speedup=...)` takes, from what `benchmarks/recipes.py` measured.

    python benchmarks/recommended.py            a second: the file of the package and the table of docs/enable.md

For every speedup it takes the schedule and the forecast whose worst loss is the smallest: in every setting (a model, a
sampler, a number of steps) a loss is the PSNR of the best row there less that of this one. Measures nothing; the same
result file gives the same recipes (`tests/benchmarks/test_recommended.py`). Writes
src/forecache/methods/recommended.json, and the tables between the markers in docs/enable.md.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import common
import recipes

import forecache as fc
from forecache.io.document import Document
from forecache.methods import recommended
from forecache.plan.slots import num_slots, operations


class Candidate(NamedTuple):
    """A schedule with a forecast at a speedup, over all settings.

    base, forecast: names of the schedule and the forecast.
    losses: PSNR below the best row, in dB, by setting.
    gains: PSNR above plain reuse on even steps, in dB, by setting.
    """

    base: str
    forecast: str
    losses: Mapping[str, float]
    gains: Mapping[str, float]

    @property
    def rank(self) -> tuple[float, float]:
        """The smaller, the better: the worst loss, then the mean loss."""
        return max(self.losses.values()), statistics.fmean(self.losses.values())

    def kept(self, speedup: str) -> int:
        """The most features and sums of features that a site keeps at once, in a run of 24 steps."""
        grid = fc.Grid(24, (fc.parts.Site("blocks.0.attn", 0, "attn"),))
        plan = fc.methods.build(recipes.recipe(float(speedup), self.base, self.forecast)).plan(grid)
        return max(map(num_slots, operations(grid.sites, plan.rows)))


def candidates(settings: Mapping[str, Any], speedup: str) -> list[Candidate]:
    """Every schedule with every forecast at a speedup, the best first."""
    tables = {name: setting["rows"][speedup] for name, setting in settings.items()}
    best = {name: max(row[0] for rows in table.values() for row in rows.values()) for name, table in tables.items()}
    reuse = {name: table["even"]["reuse"][0] for name, table in tables.items()}
    one = next(iter(tables.values()))
    every = [
        Candidate(
            base,
            forecast,
            {name: best[name] - table[base][forecast][0] for name, table in tables.items()},
            {name: table[base][forecast][0] - reuse[name] for name, table in tables.items()},
        )
        for base, row in one.items()
        for forecast in row
    ]
    return sorted(every, key=lambda candidate: candidate.rank)


def derived(result: Mapping[str, Any]) -> dict[str, Any]:
    """The document of the package, from a result of `benchmarks/recipes.py`."""
    settings = result["settings"]
    levels = []
    for speedup in next(iter(settings.values()))["rows"]:
        chosen = candidates(settings, speedup)[0]
        recipe = recipes.recipe(float(speedup), chosen.base, chosen.forecast)
        levels.append(
            {
                "speedup": float(speedup),
                "recipe": without_speedup(recipe),
                "gain": round(statistics.fmean(chosen.gains.values()), 2),
                "worst_gain": round(min(chosen.gains.values()), 2),
                "worst_loss": round(max(chosen.losses.values()), 2),
            }
        )
    return {"command": "python benchmarks/recommended.py", "settings": list(settings), "levels": levels}


def without_speedup(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe whose schedule leaves the speedup open."""
    if "base" in recipe:
        return {**recipe, "base": without_speedup(recipe["base"])}
    return {name: value for name, value in recipe.items() if name != "speedup"}


def table(result: Mapping[str, Any]) -> list[str]:
    """The recipes and their figures as Markdown."""
    lines = ["| speedup | recipe | kept a site | over reuse, dB | below the best, dB | Taylor 1, even: below, dB |"]
    lines.append("|---|---|---|---|---|---|")
    for speedup in next(iter(result["settings"].values()))["rows"]:
        chosen, *rest = candidates(result["settings"], speedup)
        gains, losses = chosen.gains.values(), chosen.losses.values()
        plain = next(other for other in [chosen, *rest] if (other.base, other.forecast) == ("even", "taylor 1"))
        lines.append(
            f"| {speedup}x | {chosen.base}, {chosen.forecast} | {chosen.kept(speedup)} "
            f"| {statistics.fmean(gains):.1f}, {min(gains):.1f} "
            f"| {statistics.fmean(losses):.1f}, {max(losses):.1f} "
            f"| {statistics.fmean(plain.losses.values()):.1f}, {max(plain.losses.values()):.1f} |"
        )
    return lines


def by_setting(result: Mapping[str, Any]) -> list[str]:
    """PSNR of the recipe, of reuse, and of the best row in every setting, as Markdown."""
    settings = result["settings"]
    speedups = list(next(iter(settings.values()))["rows"])
    lines = ["| setting | " + " | ".join(f"{speedup}x" for speedup in speedups) + " |"]
    lines.append("|---" * (len(speedups) + 1) + "|")
    for name, setting in settings.items():
        cells = []
        for speedup in speedups:
            chosen, rows = candidates(settings, speedup)[0], setting["rows"][speedup]
            figure, reuse = rows[chosen.base][chosen.forecast][0], rows["even"]["reuse"][0]
            best = max(row[0] for group in rows.values() for row in group.values())
            cells.append(f"{reuse:.1f}, **{figure:.1f}**, {best:.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main(words: Sequence[str]) -> None:
    common.parser(__doc__).parse_args(words)
    result = common.load("recipes")
    document: Document = recommended.DOCUMENT
    document.write(recommended.PATH, derived(result))
    samples = next(iter(result["settings"].values()))["samples"]
    machine = common.machine(result["environment"], "diffusers")
    note = (
        f"{len(result['settings'])} settings, {samples} images a row, PSNR to the uncached images of the same noise; "
        f"of two figures in a cell, the mean over the settings and the worst of them. {machine}."
    )
    common.fill_page("table recommended", [*table(result), "", note])
    common.fill_page("table recommended by setting", [*by_setting(result), "", note])


if __name__ == "__main__":
    main(sys.argv[1:])
