"""The bundled models by name: one row a model, which every command, table and page reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from forecache.errors import InputError
from forecache.plan import stored
from forecache.zoo import digits, digits_text
from forecache.zoo.records import Record

_RECORDS: Mapping[str, Record] = {record.name: record for record in (digits.RECORD, digits_text.RECORD)}

for _record in _RECORDS.values():
    stored.ship(_record.tuned_folder)

DEFAULT = digits.RECORD.name
"""The model that commands take unless told otherwise."""


def models() -> tuple[str, ...]:
    """The names of the bundled models."""
    return tuple(_RECORDS)


def record(name: str) -> Record:
    """The record of a bundled model; InputError for another name."""
    if name not in _RECORDS:
        raise InputError(f"There is no bundled model {name!r}; there are {', '.join(_RECORDS)}.")
    return _RECORDS[name]


def routers() -> dict[str, Path]:
    """Every bundled router by its name, ``<model>-<caching level in percent>``, such as ``digits-22``."""
    return {f"{name}-{level}": path for name, one in _RECORDS.items() for level, path in one.routers.items()}
