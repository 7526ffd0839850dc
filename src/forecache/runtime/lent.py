"""What passes between the books of a lane and a step that is run as a pure function."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from forecache.plan.slots import Score


class Lent(NamedTuple):
    """What a step reads, for a step that is run as a pure function.

    features: per site, those of `Op.used`. dtypes: per site, what they are cast to; None as they are. weights: of
    `Step.weights`, float32. constants: gain and shift, per site that has one. random, ages: per site that needs them.
    scores: those that were made in an earlier step.
    """

    features: tuple[tuple[Tensor, ...], ...]
    dtypes: tuple[torch.dtype | None, ...]
    weights: Tensor | None
    constants: dict[int, tuple[Tensor | None, Tensor | None]]
    random: dict[int, Tensor]
    ages: dict[int, Tensor]
    scores: dict[Score, Tensor]


class Made(NamedTuple):
    """What such a step gives out besides its output: per site what `Op.keeps` says, with the dtype that it had, scores
    and ages to keep, a site that did not run, and how many estimates fell back to reuse, as a tensor."""

    kept: dict[int, list[tuple[Tensor, torch.dtype]]]
    scores: dict[Score, Tensor]
    ages: dict[int, Tensor]
    missed: int | None
    fallen: Tensor | None
