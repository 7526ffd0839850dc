"""The result of a comparison: figures of every column and image, and the file that holds them.

comparison.json, versioned JSON, which `forecache report` reads:

    {"format": "forecache-comparison", "version": 1, "command": "...", "model": "...", "settings": {...},
     "columns": [{"name": "goc eta=0.8", "folder": "columns/goc-eta-0.8", "quality": {...}, "images": [...], ...}],
     "timing": {...}, "notes": [...], "environment": {...}}
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from forecache.bench.comparison.columns import UNCACHED, Column
from forecache.bench.comparison.quality import Judges, of_pair, of_prompt
from forecache.bench.comparison.rounds import Rounds, uncached_macs
from forecache.environment import environment
from forecache.errors import ShardError
from forecache.evaluate.images import EQUAL_DB
from forecache.io import files
from forecache.io.document import Document, refusing
from forecache.sampling import runs
from forecache.sampling.timing import Turns

DOCUMENT = Document("forecache-comparison", 1)
FILE = "comparison.json"
KEYS = {
    "command": str, "model": str, "settings": dict, "pipeline": dict, "columns": list, "timing": dict, "notes": list,
    "errors": dict, "environment": dict,
}  # fmt: skip
COLUMN = {
    "name": str, "folder": str, "method": str, "picture": str, "steps": int, "computed_calls": int, "frames": int,
    "cost": dict, "time_ratio": dict, "seconds": dict, "quality": dict, "to_reference": dict, "images": list,
}  # fmt: skip


def document(
    rounds: Rounds,
    judges: Judges,
    turns: Turns | None,
    *,
    model: str,
    command: str = "",
    errors: Mapping[str, Any] | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The figures of a finished comparison.

    turns: times; None if none were measured
    errors: errors of estimates by column, as `fit.step_errors.document` has them
    on_image: called with the images judged and their number
    """
    reference = next((column.name for column in rounds.columns if not column.is_timed), None)
    judged = _Judged(rounds, judges, reference, on_image)
    columns = [_column(rounds, judged, turns, column) for column in rounds.columns]
    settings = rounds.settings
    return DOCUMENT.wrap(
        {
            "command": command,
            "model": model,
            "settings": {
                "conditions": list(settings.conditions), "seeds": list(rounds.seeds), "steps": settings.num_steps,
                "guidance": settings.guidance, "batch": settings.batch,
            },
            "pipeline": runs.described(rounds.source),
            "columns": columns,
            "timing": turns.document() if turns is not None else {},
            "notes": list(judges.notes),
            "errors": dict(errors or {}),
            "environment": environment(),
        }
    )  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """The figures in a file. Raises ShardError for one that is damaged."""
    with refusing(path, ShardError, "comparison of methods", "The command that made it writes it again"):
        values = DOCUMENT.fields(files.document(path, 64 * 2**20), KEYS)
        for column in values["columns"]:
            if not isinstance(column, dict) or column.keys() != COLUMN.keys():
                raise ValueError("a column does not have the figures of one")
            if odd := [name for name, kind in COLUMN.items() if type(column[name]) is not kind]:
                raise ValueError(f"{odd[0]} of a column is not of type {COLUMN[odd[0]].__name__}")
        return values


def notes(document: Mapping[str, Any]) -> list[str]:
    """Sentences on what was left out of a comparison, and on how to read its figures."""
    timing = document["timing"]
    if not timing:
        times = "No time was measured."
    else:
        count = next(iter(timing["seconds"].values()))["count"]
        rounds = "1 round" if count == 1 else f"{count} rounds"
        times = (
            f"Time: {rounds} of a batch of {timing['samples']}, in which all columns sample in turn after each has run "
            "once; the median of the ratios within a round, with their quartiles."
        )
    quality = (
        "Quality is measured to the same image without a cache, and is the mean over images; MACs are those of an "
        "image; calls are the model calls that compute something."
    )
    return [*document["notes"], quality, times]


class _Judged:
    """The quality of the images of every column. A row is a seed and a condition."""

    def __init__(
        self, rounds: Rounds, judges: Judges, reference: str | None, on_image: Callable[[int, int], None] | None
    ) -> None:
        self._rounds, self._judges, self._reference = rounds, judges, reference
        self._tell, self._done = on_image, 0

    def images(self, column: Column) -> list[dict[str, Any]]:
        """An entry for each image of a column: file, condition, seed, and its metrics."""
        rounds, entries = self._rounds, []
        folder, uncached = rounds.folders[column.name], rounds.folders[UNCACHED]
        reference = rounds.folders[self._reference] if self._reference is not None else None
        for seed in rounds.seeds:
            for index, condition in enumerate(rounds.settings.conditions):
                image = folder.image(seed, index)
                quality: dict[str, Any] = dict(of_prompt(self._judges, image, condition))
                if column.name != UNCACHED:
                    quality |= of_pair(self._judges, image, uncached.image(seed, index))
                to_reference: dict[str, Any] = {}
                if reference is not None and column.name != self._reference:
                    to_reference = of_pair(self._judges, image, reference.image(seed, index))
                entries.append({
                    "file": f"{folder.path.name}/{folder.name(seed, index)}", "seed": seed, "condition": condition,
                    "quality": quality, "to_reference": to_reference,
                })  # fmt: skip
                self._done += 1
                if self._tell is not None:
                    self._tell(self._done, rounds.total)
        return entries


def _column(rounds: Rounds, judged: _Judged, turns: Turns | None, column: Column) -> dict[str, Any]:
    folder = rounds.folders[column.name]
    entries = judged.images(column)
    is_timed = turns is not None and column.is_timed
    return {
        "name": column.name,
        "folder": f"columns/{column.slug}",
        "method": column.plan.provenance.get("method", "a plan") if column.plan is not None else UNCACHED,
        "picture": column.plan.picture() if column.plan is not None else "#" * column.num_steps,
        "steps": column.num_steps,
        "computed_calls": column.computed_calls,
        "frames": folder.frames,
        "cost": _cost(rounds, column),
        "time_ratio": asdict(turns.ratio(column.name, UNCACHED)) if is_timed and turns is not None else {},
        "seconds": asdict(turns.spread(column.name)) if is_timed and turns is not None else {},
        "quality": _summary([entry["quality"] for entry in entries]),
        "to_reference": _summary([entry["to_reference"] for entry in entries]),
        "images": entries,
    }


def _cost(rounds: Rounds, column: Column) -> dict[str, Any]:
    """MACs of one image, and the peak of the cache in bytes as the session counted it."""
    uncached, own = uncached_macs(rounds.folders), rounds.folders[column.name]
    cache = own.stats.get("peak_cache_bytes", 0)
    if uncached is None or not own.cost:
        return {"cache_bytes": cache}
    is_planned = column.plan is not None
    macs = own.cost["macs"] if is_planned else uncached * column.num_steps / rounds.settings.num_steps
    return {"macs": round(macs), "macs_ratio": uncached / macs, "cache_bytes": cache}


def _summary(values: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Mean, lowest and highest value of every metric; an equal image counts `EQUAL_DB`, and is counted."""
    summary: dict[str, Any] = {}
    for name in dict.fromkeys(name for entry in values for name in entry):
        known = [entry[name] for entry in values]
        numbers = [EQUAL_DB if value is None else value for value in known]
        summary[name] = {
            "mean": statistics.fmean(numbers), "lowest": min(numbers), "highest": max(numbers),
            "equal": sum(value is None for value in known), "count": len(known),
        }  # fmt: skip
    return summary
