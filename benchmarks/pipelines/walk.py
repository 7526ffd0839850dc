"""Every pipeline class and every transformer class of the diffusers that is installed."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from types import ModuleType

import diffusers
import diffusers.models.transformers
import diffusers.pipelines


@functools.cache
def pipeline_classes() -> dict[str, type]:
    """Pipelines by name, in alphabetical order."""
    return _classes(diffusers.pipelines, diffusers.DiffusionPipeline, ())


@functools.cache
def transformer_classes() -> dict[str, type]:
    """Transformers by name, in alphabetical order."""
    return _classes(diffusers.models.transformers, diffusers.ModelMixin, ())


def _classes(package: ModuleType, base: type, left_out: tuple[str, ...]) -> dict[str, type]:
    found = {}
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        try:
            module = importlib.import_module(info.name)
        except Exception:  # a helper of a pipeline that needs a package which is not installed
            continue
        for name, kind in vars(module).items():
            if inspect.isclass(kind) and kind.__module__ == info.name and issubclass(kind, base):
                found[name] = kind
    return {name: found[name] for name in sorted(found) if name not in left_out}
