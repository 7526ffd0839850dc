"""A model family: how its models are recognised, and which sites they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from forecache.models.layout import Layout, Level


@dataclass(frozen=True)
class Family:
    """A family of models that forecache knows.

    name: as users know it
    kind: the class, or a description of the blocks where ``by_structure``
    level: what its sites are
    sites: their kinds, in order of execution
    fits: whether a model belongs to the family
    layout: the layout of such a model
    by_structure: models are recognised by the parts of their blocks, not by their class
    """

    name: str
    kind: str
    level: Level
    sites: tuple[str, ...]
    fits: Callable[[Any], bool]
    layout: Callable[[Any], Layout]
    by_structure: bool = False
