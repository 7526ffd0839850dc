"""Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991), as the ADM suite computes them, k = 3.

The manifold of a set of features is the union of balls around them, with the distance to the k-th neighbour as radius.

B features, N features of a manifold, F dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from forecache.errors import InputError

NEIGHBOURS = 3
ROWS, COLUMNS = 2_000, 10_000
"""Rows and columns of the matrix of distances in memory, 80 MB."""

OnRows = Callable[[int], None]


def precision_recall(
    samples: Tensor, reference: Tensor, neighbours: int = NEIGHBOURS, on_rows: OnRows | None = None
) -> tuple[Tensor, Tensor]:
    """Whether every sample lies in the reference's manifold (B,), and every reference in that of the samples (N,).

    The means of the two boolean tensors are precision and recall.

    samples: features (B, F), more than ``neighbours``
    reference: features (N, F), more than ``neighbours``
    on_rows: called with the number of rows of distances done, 2 (B + N) in all
    """
    for name, features in (("samples", samples), ("reference", reference)):
        if features.ndim != 2 or len(features) <= neighbours:
            raise InputError(
                f"Precision and recall by {neighbours} neighbours need more than {neighbours} features, as (count, "
                f"dimensions); the {name} are {tuple(features.shape)}."
            )
        if not bool(features.isfinite().all()):
            raise InputError(f"The features of the {name} have NaN or infinite entries: check the images.")
    if samples.shape[1] != reference.shape[1]:
        raise InputError(f"The two sets have features of {samples.shape[1]} and {reference.shape[1]} dimensions.")
    tell = on_rows or (lambda _: None)
    precise = inside(samples, reference, radii(reference, neighbours, tell), tell)
    return precise, inside(reference, samples, radii(samples, neighbours, tell), tell)


def radii(features: Tensor, neighbours: int, tell: OnRows) -> Tensor:
    """The distance (N,) of every feature (N, F) to its k-th neighbour among the others."""
    distances = []
    for rows in features.split(ROWS):
        near = torch.cat([torch.cdist(rows, part).topk(min(neighbours + 1, len(part)), largest=False).values
                          for part in features.split(COLUMNS)], dim=1)  # fmt: skip
        distances.append(near.kthvalue(neighbours + 1, dim=1).values)  # the nearest is the feature itself
        tell(len(rows))
    return torch.cat(distances)


def recalls_without(
    samples: Tensor, reference: Tensor, group_B: Tensor, neighbours: int = NEIGHBOURS, on_rows: OnRows | None = None
) -> Tensor:
    """Recall (G,) without the samples of each group, for a jackknife.

    group_B: the group of every sample, 0 to G - 1
    on_rows: called with the number of rows of distances done, B + N in all

    Bootstrap resamples would be wrong here: duplicates lie at distance 0 and shrink the balls. Radii are exact if at
    most 12 of the 15 nearest neighbours of a sample are of one group; otherwise the largest known one is taken.
    """
    tell, groups = on_rows or (lambda _: None), int(group_B.max()) + 1
    near = min(4 * (neighbours + 1), len(samples))
    radii_BG = torch.cat(
        [_radii_without(rows, samples, group_B, near, neighbours, tell) for rows in samples.split(ROWS)]
    )
    radii_BG[torch.arange(len(samples), device=samples.device), group_B] = -1  # no ball of its own
    covered = torch.zeros(groups, device=samples.device)
    for rows in reference.split(ROWS):
        within = torch.zeros(len(rows), groups, dtype=torch.bool, device=samples.device)
        for part, radii_PG in zip(samples.split(COLUMNS), radii_BG.split(COLUMNS), strict=True):
            distance = torch.cdist(rows, part)
            for group in range(groups):
                within[:, group] |= (distance <= radii_PG[:, group]).any(1)
        covered += within.sum(0)
        tell(len(rows))
    return covered / len(reference)


def _radii_without(rows: Tensor, samples: Tensor, group_B: Tensor, near: int, neighbours: int, tell: OnRows) -> Tensor:
    """The radius of each row's ball without the samples of each group."""
    nearest, starts = [], range(0, len(samples), COLUMNS)
    for part, start in zip(samples.split(COLUMNS), starts, strict=True):
        values, places = torch.cdist(rows, part).topk(min(near, len(part)), largest=False)
        nearest.append((values, places + start))
    values, places = (torch.cat(parts, 1) for parts in zip(*nearest, strict=True))
    distance, order = values.topk(near, largest=False)
    index = places.gather(1, order)
    left = group_B[index][:, :, None] != torch.arange(int(group_B.max()) + 1, device=group_B.device)
    left[:, 0] = True  # the sample itself, whose own group's column is never read
    place = (left.cumsum(1) <= neighbours).sum(1).clamp_max(near - 1)
    tell(len(rows))
    return distance.gather(1, place)


def inside(points: Tensor, features: Tensor, radii_N: Tensor, tell: OnRows) -> Tensor:
    """Whether every point (B, F) lies in a ball around one of the features (N, F)."""
    covered = []
    for rows in points.split(ROWS):
        parts = zip(features.split(COLUMNS), radii_N.split(COLUMNS), strict=True)
        within = [(torch.cdist(rows, part) <= radius).any(1) for part, radius in parts]
        covered.append(torch.stack(within).any(0))
        tell(len(rows))
    return torch.cat(covered)
