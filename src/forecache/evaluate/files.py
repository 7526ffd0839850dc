"""Evaluations as files: what `forecache evaluate --out` writes, and `forecache tabulate` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forecache.environment import environment
from forecache.errors import InputError
from forecache.evaluate import imagesets, tables
from forecache.evaluate.estimates import Estimate
from forecache.evaluate.evaluation import Evaluation
from forecache.evaluate.tables import Row
from forecache.io import files
from forecache.io.document import items

RECORDS = ("samples.npz", "run.json", "shards.json", "plan.json")
"""The files that `forecache sample` writes beside its images."""


def sampling_seeds(samples: Path) -> list[int]:
    """The seed of the sampling, from the run.json that `forecache sample` writes beside its images; else empty."""
    folder = samples if samples.is_dir() else samples.parent if samples.name == "samples.npz" else None
    record = imagesets.run_record(folder) if folder is not None else None
    settings = record.get("settings") if isinstance(record, dict) else None
    seed = settings.get("seed") if isinstance(settings, dict) else None
    return [seed] if isinstance(seed, int) else []


def document(evaluation: Evaluation, samples: Path, command: str, *, draws: bool = True) -> dict[str, Any]:
    """An evaluation with its seeds, hardware and versions, for JSON.

    draws: with the value of every resample, from which differences are judged later.
    """
    return evaluation.document(draws=draws) | {
        "sampling_seeds": sampling_seeds(samples),
        "environment": environment(),
        "command": command,
    }


def read_row(path: Path) -> Row:
    """The row of a table from an evaluation's file. Raises InputError for any other file."""
    try:
        values = files.document(path, 16 * 2**20)
        figures = {str(name): Estimate.read(figure) for name, figure in values["figures"].items()}
        return Row(path.stem, figures, seeds=items(values["sampling_seeds"], "seeds", int))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not what `forecache evaluate --out` writes: {error}") from error


def row_document(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """A row for JSON; ``best`` names the metrics by which it beats every other row by more than the interval."""
    figures = {name: figure for name, figure in row.figures.items() if isinstance(figure, Estimate)}
    best = [name for name in figures if (index := tables.best(rows, name)) is not None and rows[index] is row]
    values = {
        name: {"value": figure.value, "interval": figure.interval, "count": figure.count}
        for name, figure in figures.items()
    }
    return {"name": row.name, "figures": values, "best": best}
