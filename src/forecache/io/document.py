"""Documents: the format and version of a file, and checks of what it says.

A function that reads a file raises ValueError with a reason, and `refusing` turns that into the error that users see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from forecache.errors import ForecacheError
from forecache.io import files
from forecache.io.text import short


@dataclass(frozen=True)
class Document:
    """A file format, whose documents begin with ``"format"`` and ``"version"``.

    format: its name, such as ``forecache-plan``.
    version: the only version that this forecache reads and writes, from 1.
    """

    format: str
    version: int

    def check(self, document: Any) -> None:
        """Raises ValueError, with one sentence, for anything but an object of this format and version."""
        if not isinstance(document, Mapping):
            raise ValueError(f"its document must be an object, not {short(document)}")
        if missing := [name for name in ("format", "version") if name not in document]:
            raise ValueError(f"it lacks {' and '.join(missing)}")
        if document["format"] != self.format:
            raise ValueError(f"its format is {short(document['format'])}, not {self.format!r}")
        version = document["version"]
        if type(version) is not int or version != self.version:
            raise ValueError(f"its version is {short(version)}; this forecache reads version {self.version}")

    def fields(self, document: Any, types: Mapping[str, type]) -> dict[str, Any]:
        """What a document holds besides its format and version: exactly these keys; ValueError for anything else."""
        self.check(document)
        return fields({name: document[name] for name in document if name not in ("format", "version")}, types)

    def wrap(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The document of these values."""
        return {"format": self.format, "version": self.version, **values}

    def write(self, path: Path, values: Mapping[str, Any]) -> None:
        """Write the document of these values as a JSON file, by the rules of `files.write`."""
        files.write_json(path, self.wrap(values), indent=1)


@contextmanager
def refusing(path: Path, error: type[ForecacheError], what: str, advice: str) -> Iterator[None]:
    """Turns whatever is wrong with a file into ``error``: a sentence that names the file and ends in ``advice``."""
    try:
        yield
    except FileNotFoundError:
        raise error(f"There is no {what} at {path}. {advice}.") from None
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror or reason}.") from reason
    except (ValueError, OverflowError, RecursionError, EOFError, SafetensorError) as reason:
        text = str(reason).rstrip(".")
        raise error(f"{path} is not a readable {what}: {text[:300]}. {advice}.") from reason


def fields(document: Any, types: Mapping[str, type]) -> dict[str, Any]:
    """An object that has exactly these keys, with values of these types; else ValueError."""
    if not isinstance(document, dict):
        raise ValueError(f"its document must be an object, not {short(document)}")
    if missing := [name for name in types if name not in document]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    if unknown := [name for name in document if name not in types]:
        raise ValueError(f"it has unknown keys {short(unknown)}")
    for name, kind in types.items():
        if type(document[name]) is not kind:
            raise ValueError(f"{name} must be of type {kind.__name__}, not {short(document[name])}")
    return document


def items(values: Sequence[Any], name: str, kind: type) -> tuple[Any, ...]:
    """The items of a list, all of this type; else ValueError."""
    for value in values:
        if type(value) is not kind:
            raise ValueError(f"{name} must hold values of type {kind.__name__}, not {short(value)}")
    return tuple(values)
