"""The kinds of result files: how each is recognised, and how it is read into `ReportData`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forecache.errors import InputError
from forecache.evaluate.metrics import METRICS
from forecache.fit import search_file
from forecache.fit.tuning import trials as tuning_file
from forecache.io import files
from forecache.parts.statistics import Statistics
from forecache.plan.plan import Plan
from forecache.report.html import comparison
from forecache.report.html.data import ErrorTable, ReportData, Row, listed, mapping, number, text, texts
from forecache.report.html.pictures import images_of_run, images_of_samples

MAX_BYTES = 16 * 2**20
MAX_ROWS = 200
FILES = ("run.json", "bench.json", "demo.json", "search.json", "tune.json", "result.json", "comparison.json")
"""The results that a folder is searched for, in this order."""
BETTER = {"PSNR, dB": "higher", "Fréchet distance": "lower", "class accuracy": "higher"}
"""The better direction of the metrics of comparisons, by their title in a report."""
QUALITY = {"psnr": "PSNR, dB", "frechet": "Fréchet distance", "class_accuracy": "class accuracy"}
"""Title in a report of each metric, by its name in the rows of comparisons."""


SPOKEN = {
    "algorithm_type": "{}",
    "solver_order": "of order {}",
    "prediction_type": "prediction of {}",
    "beta_schedule": "{} betas",
    "timestep_spacing": "{} timesteps",
    "shift": "shift {}",
    "num_train_timesteps": "{} training steps",
}
"""Words for the settings of a scheduler that its sentence has, in their order."""


@dataclass(frozen=True)
class Kind:
    """A kind of result file.

    what: its description in errors.
    recognises: whether a JSON document is of this kind.
    read: the data of a report, from a file's path and its document.
    """

    what: str
    recognises: Callable[[dict[str, Any]], bool]
    read: Callable[[Path, dict[str, Any]], ReportData]


def read(path: Path, statistics: Path | None = None) -> ReportData:
    """The data of a file's report, or of the result in a folder.

    statistics: a file of statistics to draw beside the result.

    Raises InputError, which lists the kinds, for a file of no known kind.
    """
    if path.is_dir():
        result = next((path / name for name in FILES if (path / name).is_file()), None)
        if result is None:
            raise InputError(f"There is no {', '.join(FILES)} in {path}: name the file. {_kinds()}")
        path = result
    data = _statistics(path) if path.suffix == ".safetensors" else _document(path)
    if statistics is None:
        return data
    stats = Statistics.load(statistics)
    if data.plan is not None:
        stats.check(data.plan.grid)
    return replace(data, statistics=stats)


def _document(path: Path) -> ReportData:
    try:
        document = files.document(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {str(error)[:300]}. {_kinds()}") from error
    if isinstance(document, dict):
        for name, kind in KINDS.items():
            if kind.recognises(document):
                return replace(kind.read(path, document), kind=name)
    raise InputError(f"{path} is not a result that a report can be made of. {_kinds()}")


def _kinds() -> str:
    kinds = "; ".join(f"{name}: {kind.what}" for name, kind in KINDS.items())
    return f"A report is made of statistics (.safetensors), or of {kinds}."


def _has(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda document: all(name in document for name in names)


def _is(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda document: document.get("format") == name


def _run(path: Path, record: dict[str, Any]) -> ReportData:
    plan = Plan.load(path.with_name("plan.json")) if record["plan"] == "plan.json" else None
    images, left_out = images_of_run(path.parent, record)
    cost = mapping(record.get("cost_per_batch"))
    costs = {
        "MACs of a batch": _macs(cost.get("macs")),
        "without a cache": _macs(cost.get("macs_uncached")),
        "fewer MACs": _times(cost.get("macs_ratio")),
        **_timing(record),
        "cache of a batch": _mib(cost.get("cache_bytes")),
    }
    model = text(record.get("model"))
    return ReportData(
        "run",
        f"{model}: {text(mapping(record.get('provenance')).get('method')) or 'no cache'}",
        plan,
        images=images,
        left_out=left_out,
        errors=_errors(record),
        costs={name: value for name, value in costs.items() if value},
        facts={
            "Run": {"model": model, **texts(record["settings"])},
            "Pipeline": texts(record.get("pipeline")),
            "Plan": texts(record.get("provenance")),
            "Model": _grid(plan),
            "Scheduler": _scheduler(plan),
            "Counts of the session": texts(record.get("stats")),
            "Hardware and versions": texts(record.get("environment")),
        },
        command=text(record.get("command")),
    )


def _timing(record: dict[str, Any]) -> dict[str, str]:
    """Times that were measured in turn; else the duration of the run, which is no speed."""
    timing = mapping(record.get("timing"))
    if not timing:
        return {"duration of the run, first calls and all": _seconds(record.get("seconds"))}
    seconds, ratio = mapping(timing.get("seconds")), mapping(record.get("time_ratio"))
    rounds = f"median of {text(ratio.get('count'))} rounds in turn"
    return {
        f"time, {rounds}": _seconds(seconds.get("with the plan")),
        "time without a cache": _seconds(seconds.get("no cache")),
        "less time": _times(ratio),
        "quartiles of less time": f"{_times(ratio.get('low'))} to {_times(ratio.get('high'))}",
    }


def _errors(record: dict[str, Any]) -> dict[str, ErrorTable]:
    """The errors of a plan's estimates, if they were measured."""
    table = mapping(record.get("errors"))
    return {"the plan": comparison.error_table(table)} if table else {}


def _per_image(cost: dict[str, Any]) -> dict[str, str]:
    costs = {
        "MACs of an image": _macs(cost.get("macs")),
        "without a cache": _macs(cost.get("macs_uncached")),
        "fewer MACs": _times(cost.get("macs_ratio")),
        "cache of a call": _mib(cost.get("cache_bytes")),
    }
    return {name: value for name, value in costs.items() if value}


def _samples(path: Path, record: dict[str, Any]) -> ReportData:
    plan = Plan.load(path.with_name("plan.json")) if path.with_name("plan.json").is_file() else None
    settings = texts({name: value for name, value in record["settings"].items() if name not in ("plan", "weights")})
    scheduler = settings.pop("scheduler", "")
    weights = {
        part: text(value).partition(":")[0] for part, value in mapping(record["settings"].get("weights")).items()
    }
    images, left_out = images_of_samples(path.with_name("samples.npz"))
    method = plan.provenance.get("method", "a plan") if plan else "no cache"
    return ReportData(
        "samples",
        f"{settings.get('model', 'samples')}: {method}",
        plan,
        images=images,
        left_out=left_out,
        costs=_per_image(mapping(record.get("cost_per_image")))
        | {"duration of all shards": _seconds(record.get("seconds"))},
        facts={
            "Run": settings | {"SHA-256 of samples.npz": text(record["sha256"])},
            "Fingerprints of the weights": {part: text(value).partition(":")[0] for part, value in weights.items()},
            "Model": _grid(plan),
            "Scheduler": _settings_of(scheduler),
            "Plan": texts(dict(plan.provenance)) if plan else {},
            "Hardware and versions": texts(record.get("made_on")) | {"forecache": text(record.get("forecache"))},
        },
    )


def _comparison(path: Path, document: dict[str, Any]) -> ReportData:
    entries = [mapping(entry) for entry in listed(document["rows"])]
    rows = tuple(_row(entry) for entry in entries[:MAX_ROWS])
    better = BETTER | {metric.title: metric.better for metric in METRICS.values()}
    settings = texts(document.get("settings")) | texts(document.get("protocol"))
    model = texts(document.get("model")) | texts(document.get("table"))
    command = settings.pop("command", "") or text(document.get("command"))
    if measured_on := text(document.get("on")):  # of `forecache reproduce`: the table names the paper's model
        model = {"measured on": measured_on} | {f"table: {key}": value for key, value in model.items()}
    name = measured_on or model.get("name") or settings.get("model") or path.stem
    return ReportData(
        "comparison",
        f"{name}: {len(rows)} plans side by side",
        rows=rows,
        better={title: better[title] for title in better if any(title in row.quality for row in rows)},
        left_out=max(0, len(entries) - MAX_ROWS),
        facts={
            "Settings": settings | texts(document.get("sampler")) | texts(document.get("timing")),
            "Model": model,
            "Left out": texts(document.get("left_out")),
            "Hardware and versions": texts(document.get("environment")),
        },
        command=command,
    )


def _row(entry: dict[str, Any]) -> Row:
    quality = {QUALITY[key]: value for key in QUALITY if (value := number(entry.get(key))) is not None}
    for name, figure in mapping(entry.get("figures")).items():  # of `forecache reproduce`
        if name in METRICS and (value := number(mapping(figure).get("value"))) is not None:
            quality[METRICS[name].title] = value
    return Row(
        text(entry.get("name")),
        text(entry.get("method")),
        text(entry.get("picture")).split("\n")[0],
        number(entry.get("macs_ratio")),
        number(entry.get("time_ratio")),
        quality,
        number(entry.get("cache_bytes")),
        number(entry.get("macs_per_image", entry.get("macs"))),
        {**_published(entry), **_realised(entry)},
    )


def _published(entry: dict[str, Any]) -> dict[str, str]:
    """The figures that a paper has in the row, of `forecache reproduce`."""
    figures = texts(entry.get("published"))
    names = {name: METRICS[name].title if name in METRICS else name for name in figures}
    return {f"{names[name]}, published": value for name, value in figures.items()}


def _realised(entry: dict[str, Any]) -> dict[str, str]:
    """The quartiles of the ratio of times, and its share of the MACs' ratio, of `forecache bench`."""
    ratio = mapping(entry.get("time_ratio"))
    low, high = number(ratio.get("low")), number(ratio.get("high"))
    share = number(entry.get("realised"))
    cells = {}
    if low is not None and high is not None:
        cells["quartiles of less time"] = f"{low:.2f} to {high:.2f}x"
    if share is not None:
        cells["realised"] = f"{share:.0%}"
    return cells


def _search(path: Path, _: dict[str, Any]) -> ReportData:
    settings, candidates = search_file.read(path)
    sign = -1 if settings.better == "higher" else 1
    ranked = sorted(candidates, key=lambda candidate: sign * candidate.score)
    rows = [
        Row(
            f"{rank}",
            settings.method,
            candidate.pattern,
            candidate.macs_ratio,
            quality={settings.score: candidate.score},
        )
        for rank, candidate in enumerate(ranked[:MAX_ROWS], 1)
    ]
    return ReportData(
        "search",
        f"{settings.model}: {len(ranked)} patterns by {settings.score}",
        rows=tuple(rows),
        better={settings.score: settings.better},
        left_out=max(0, len(ranked) - MAX_ROWS),
        facts={
            "Search": _origin(vars(settings)) | {"conditions": f"{len(settings.conditions)} samples"},
            "Scheduler": _settings_of(settings.scheduler),
        },
    )


def _tuning(path: Path, _: dict[str, Any]) -> ReportData:
    settings, trials = tuning_file.read(path)
    searched = [trial for trial in trials.values() if trial.noise == 0]
    ranked = sorted(searched, key=lambda trial: (trial.computed, -trial.psnr))
    title = QUALITY["psnr"]
    to = "PSNR to converged, dB" if settings.get("reference") == "converged" else title
    return ReportData(
        "tuning",
        f"{text(settings.get('model'))}: {len(ranked)} schedules tried",
        rows=tuple(
            Row(
                f"{trial.computed} steps, {trial.forecast}",
                picture=trial.pattern,
                quality={to: trial.psnr} | {title: trial.own},
            )
            for trial in ranked[:MAX_ROWS]
        ),
        better=dict.fromkeys((to, title), BETTER[title]),
        left_out=max(0, len(ranked) - MAX_ROWS),
        facts={
            "Tuning": _origin(settings) | {"conditions": f"{len(listed(settings.get('conditions')))} samples"},
            "Scheduler": _settings_of(text(settings.get("scheduler"))),
        },
    )


def _evaluation(path: Path, document: dict[str, Any]) -> ReportData:
    figures = []
    for name, entry in mapping(document["figures"]).items():
        figure, metric = mapping(entry), METRICS.get(name)
        ends = [number(end) for end in listed(figure.get("interval"))]
        interval = f"{ends[0]:.6g} to {ends[1]:.6g}" if len(ends) == 2 and None not in ends else ""
        title = f"{metric.title}, {metric.better} is better" if metric else text(name)
        counts = text(figure.get("count")), text(figure.get("resamples"))
        figures.append((title, text(figure.get("value")), interval, *counts))
    names = "samples", "count", "extractor", "reference", "sampling_seeds"
    facts = {name: text(document.get(name)) for name in names}
    return ReportData(
        "evaluation",
        f"Quality of {text(document['samples'])}",
        figures=tuple(figures),
        facts={
            "Evaluation": {name: value for name, value in facts.items() if value},
            "Hardware and versions": texts(document.get("environment")),
        },
        notes=tuple(text(note) for note in listed(document.get("notes"))[:20]),
        command=text(document.get("command")),
    )


def _plan(path: Path, _: dict[str, Any]) -> ReportData:
    plan = Plan.load(path)
    facts = {"Plan": texts(dict(plan.provenance)), "Model": _grid(plan), "Scheduler": _scheduler(plan)}
    return ReportData("plan", plan.provenance.get("method", path.stem), plan, facts=facts)


def _statistics(path: Path) -> ReportData:
    stats = Statistics.load(path)
    samples = f"{stats.count} of {len(stats.origin.conditions)}"
    return ReportData(
        "statistics",
        f"{stats.origin.model}: how its features change in {stats.num_steps} steps",
        statistics=stats,
        facts={
            "Calibration": _origin(vars(stats.origin)) | {"samples": samples, "means": f"one per {stats.resolution}"},
            "Scheduler": _settings_of(stats.origin.scheduler),
        },
    )


def _origin(settings: dict[str, Any]) -> dict[str, str]:
    """Settings as text, without conditions and scheduler; the fingerprint without its details."""
    facts = {name: text(value) for name, value in settings.items() if name not in ("conditions", "scheduler")}
    return facts | {"fingerprint": facts.get("fingerprint", "").partition(":")[0]}


def _grid(plan: Plan | None) -> dict[str, str]:
    if plan is None:
        return {}
    grid = plan.grid
    size = f"{grid.size}, {plan.computed_share:.1%} computed"
    facts = {"class": grid.model, "grid": size, "fingerprint": grid.fingerprint.partition(":")[0]}
    return {name: text(value) for name, value in facts.items() if value}


def _scheduler(plan: Plan | None) -> dict[str, str]:
    return _settings_of(plan.grid.scheduler) if plan is not None else {}


def _settings_of(scheduler: str) -> dict[str, str]:
    """A scheduler in a sentence, and its settings; the whole description if it is not JSON."""
    try:
        settings = json.loads(scheduler, parse_constant=str)  # diffusers' infinities are no strict JSON
    except ValueError:
        return texts({"described as": scheduler})
    if not isinstance(settings, dict):
        return texts({"described as": scheduler})
    kind = text(settings.pop("class", "")) or "a scheduler"
    words = [words.format(text(settings[name])) for name, words in SPOKEN.items() if settings.get(name)]
    return {"in short": ", ".join([kind, *words])} | texts(settings) if settings else {"in short": kind}


def _formatted(form: str, unit: float = 1.0) -> Callable[[Any], str]:
    """Formats a number of a file in a unit; anything else becomes an empty text."""

    def formatted(value: Any) -> str:
        amount = number(value)
        return form.format(amount / unit) if amount is not None else ""

    return formatted


_macs, _times = _formatted("{:.4g} G", 1e9), _formatted("{:.2f}x")
_seconds, _mib = _formatted("{:.2f} s"), _formatted("{:.2f} MiB", 2**20)


KINDS: dict[str, Kind] = {
    "plan": Kind("a plan file", _is("forecache-plan"), _plan),
    "methods": Kind("comparison.json of `forecache compare-methods`", _is("forecache-comparison"), comparison.read),
    "search": Kind("search.json of `forecache search`", _is("forecache-search"), _search),
    "tuning": Kind("tune.json of `forecache tune`", _is("forecache-tuning"), _tuning),
    "run": Kind("run.json of `forecache sample`", _has("images", "settings", "plan"), _run),
    "samples": Kind("run.json of `forecache sample --num-samples`", _has("run", "sha256", "settings"), _samples),
    "evaluation": Kind("a result of `forecache evaluate --out`", _has("figures", "samples"), _evaluation),
    "comparison": Kind(
        "bench.json, demo.json, peers-*.json, or result.json of `forecache reproduce`",
        _has("rows", "environment"),
        _comparison,
    ),
}
"""By name, in the order in which they are tried. A new kind of result is a new entry."""
