"""The table of docs/measured/pipelines.md, and its file of results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import common

from forecache.environment import environment
from pipelines.build import VARIANTS
from pipelines.walk import transformer_classes

Rows = Sequence[dict[str, Any]]


def write(rows: Rows, command: str, seconds: float) -> None:
    """Write benchmarks/results/pipelines.json, and the tables of the page."""
    place = environment()
    filled = [{name: value for name, value in row.items() if value} for row in rows]
    common.save("pipelines", {"command": command, "environment": place, "seconds": round(seconds), "rows": filled})
    common.fill_page("table pipelines", [*summary(rows), "", *pipelines(rows), "", *notes(rows)])
    common.fill_page("table transformers", transformers(rows))
    common.fill_page(
        "run pipelines",
        [f"`{command}`, {seconds / 60:.0f} minutes, {common.machine(place, 'threads', 'diffusers')}."],
    )


def summary(rows: Rows) -> list[str]:
    """The number of rows of every verdict."""
    counts = Counter(row["verdict"] for row in rows)
    order = ("right", "refused", "not built", "WRONG", "none", "no transformer")
    return [
        "| verdict | rows |",
        "|---|---|",
        *(f"| {verdict} | {counts[verdict]} |" for verdict in order if counts[verdict] or verdict == "WRONG"),
    ]


def pipelines(rows: Rows) -> list[str]:
    """A line a pipeline that has a transformer."""
    lines = [
        "| pipeline | level | default | guided | batch of two | what errors advised |",
        "|---|---|---|---|---|---|",
    ]
    for name, parts in _by_name(rows).items():
        verdicts = [parts[variant]["verdict"] if variant in parts else "" for variant in VARIANTS]
        if "no transformer" in verdicts:
            continue
        level = next((row["level"] for row in parts.values() if row.get("level")), "")
        advice = dict.fromkeys(word for row in parts.values() for word in row.get("followed", ()))
        lines.append(f"| `{name}` | {level} | {' | '.join(verdicts)} | {', '.join(advice)} |")
    return lines


def notes(rows: Rows) -> list[str]:
    """What refusals say, why pipelines are not built, and which ones have no transformer."""
    lines = []
    for verdict, title in (("WRONG", "Wrong"), ("refused", "Refused"), ("not built", "Not built")):
        reasons: dict[str, dict[str, None]] = {}
        for row in rows:
            if row["verdict"] == verdict:
                reasons.setdefault(row["reason"].replace("|", "\\|"), {})[row["name"]] = None
        if reasons:
            lines += [f"**{title}:**", ""]
            lines += [f"- {_code(names)}: {reason}" for reason, names in reasons.items()]
            lines.append("")
    others = [row["name"] for row in rows if row["verdict"] == "no transformer"]
    return [*lines, f"**No transformer:** {_code(others)}."] if others else lines


def transformers(rows: Rows) -> list[str]:
    """A line a transformer class: where it ran, or that it is untested."""
    lines = ["| transformer | level | right in | verdict |", "|---|---|---|---|"]
    for kind in transformer_classes():
        own = [row for row in rows if row.get("transformer") == kind]
        right = dict.fromkeys(row["name"] for row in own if row["verdict"] == "right")
        verdicts = {row["verdict"] for row in own} - {"none"}
        verdict = next((name for name in ("WRONG", "right", "refused") if name in verdicts), "untested")
        level = next((row["level"] for row in own if row.get("level")), "")
        lines.append(f"| `{kind}` | {level} | {_code(right)} | {verdict} |")
    return lines


def _by_name(rows: Rows) -> dict[str, dict[str, dict[str, Any]]]:
    named: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        named.setdefault(row["name"], {})[row["variant"]] = row
    return named


def _code(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)
