"""Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991), as the ADM suite computes them, k = 3.

A set of features stands for the union of balls around each, as wide as the distance to its k-th neighbour of the set.

B features in hand, N features of a manifold, F dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from forecache._errors import InputError

NEIGHBOURS = 3
ROWS, COLUMNS = 2_000, 10_000
"""Distances in memory at once: 80 MB."""

OnRows = Callable[[int], None]


def precision_recall(
    samples: Tensor, reference: Tensor, neighbours: int = NEIGHBOURS, on_rows: OnRows | None = None
) -> tuple[Tensor, Tensor]:
    """Which samples lie in the reference's manifold (B,), and which references in the samples' (N,), as booleans.

    Their means are precision and recall. Features are (B, F) and (N, F), each more than ``neighbours`` many. on_rows:
    called with the number of rows of distances that were done, 2 (B + N) in all.
    """
    for name, each in (("samples", samples), ("reference", reference)):
        if each.ndim != 2 or len(each) <= neighbours:
            raise InputError(
                f"Precision and recall by {neighbours} neighbours need more than {neighbours} features, as (count, "
                f"dimensions); the {name} are {tuple(each.shape)}."
            )
        if not bool(each.isfinite().all()):
            raise InputError(f"The features of the {name} have NaN or infinite entries: check the images.")
    if samples.shape[1] != reference.shape[1]:
        raise InputError(f"The two sets have features of {samples.shape[1]} and {reference.shape[1]} dimensions.")
    tell = on_rows or (lambda _: None)
    precise = inside(samples, reference, radii(reference, neighbours, tell), tell)
    return precise, inside(reference, samples, radii(samples, neighbours, tell), tell)


def radii(features: Tensor, neighbours: int, tell: OnRows) -> Tensor:
    """The distance (N,) of each feature (N, F) to its k-th neighbour among the others."""
    found = []
    for rows in features.split(ROWS):
        near = torch.cat([torch.cdist(rows, part).topk(min(neighbours + 1, len(part)), largest=False).values
                          for part in features.split(COLUMNS)], dim=1)  # fmt: skip
        found.append(near.kthvalue(neighbours + 1, dim=1).values)  # the nearest is the feature itself
        tell(len(rows))
    return torch.cat(found)


def inside(points: Tensor, features: Tensor, radii_N: Tensor, tell: OnRows) -> Tensor:
    """Whether each point (B, F) lies in a ball around one of the features (N, F)."""
    found = []
    for rows in points.split(ROWS):
        parts = zip(features.split(COLUMNS), radii_N.split(COLUMNS), strict=True)
        within = [(torch.cdist(rows, part) <= radius).any(1) for part, radius in parts]
        found.append(torch.stack(within).any(0))
        tell(len(rows))
    return torch.cat(found)
