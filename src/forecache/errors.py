"""The tree of errors. Every message is a sentence that says what was asked, what was found and what to do.

ForecacheError
├── PlanError (ValueError)          a method, schedule or grid that cannot become a plan
│   ├── PlanFileError               a file that is not a plan this version can read
│   ├── RouterFileError             a file that is not a router this version can read
│   └── SearchFileError             a file that is not a search this version can read, or another search
├── ModelError (ValueError)         a model or pipeline that has no usable sites
│   ├── SiteError                   a site pattern that matches nothing
│   └── PlanMismatchError           a plan made for another model
├── StatisticsError (ValueError)    statistics of another model, scheduler or number of steps, or too coarse ones
│   └── StatisticsFileError         a file that is not statistics this version can read
├── ShardError (ValueError)         a folder of samples that holds another run, or a file of it that is damaged
├── TableError (ValueError)         a table file that cannot be read, or a folder that holds another reproduction
├── RunError (RuntimeError)         a sampling run that does not fit the plan or the session
│   ├── StepCountError              more or fewer model calls than the plan has steps
│   ├── AlreadyAppliedError         a second `apply` on a model that already has a session
│   ├── CacheBudgetError            a generation that needs more cache than it may have
│   └── DriftError                  a generation that changes faster than what was calibrated, where that is refused
├── InputError (ValueError)         a label, folder or option that cannot be used
└── MissingExtraError (ImportError) an optional dependency that is not installed
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path


class ForecacheError(Exception):
    """The root of all errors that forecache raises on purpose."""


class PlanError(ForecacheError, ValueError):
    """A method, schedule or grid that cannot become a plan."""


class PlanFileError(PlanError):
    """A file that is not a plan this version can read."""


class RouterFileError(PlanError):
    """A file that is not a router this version can read."""


class SearchFileError(PlanError):
    """A file that is not a search this version can read, or another search."""


class ModelError(ForecacheError, ValueError):
    """A model or pipeline that has no usable sites."""


class SiteError(ModelError):
    """A site pattern that matches nothing."""


class PlanMismatchError(ModelError):
    """A plan made for another model."""


class StatisticsError(ForecacheError, ValueError):
    """Statistics of another model, scheduler or number of steps, or too coarse ones."""


class StatisticsFileError(StatisticsError):
    """A file that is not statistics this version can read."""


class ShardError(ForecacheError, ValueError):
    """A folder of samples that holds another run, or a file of it that is damaged."""


class TableError(ForecacheError, ValueError):
    """A table file that cannot be read, or a folder that holds another reproduction."""


class RunError(ForecacheError, RuntimeError):
    """A sampling run that does not fit the plan or the session."""


class StepCountError(RunError):
    """More or fewer model calls than the plan has steps."""


class AlreadyAppliedError(RunError):
    """A second `apply` on a model that already has a session."""


class CacheBudgetError(RunError):
    """A generation that needs more cache than it may have."""


class DriftError(RunError):
    """A generation that changes faster than what was calibrated, where that is refused."""


class InputError(ForecacheError, ValueError):
    """A label, folder or option that cannot be used."""


class MissingExtraError(ForecacheError, ImportError):
    """An optional dependency that is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}', which is not installed: {install_command(extra)}")


def install_command(extra: str) -> str:
    """The command that installs an extra: from the index, or, where the package was installed from a clone, from that.

    extra: its name, such as ``diffusers``
    """
    if (folder := _clone()) is None:
        return f"pip install 'forecache[{extra}]'"
    return f"pip install --editable '{folder}[{extra}]'"


def _clone() -> str | None:
    """The folder of the clone that the package is installed from (PEP 610) or runs in; None for a wheel."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    source = Path(__file__).resolve().parents[2]
    try:
        origin = json.loads(metadata.distribution("forecache").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return str(source) if (source / "pyproject.toml").is_file() else None
    url = urlsplit(origin["url"]) if isinstance(origin, dict) and "dir_info" in origin else None
    return url2pathname(url.path) if url is not None and url.scheme == "file" else None
