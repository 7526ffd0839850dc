"""The recipes that `fc.enable(pipe, speedup=...)` takes, from what `benchmarks/recipes.py` measured.

    python benchmarks/recommended.py            a second: the file of the package and the table of docs/enable.md

For every length class of runs (`CLASSES`) and every speedup it takes the schedule and the forecast whose worst loss is
the smallest, of those that are in no setting of the class below plain reuse on even steps: in every setting (a model, a
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

CLASSES = ((8,), (12,), (20, 28))
"""Numbers of steps of the settings of each length class."""


def settings_of(result: Mapping[str, Any], steps: Sequence[int]) -> dict[str, Any]:
    """The settings of a length class, by name."""
    return {name: setting for name, setting in result["settings"].items() if int(name.rpartition("-")[2]) in steps}


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
    def rank(self) -> tuple[bool, float, float]:
        """The smaller, the better: not below plain reuse anywhere, then the worst loss, then the mean loss."""
        losses = self.losses.values()
        return min(self.gains.values()) < 0, max(losses), statistics.fmean(losses)

    def kept(self, speedup: str) -> int:
        """The most features and sums of features that a site keeps at once, in a run of 24 steps."""
        grid = fc.Grid(24, (fc.parts.Site("blocks.0.attn", 0, "attn"),))
        plan = fc.methods.build(recipes.recipe(float(speedup), self.base, self.forecast)).plan(grid)
        return max(map(num_slots, operations(grid.sites, plan.rows)))


def candidates(settings: Mapping[str, Any], speedup: str) -> list[Candidate]:
    """Every schedule with every forecast at a speedup, the best first, and those below plain reuse at the end."""
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
    classes = []
    for steps in CLASSES:
        settings = settings_of(result, steps)
        levels = [_level(settings, speedup) for speedup in next(iter(settings.values()))["rows"]]
        classes.append({"steps": list(steps), "settings": list(settings), "levels": levels})
    return {"command": "python benchmarks/recommended.py", "classes": classes}


def _level(settings: Mapping[str, Any], speedup: str) -> dict[str, Any]:
    chosen = candidates(settings, speedup)[0]
    return {
        "speedup": float(speedup),
        "recipe": without_speedup(recipes.recipe(float(speedup), chosen.base, chosen.forecast)),
        "gain": round(statistics.fmean(chosen.gains.values()), 2),
        "worst_gain": round(min(chosen.gains.values()), 2),
        "worst_loss": round(max(chosen.losses.values()), 2),
    }


def without_speedup(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe whose schedule leaves the speedup open."""
    if "base" in recipe:
        return {**recipe, "base": without_speedup(recipe["base"])}
    return {name: value for name, value in recipe.items() if name != "speedup"}


def table(result: Mapping[str, Any]) -> list[str]:
    """The recipes and their figures as Markdown."""
    lines = [
        "| calls | speedup | recipe | kept a site | over reuse, dB | below the best, dB | Taylor 1, even: below, dB |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for steps in CLASSES:
        settings = settings_of(result, steps)
        for speedup in next(iter(settings.values()))["rows"]:
            chosen, *rest = candidates(settings, speedup)
            gains, losses = chosen.gains.values(), chosen.losses.values()
            plain = next(other for other in [chosen, *rest] if (other.base, other.forecast) == ("even", "taylor 1"))
            lines.append(
                f"| {', '.join(map(str, steps))} | {speedup}x | {chosen.base}, {chosen.forecast} "
                f"| {chosen.kept(speedup)} | {statistics.fmean(gains):.1f}, {min(gains):.1f} "
                f"| {statistics.fmean(losses):.1f}, {max(losses):.1f} "
                f"| {statistics.fmean(plain.losses.values()):.1f}, {max(plain.losses.values()):.1f} |"
            )
    return lines


def by_setting(result: Mapping[str, Any]) -> list[str]:
    """PSNR of the recipe, of reuse, and of the best row in every setting, as Markdown."""
    speedups = list(next(iter(result["settings"].values()))["rows"])
    lines = ["| setting | " + " | ".join(f"{speedup}x" for speedup in speedups) + " |"]
    lines.append("|---" * (len(speedups) + 1) + "|")
    for steps in CLASSES:
        settings = settings_of(result, steps)
        chosen = {speedup: candidates(settings, speedup)[0] for speedup in speedups}
        lines += [f"| {name} | {' | '.join(_cells(setting, chosen))} |" for name, setting in settings.items()]
    return lines


def _cells(setting: Mapping[str, Any], chosen: Mapping[str, Candidate]) -> list[str]:
    cells = []
    for speedup, candidate in chosen.items():
        rows = setting["rows"][speedup]
        figure, reuse = rows[candidate.base][candidate.forecast][0], rows["even"]["reuse"][0]
        best = max(row[0] for group in rows.values() for row in group.values())
        cells.append(f"{reuse:.1f}, **{figure:.1f}**, {best:.1f}")
    return cells


def main(words: Sequence[str]) -> None:
    common.parser(__doc__).parse_args(words)
    result = common.load("recipes")
    document: Document = recommended.DOCUMENT
    document.write(recommended.PATH, derived(result))
    samples = next(iter(result["settings"].values()))["samples"]
    machine = common.machine(result["environment"], "diffusers")
    note = (
        f"{len(result['settings'])} settings, {samples} images a row, PSNR to the uncached images of the same noise; "
        f"of two figures in a cell, the mean over the settings of a length and the worst of them. {machine}."
    )
    common.fill_page("table recommended", [*table(result), "", note])
    common.fill_page("table recommended by setting", [*by_setting(result), "", note])


if __name__ == "__main__":
    main(sys.argv[1:])
