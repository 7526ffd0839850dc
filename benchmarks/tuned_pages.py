"""Tables and pictures of the results of benchmarks/tuned.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import common

import forecache as fc
from forecache.report import figures

Row = Mapping[str, Any]
PEERS = ("cache-dit", "diffusers")


def pattern(plan: fc.Plan) -> str:
    """The pattern of a tuned plan."""
    return "".join("#" if cell.computed else "." for cell in plan.rows[0])


def forecast(plan: fc.Plan) -> str:
    """The forecast of a tuned plan, as its provenance names it."""
    return plan.provenance["method"].split(", ", 1)[1].strip("')")


def unrefined(plan: fc.Plan) -> str:
    """The forecast of a tuned plan before its weights were refined."""
    return forecast(plan).removesuffix(", refined")


def table(rows: Sequence[Row], counts: Sequence[int]) -> list[str]:
    """A line for each cache, those that compute most steps first, then by PSNR."""
    timed = any("less_time" in row for row in rows)
    heads = ["computed", "cache", "fewer MACs", *(["less time"] if timed else []), "PSNR, dB", "Fréchet", "as asked"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    ordered = [row for row in rows if row["name"] == "no cache"]
    for count in counts:
        of_count = [row for row in rows if row["computed"] == count]
        ordered += sorted(of_count, key=lambda row: -(row["psnr"] or 0))
    for row in ordered:
        near = f"{row['psnr']:.1f}" if row["psnr"] is not None else ""
        name = f"**{row['name']}**" if row["name"].startswith("tuned") else row["name"]
        macs, time = (f"{row[key]:.2f}x" if row.get(key) else "" for key in ("fewer_macs", "less_time"))
        cells = [row["computed"], name, macs, *([time] if timed else []), near]
        cells += [f"{row['frechet']:.2f}", f"{row['class_accuracy']:.1%}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def draw(measured: Sequence[Row], counts: Sequence[int], path: Path, title: str) -> None:
    """PSNR against computed steps: tuned plans as a line, the others as points."""
    plt = figures.pyplot()
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    rows = [row for row in measured if row["psnr"] is not None and row["computed"] in counts]
    kinds = {
        "tuned": ("o-", [row for row in rows if row["name"] == "tuned"]),
        "fewer steps, no cache": ("v", [row for row in rows if " steps" in row["name"] and row["name"][0].isdigit()]),
    }
    known = [row["name"] for _, some in kinds.values() for row in some]
    rest = [row for row in rows if row["name"] not in known]
    kinds["forecache's other methods"] = ("s", [row for row in rest if not row["name"].startswith(PEERS)])
    kinds["other libraries"] = ("x", [row for row in rest if row["name"].startswith(PEERS)])
    for name, (style, some) in kinds.items():
        if not some:
            continue
        ordered = sorted(some, key=lambda row: row["computed"])
        places = [row["computed"] for row in ordered]
        axes.plot(places, [row["psnr"] for row in ordered], style, label=name, alpha=0.8)
    axes.set(xlabel="computed steps", ylabel="PSNR to the samples without a cache, dB", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def summary(measured: Sequence[Row], counts: Sequence[int]) -> list[str]:
    """PSNR of the tuned plans beside the best row of every other kind."""
    lines = [
        "| computed | tuned | best untuned method | best other library | as many steps |",
        "|---|---|---|---|---|",
    ]
    for count in counts:
        of_count = [row for row in measured if row["computed"] == count and row["psnr"] is not None]
        tuned = next((row for row in of_count if row["name"] == "tuned"), None)
        if tuned is None:
            continue
        plain = [row for row in of_count if row["name"][0].isdigit()]
        theirs = [row for row in of_count if row["name"].startswith(PEERS)]
        published = [row for row in of_count if row is not tuned and row not in plain and row not in theirs]
        best = [max(rows, key=lambda row: row["psnr"], default=None) for rows in (published, theirs, plain)]
        others = [f"{row['psnr']:.1f} ({row['name'].removeprefix('ours: ')})" if row else "" for row in best]
        others[2] = others[2].split(" (")[0]
        macs = f", {tuned['fewer_macs']:.2f}x fewer MACs"
        time = f", {tuned['less_time']:.2f}x less time" if "less_time" in tuned else ""
        lines.append(f"| {count} of 20{macs}{time} | **{tuned['psnr']:.1f}** | {' | '.join(others)} |")
    return lines


SPEEDS = (10, 7, 5)
"""Computed steps of the README's three speeds."""
KINDS = {
    "tuned": "tuned plan (`forecache tune`)",
    "published": "best published method",
    "library": "best other library",
    "solver": "fewer steps of a better solver",
}


def kind(name: str) -> str | None:
    """The row of the README's table that a measured row stands in; None for one that has none."""
    if name == "tuned":
        return "tuned"
    if name.startswith(PEERS):
        return "library"
    if name[0].isdigit():
        return "solver" if "DPM" in name else None
    if name == "no cache" or (name.startswith("ours: GOC") and not name.endswith("N = 2")):
        return None  # at N > 2 the rule is ours
    return "published"


def readme(measured: Sequence[Row]) -> list[str]:
    """Four rows: PSNR, Fréchet distance and less time of the best row by PSNR of every kind, at three speeds."""
    at = {count: [row for row in measured if row["computed"] == count] for count in SPEEDS}
    macs = [next(row for row in rows if row["name"] == "tuned")["fewer_macs"] for rows in at.values()]
    lines = [
        f"| PSNR / Fréchet / less time | {' | '.join(f'{ratio:.1f}x fewer MACs' for ratio in macs)} |",
        "|---|---|---|---|",
    ]
    for group, title in KINDS.items():
        cells = []
        for rows in at.values():
            best = max((row for row in rows if kind(row["name"]) == group), key=lambda row: row["psnr"])
            near = f"{best['psnr']:.1f} dB"
            name = best["name"].removeprefix("ours: ").removesuffix(" of DPM-Solver++").split(", N")[0]
            of = "" if group == "tuned" else f" ({name})"
            bold = f"**{near}**" if group == "tuned" else near
            cells.append(f"{bold} / {best['frechet']:.1f} / {best['less_time']:.2f}x{of}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def readme_note(document: Mapping[str, Any]) -> str:
    """The note under the README's table."""
    bare = next(row for row in document["rows"] if row["name"] == "no cache")
    gocs = {row["computed"]: f"{row['psnr']:.1f}" for row in document["rows"] if row["name"].startswith("ours: GOC")}
    return (
        f"The bundled digits model, {document['samples']} samples by DDIM-20 (or DPM-Solver++); PSNR to DDIM-20 "
        f"without a cache, Fréchet distance of a classifier's features to the MNIST test set (no cache: "
        f"{bare['frechet']:.1f}), time of 8 images in turn with no cache. "
        f"GOC's rule carried on to N = 3 and 4, which is ours, has {gocs[7]} and {gocs[5]} dB. "
        f"{common.machine(document['environment'])}."
    )


def ready(plans: Iterable[tuple[str, fc.Plan]]) -> list[str]:
    """The plans that ship, with their provenance."""
    lines = ["| model | computed | schedule | found | PSNR to no cache |", "|---|---|---|---|---|"]
    for model, plan in plans:
        steps = pattern(plan)
        origin = f"{forecast(plan)}; {plan.provenance['tuned'].split(' with')[0]}"
        of = f"{steps.count('#')} of {plan.num_steps}"
        lines.append(f"| {model} | {of} | `{steps}` | {origin} | {plan.provenance['psnr']} |")
    return lines


def note(name: str, document: Mapping[str, Any]) -> str:
    """The note under the table, on how its figures were measured; name: such as digits-20."""
    model, steps = name.rsplit("-", 1)
    timed = any("less_time" in row for row in document["rows"])
    clock = "Less time: 8 images in one call, median of 3 rounds alternating with no cache, within a tenth or so. "
    return (
        f"{model}, {steps} steps, {document['samples']} samples of seed {document['seed']}; tuned on other noise. PSNR "
        "to the samples without a cache; Fréchet distance of the judge's features to the MNIST test set. "
        f"{clock * timed}{common.machine(document['environment'], 'diffusers')}."
    )
