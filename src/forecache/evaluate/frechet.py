"""The Fréchet distance between two sets of features, each taken for a Gaussian (Heusel et al., arXiv 1706.08500).

B features, F dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forecache._errors import InputError


@dataclass(frozen=True)
class Moments:
    """Mean (F,) and covariance (F, F) of ``count`` features, float64."""

    count: int
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """The moments of features (B, F); the covariance is the unbiased one, as in the FID reference code."""
        if features.ndim != 2 or len(features) < 2:
            raise InputError(f"Moments need at least 2 features, as (count, dimensions); got {tuple(features.shape)}.")
        features = features.double()
        if not bool(features.isfinite().all()):
            raise InputError("The features have NaN or infinite entries: check the images that they were taken from.")
        return cls(len(features), features.mean(0), torch.cov(features.T))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric, so
    that singular covariances (fewer samples than dimensions) need no regularisation. With few samples the distance is
    biased upwards: compare only sets of one size.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(f"The two sets have features of {len(a.mean)} and {len(b.mean)} dimensions.")
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp_min(0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(0.0, distance.item())
