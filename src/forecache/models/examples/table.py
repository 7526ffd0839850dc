"""The example of a model, by its class."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from forecache.models.examples.example import Example
from forecache.models.examples.images import IMAGES
from forecache.models.examples.videos import VIDEOS

EXAMPLES: Mapping[str, Example] = {**IMAGES, **VIDEOS}
"""By class."""


def example_of(model: nn.Module) -> Example | None:
    """The example of a model's class, or of one that it inherits from; None if there is none."""
    kinds = [kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("diffusers.")]
    return next((EXAMPLES[kind] for kind in kinds if kind in EXAMPLES), None)
