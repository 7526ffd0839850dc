"""The transformer classes of the diffusers that is installed, and what was tested with each."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from forecache.errors import MissingExtraError
from forecache.models.registry import families

PATH = Path(__file__).with_name("tested.json")
"""What ``benchmarks/stacks.py`` has found, by class."""
UNTESTED = "untested"
FOUND = "blocks, groups, stack (found in the model)"
"""The levels of a class that is in no table: those of any model with lists of blocks."""


def classes() -> list[str]:
    """The names of the model classes of ``diffusers.models.transformers``, in alphabetical order.

    Raises MissingExtraError where diffusers is not installed.
    """
    try:
        from diffusers import ModelMixin
        from diffusers.models import transformers
    except ImportError as error:
        raise MissingExtraError("diffusers", "diffusers", "The list of its transformers") from error
    names: set[str] = set()
    for info in pkgutil.iter_modules(transformers.__path__, transformers.__name__ + "."):
        module = importlib.import_module(info.name)
        for name, kind in vars(module).items():
            if inspect.isclass(kind) and issubclass(kind, ModelMixin) and kind.__module__ == info.name:
                names.add(name)
    return sorted(names)


def level_of_class(name: str) -> str:
    """The finest level that a class of this name is known by, else what is found in the model itself."""
    return next((family.level for family in families() if family.kind == name), FOUND)


def rows() -> list[dict[str, str]]:
    """One row a class: its name, its finest level, and what was tested at that level and at level stack."""
    known = _tested()
    nothing = {"finest": UNTESTED, "stack": UNTESTED}
    return [{"class": name, "level": level_of_class(name), **known.get(name, nothing)} for name in classes()]


@cache
def _tested() -> dict[str, Any]:
    return json.loads(PATH.read_text(encoding="utf-8"))["classes"]
