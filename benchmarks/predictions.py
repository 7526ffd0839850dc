"""Predicted against measured PSNR of random schedules: how far gains, which are measured once, can be trusted.

    python benchmarks/predictions.py --model digits
    python benchmarks/predictions.py --show              the table and the picture again, from the records

Random schedules of 20 steps with 10, 7 and 5 of them computed, intervals of at most 6, Taylor's forecast of order 1.
Gains are measured on some samples: around a run without a cache, around the even schedule of each number of computed
steps, and, with --twice, around the schedule that their mean finds best. The PSNR, of the mean squared error, is to the
same samples without a cache; it is measured on the samples of the gains and on as many others. No time is involved, so
that it may run beside other work; interrupted, it continues. Writes benchmarks/results/predictions-MODEL.json, the
picture and the table in docs/tuning.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import common
import numpy as np
import torch

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.fit.gains import Gains, measure_gains
from forecache.fit.gains.solve import best_schedule
from forecache.parts import patterns
from forecache.parts.forecasts import Taylor
from forecache.report.figures import pyplot, save_figure
from forecache.sampling.sources import Sampling, Source, all_conditions, as_source

STEPS, LONGEST, REACH, SEED = 20, 6, 11, 0
COUNTS = (10, 7, 5)
FORECAST = Taylor(1)
WAYS = {
    "none": "no cache",
    "even": "the even schedule",
    "both": "both, averaged",
    "all": "no cache and the three even schedules, averaged",
    "best": "no cache, the even schedule and the best one so found, averaged",
}
"""What gains are measured around."""
MODELS = ("digits", "digits-text")
NAME = "predictions"


def random_schedules(count: int, number: int) -> list[str]:
    """Random schedules of ``count`` computed steps, uniform among those with intervals of at most `LONGEST`."""
    rng, found = np.random.default_rng(count), dict[str, None]()
    while len(found) < number:
        pattern = patterns.from_steps({0, *(1 + rng.permutation(STEPS - 1)[: count - 1]).tolist()}, STEPS)
        if max(map(len, pattern.split("#"))) < LONGEST:
            found[pattern] = None
    return list(found)


def even(count: int) -> str:
    """The even schedule of ``count`` computed steps."""
    return patterns.from_steps({round(step * STEPS / count - 1e-9) for step in range(count)}, STEPS)


class Study:
    """One model, its gains and what was measured so far, kept in out/predictions."""

    def __init__(self, model: str, samples: int, directions: int) -> None:
        record = zoo.record(model)
        self.source: Source = as_source(record.open(torch.float32, "cpu"))
        self.guidance, self.directions = record.guidance, directions
        every = list(all_conditions(self.source))
        self.conditions = [every[(3 * number + 1) % len(every)] for number in range(samples)]
        self.folder = common.WORK / NAME / f"{model}-{samples}-{directions}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.grid = fc.grid(self.source.target, STEPS)

    def plan(self, pattern: str) -> fc.Plan:
        """A schedule with the forecast."""
        return fc.taylorseer(fc.explicit(pattern=pattern), 1).plan(self.grid)

    def gains(self, pattern: str | None) -> Gains:
        """The gains around a schedule, or around no cache."""
        return measure_gains(
            self.source,
            self.conditions,
            num_steps=STEPS,
            guidance=self.guidance,
            seed=SEED,
            directions=self.directions,
            reach=REACH,
            batch=len(self.conditions),
            around=self.plan(pattern) if pattern else None,
            path=self.folder / f"gains-{(pattern or 'none').replace('#', 'x').replace('.', '-')}.safetensors",
        )

    def measured(self, patterns: list[str]) -> dict[str, list[float]]:
        """The mean squared error of every schedule, on the samples of the gains and on others."""
        path = self.folder / "measured.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        conditions = [*self.conditions, *self.conditions]  # others by their noise
        how = Sampling(STEPS, self.guidance, SEED)
        bare = self.source.generate(conditions, how)
        for pattern in patterns:
            if pattern not in known:
                with fc.apply(self.source.target, self.plan(pattern)):
                    images = self.source.generate(conditions, how)
                errors = (images - bare).double().square().flatten(1).mean(1)
                known[pattern] = [float(half.mean()) for half in errors.chunk(2)]
                path.write_text(json.dumps(known))
        return known


def measured(model: str, samples: int, directions: int, number: int, twice: bool) -> dict[str, Any]:
    """The predictions and the measurements of a model."""
    study = Study(model, samples, directions)
    ways: dict[int, dict[str, Gains]] = {}
    none, around = study.gains(None), {count: study.gains(even(count)) for count in COUNTS}
    best: dict[int, str] = {}
    for count in COUNTS:
        both = none.averaged(around[count])
        best[count] = best_schedule(both, count, FORECAST, longest=LONGEST)
        ways[count] = {"none": none, "even": around[count], "both": both, "all": none.averaged(*around.values())}
        if twice:
            ways[count]["best"] = none.averaged(around[count], study.gains(best[count]))
    schedules = {count: random_schedules(count, number) for count in COUNTS}
    every = [pattern for count in COUNTS for pattern in (even(count), best[count])]
    errors = study.measured([*every, *(schedules[count][place] for place in range(number) for count in COUNTS)])
    rows = {
        str(count): {
            "even": {"pattern": even(count), "measured": [_decibels(error) for error in errors[even(count)]]},
            "best": {
                "pattern": best[count],
                "predicted": _predicted(ways[count]["both"], best[count]),
                "measured": [_decibels(error) for error in errors[best[count]]],
            },
            "schedules": [
                {
                    "pattern": pattern,
                    "measured": [_decibels(error) for error in errors[pattern]],
                    **{way: _predicted(gains, pattern) for way, gains in ways[count].items()},
                }
                for pattern in schedules[count]
            ],
        }
        for count in COUNTS
    }
    return {
        "samples": samples,
        "directions": directions,
        "rows": rows,
        "command": common.command("predictions.py", sys.argv[1:]),
        "environment": environment(),
    }


def _predicted(gains: Gains, pattern: str) -> float:
    return round(gains.decibels(gains.projections_of(pattern, FORECAST)), 3)


def _decibels(error: float) -> float:
    return round(float(-10 * np.log10(max(error, 1e-10))), 3)


def _measured(row: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Of every random schedule, the PSNR on the samples of the gains and on the others."""
    return [tuple(one["measured"]) for one in row["schedules"]]


def _ways(row: Mapping[str, Any]) -> list[str]:
    return [way for way in WAYS if way in row["schedules"][0]]


def statistics(row: Mapping[str, Any], way: str) -> dict[str, float]:
    """Spearman's correlation and the median error in dB, on the samples of the gains and on the others."""
    predicted = np.array([one[way] for one in row["schedules"]])
    found = {}
    for name, place in (("same", 0), ("others", 1)):
        told = np.array([one["measured"][place] for one in row["schedules"]])
        found[name] = round(_rank_correlation(predicted, told), 3)
        found[f"{name} dB"] = round(float(np.median(np.abs(predicted - told))), 2)
    return found


def _rank_correlation(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> float:
    """Spearman's correlation."""
    ranks = np.stack([np.argsort(np.argsort(values)) for values in (one, other)])
    return float(np.asarray(np.corrcoef(ranks)).reshape(2, 2)[0, 1])


def table(records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The lines of the page."""
    yield "| | computed | gains around | Spearman, median error: same samples | other samples |"
    yield "|---|---|---|---|---|"
    for model, record in records.items():
        for count, row in record["rows"].items():
            for way in _ways(row):
                told, name = statistics(row, way), WAYS[way]
                yield (
                    f"| {model} | {count} | {name} | {told['same']:.2f}, {told['same dB']:.1f} dB | "
                    f"{told['others']:.2f}, {told['others dB']:.1f} dB |"
                )
    yield ""
    for model, record in records.items():
        halves = [f"{_rank_correlation(*zip(*_measured(row), strict=True)):.2f}" for row in record["rows"].values()]
        best = [
            f"{count} computed: {row['best']['predicted']:.1f} predicted, {row['best']['measured'][1]:.1f} measured, "
            f"even {row['even']['measured'][1]:.1f}"
            for count, row in record["rows"].items()
        ]
        schedules = len(next(iter(record["rows"].values()))["schedules"])
        yield (
            f"{model}: {schedules} random schedules each; gains of {record['samples']} samples with "
            f"{record['directions']} directions. The schedule that is best under the averaged gains, in dB "
            f"on the other samples: {'; '.join(best)}. What was measured on the other samples has rank correlations of "
            f"{', '.join(halves)} with what was measured on the same ones, which is as far as a prediction from so few "
            f"samples can go. `{record['command']}`; {common.machine(record['environment'])}."
        )
        yield ""
    yield common.picture(NAME, f"{NAME}.png", "Predicted against measured PSNR of random schedules.")


def draw(records: Mapping[str, Mapping[str, Any]]) -> None:
    """The picture: a panel a model, measured over predicted, all gains averaged."""
    size = (5.2 * len(records), 4.6)
    canvas, panels = pyplot().subplots(1, len(records), figsize=size, squeeze=False, layout="constrained")
    for panel, (model, record) in zip(panels[0], records.items(), strict=True):
        ends = []
        for count, row in record["rows"].items():
            x, y = ([one[way] for one in row["schedules"]] for way in (_ways(row)[-1], "measured"))
            panel.plot(x, [told[0] for told in y], ".", markersize=4, label=f"{count} computed")
            ends += [*x, *(told[0] for told in y)]
        panel.plot([min(ends), max(ends)], [min(ends), max(ends)], color="grey", linewidth=0.8)
        panel.set(title=model, xlabel="predicted, dB", ylabel="measured on the same samples, dB")
        panel.legend()
    save_figure(canvas, common.IMAGES / f"{NAME}.png", 110)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default="digits")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--directions", type=int, default=4)
    parser.add_argument("--schedules", type=int, default=67, help="of each number of computed steps")
    parser.add_argument("--twice", action="store_true", help="also around the best schedule that was so found")
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.show:
        record = measured(args.model, args.samples, args.directions, args.schedules, args.twice)
        common.save(f"{NAME}-{args.model}", record)
    records = {model: record for model in MODELS if (record := common.load(f"{NAME}-{model}"))}
    draw(records)
    common.fill_page(NAME, list(table(records)))


if __name__ == "__main__":
    main()
