"""Which file is which: a kind is a name, how its document is recognised, and how it is read into `ReportData`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forecache.errors import InputError
from forecache.evaluate.metrics import METRICS
from forecache.fit import search_file
from forecache.io import files
from forecache.parts.statistics import Statistics
from forecache.plan.plan import Plan
from forecache.report.html.data import ReportData, Row, listed, mapping, number, text, texts
from forecache.report.html.pictures import images_of_run, images_of_samples

MAX_BYTES = 16 * 2**20
MAX_ROWS = 200
FILES = ("run.json", "bench.json", "demo.json")
"""What is looked for in a folder, in this order."""
BETTER = {"PSNR, dB": "higher", "Fréchet distance": "lower", "class accuracy": "higher"}
QUALITY = {"psnr_db": "PSNR, dB", "frechet": "Fréchet distance", "class_accuracy": "class accuracy"}
"""What rows of a comparison call their quality, and what the report calls it."""


@dataclass(frozen=True)
class Kind:
    """what: for people. recognises: whether a document (None for tensors) is of this kind."""

    what: str
    recognises: Callable[[dict[str, Any]], bool]
    read: Callable[[Path, dict[str, Any]], ReportData]


def read(path: Path, statistics: Path | None = None) -> ReportData:
    """What a report of this file shows; InputError, with the kinds that there are, if it is of none."""
    if path.is_dir():
        found = next((path / name for name in FILES if (path / name).is_file()), None)
        if found is None:
            raise InputError(f"There is no {', '.join(FILES)} in {path}: name the file. {_kinds()}")
        path = found
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
    raise InputError(f"{path} is no result that a report can be made of. {_kinds()}")


def _kinds() -> str:
    listed = "; ".join(f"{name}: {kind.what}" for name, kind in KINDS.items())
    return f"A report is made of statistics (.safetensors), or of {listed}."


def _has(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda document: all(name in document for name in names)


def _is(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda document: document.get("format") == name


def _run(path: Path, found: dict[str, Any]) -> ReportData:
    beside = mapping(found["plan"]).get("file")
    plan = Plan.load(path.with_name("plan.json")) if beside == "plan.json" else None
    settings, made = texts(found["settings"]), texts(found["plan"])
    made.pop("picture", None)
    images, left_out = images_of_run(path.parent, found)
    cost = mapping(found.get("cost_per_batch"))
    costs = {
        "MACs of a batch": _macs(cost.get("macs")),
        "without a cache": _macs(cost.get("macs_uncached")),
        "fewer MACs": _times(cost.get("macs_ratio")),
        "time": _seconds(found.get("seconds")),
        "time without a cache": _seconds(found.get("uncached_seconds")),
        "less time": _times(found.get("time_ratio")),
        "cache of a batch": _mib(cost.get("cache_bytes")),
    }
    model = text(found.get("model"))
    return ReportData(
        "run",
        f"{model}: {text(mapping(found['plan']).get('method')) or 'no cache'}",
        plan,
        images=images,
        left_out=left_out,
        costs={name: value for name, value in costs.items() if value},
        facts={
            "Run": {"model": model, **settings},
            "Plan": made,
            "Model": _grid(plan),
            "Scheduler": _scheduler(plan),
            "What the session counted": texts(found.get("stats")),
            "Hardware and versions": texts(found.get("environment")),
        },
        command=text(found.get("command")),
    )


def _samples(path: Path, found: dict[str, Any]) -> ReportData:
    plan = Plan.load(path.with_name("plan.json")) if path.with_name("plan.json").is_file() else None
    settings = texts(found["settings"])
    images, left_out = images_of_samples(path.with_name("samples.npz"))
    made = plan.provenance.get("method", "a plan") if plan else "no cache"
    return ReportData(
        "samples",
        f"{settings.get('model', 'samples')}: {made}",
        plan,
        images=images,
        left_out=left_out,
        costs={"time": _seconds(found.get("seconds"))},
        facts={
            "Run": settings | {"SHA-256 of samples.npz": text(found["sha256"])},
            "Model": _grid(plan),
            "Scheduler": _scheduler(plan),
            "Plan": texts(dict(plan.provenance)) if plan else {},
            "Hardware and versions": texts(found.get("made_on")) | {"forecache": text(found.get("forecache"))},
        },
    )


def _comparison(path: Path, found: dict[str, Any]) -> ReportData:
    entries = [mapping(each) for each in listed(found["rows"])]
    rows = tuple(_row(each) for each in entries[:MAX_ROWS])
    better = BETTER | {metric.title: metric.better for metric in METRICS.values()}
    settings, model = texts(found.get("settings")), texts(found.get("model")) | texts(found.get("table"))
    settings |= texts(found.get("protocol"))
    command = settings.pop("command", "") or text(found.get("command"))
    name = model.get("name") or settings.get("model") or path.stem
    return ReportData(
        "comparison",
        f"{name}: {len(rows)} plans side by side",
        rows=rows,
        better={name: better[name] for name in better if any(name in row.quality for row in rows)},
        left_out=max(0, len(entries) - MAX_ROWS),
        facts={
            "Settings": settings | texts(found.get("sampler")) | texts(found.get("timing")),
            "Model": model,
            "Left out": texts(found.get("left_out")),
            "Hardware and versions": texts(found.get("environment")),
        },
        command=command,
    )


def _row(found: dict[str, Any]) -> Row:
    quality = {QUALITY[key]: value for key in QUALITY if (value := number(found.get(key))) is not None}
    for name, figure in mapping(found.get("figures")).items():  # of `forecache reproduce`
        if name in METRICS and (value := number(mapping(figure).get("value"))) is not None:
            quality[METRICS[name].title] = value
    return Row(
        text(found.get("name")),
        text(found.get("method")),
        text(found.get("picture")).split("\n")[0],
        number(found.get("macs_ratio")),
        number(found.get("time_ratio")),
        quality,
        number(found.get("cache_bytes")),
        number(found.get("macs_per_image", found.get("macs"))),
    )


def _search(path: Path, _: dict[str, Any]) -> ReportData:
    settings, candidates = search_file.read(path)
    sign = -1 if settings.better == "higher" else 1
    ranked = sorted(candidates, key=lambda each: sign * each.score)
    rows = [
        Row(f"{place}", settings.method, each.pattern, each.macs_ratio, quality={settings.score: each.score})
        for place, each in enumerate(ranked[:MAX_ROWS], 1)
    ]
    facts = {name: text(value) for name, value in vars(settings).items() if name not in ("conditions", "scheduler")}
    facts["fingerprint"] = facts["fingerprint"].partition(":")[0]
    return ReportData(
        "search",
        f"{settings.model}: {len(ranked)} patterns by {settings.score}",
        rows=tuple(rows),
        better={settings.score: settings.better},
        left_out=max(0, len(ranked) - MAX_ROWS),
        facts={
            "Search": facts | {"conditions": f"{len(settings.conditions)} samples"},
            "Scheduler": _settings_of(settings.scheduler),
        },
    )


def _evaluation(path: Path, found: dict[str, Any]) -> ReportData:
    figures = []
    for name, each in mapping(found["figures"]).items():
        each, kind = mapping(each), METRICS.get(name)
        ends = [number(end) for end in listed(each.get("interval"))]
        between = f"{ends[0]:.6g} to {ends[1]:.6g}" if len(ends) == 2 and None not in ends else ""
        title = f"{kind.title}, {kind.better} is better" if kind else text(name)
        figures.append((title, text(each.get("value")), between, text(each.get("count")), text(each.get("resamples"))))
    facts = {name: text(found.get(name)) for name in ("samples", "count", "extractor", "reference", "sampling_seeds")}
    return ReportData(
        "evaluation",
        f"Quality of {text(found['samples'])}",
        figures=tuple(figures),
        facts={
            "Evaluation": {name: value for name, value in facts.items() if value},
            "Hardware and versions": texts(found.get("environment")),
        },
        notes=tuple(text(note) for note in listed(found.get("notes"))[:20]),
        command=text(found.get("command")),
    )


def _plan(path: Path, _: dict[str, Any]) -> ReportData:
    plan = Plan.load(path)
    facts = {"Plan": texts(dict(plan.provenance)), "Model": _grid(plan), "Scheduler": _scheduler(plan)}
    return ReportData("plan", plan.provenance.get("method", path.stem), plan, facts=facts)


def _statistics(path: Path) -> ReportData:
    stats = Statistics.load(path)
    facts = {name: text(value) for name, value in vars(stats.origin).items() if name not in ("conditions", "scheduler")}
    facts["fingerprint"] = facts["fingerprint"].partition(":")[0]
    kept = f"{stats.count} of {len(stats.origin.conditions)}"
    return ReportData(
        "statistics",
        f"{stats.origin.model}: what its features do in {stats.num_steps} steps",
        statistics=stats,
        facts={
            "Calibration": facts | {"samples": kept, "means": f"one per {stats.resolution}"},
            "Scheduler": _settings_of(stats.origin.scheduler),
        },
    )


def _grid(plan: Plan | None) -> dict[str, str]:
    if plan is None:
        return {}
    grid = plan.grid
    size = f"{grid.num_steps} steps x {len(grid.sites)} sites, {plan.computed_share:.1%} computed"
    found = {"class": grid.model, "grid": size, "fingerprint": grid.fingerprint.partition(":")[0]}
    return {name: text(value) for name, value in found.items() if value}


def _scheduler(plan: Plan | None) -> dict[str, str]:
    return _settings_of(plan.grid.scheduler) if plan is not None else {}


def _settings_of(scheduler: str) -> dict[str, str]:
    """A described scheduler's settings; the text as it is where it is no JSON."""
    try:
        return texts(files.parse(scheduler.encode())) or texts({"described as": scheduler})
    except ValueError:
        return texts({"described as": scheduler})


def _said(form: str, unit: float = 1.0) -> Callable[[Any], str]:
    """What a number of a file is written as, in units of so many; nothing for what is no number."""

    def said(value: Any) -> str:
        found = number(value)
        return form.format(found / unit) if found is not None else ""

    return said


_macs, _times = _said("{:.4g} G", 1e9), _said("{:.2f}x")
_seconds, _mib = _said("{:.2f} s"), _said("{:.2f} MiB", 2**20)


KINDS: dict[str, Kind] = {
    "plan": Kind("a plan file", _is("forecache-plan"), _plan),
    "search": Kind("what `forecache search` writes", _is("forecache-search"), _search),
    "run": Kind("run.json of `forecache sample`", _has("images", "settings", "plan"), _run),
    "samples": Kind("run.json of `forecache sample --num-samples`", _has("run", "sha256", "settings"), _samples),
    "evaluation": Kind("what `forecache evaluate --out` writes", _has("figures", "samples"), _evaluation),
    "comparison": Kind(
        "bench.json, demo.json, peers-*.json, or what `forecache reproduce` writes",
        _has("rows", "environment"),
        _comparison,
    ),
}
"""In the order in which they are tried. Another kind of result is another entry."""
