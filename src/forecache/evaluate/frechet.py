"""The Fréchet distance of two sets of features, each modelled as a Gaussian (Heusel et al., arXiv 1706.08500).

FID is this distance on the 2048 pooled features of Inception-v3, sFID (Nash et al., arXiv 2103.03841) on spatial ones.

B features, F dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from forecache.errors import InputError


@dataclass(frozen=True)
class Moments:
    """Mean (F,) and covariance (F, F) of ``count`` features, float64; count is None where a file does not say it."""

    count: int | None
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """The moments of features (B, F); the covariance is the unbiased one, as in the FID reference code."""
        if features.ndim != 2 or len(features) < 2:
            raise InputError(f"Moments need at least 2 features, as (count, dimensions); got {tuple(features.shape)}.")
        stream = Stream()
        for part in features.split(10_000):
            stream.add(part)
        return stream.moments()

    @classmethod
    def merged(cls, parts: Iterable[Moments]) -> Moments:
        """The moments of a union of disjoint sets of features, each of at least 2."""
        stream = Stream()
        for part in parts:
            if part.count is None:
                raise InputError(
                    "Moments can be merged only where the number of features is known: published files do not say it."
                )
            stream.include(part.count, part.mean, part.covariance * (part.count - 1))
        return stream.moments()


@dataclass
class Stream:
    """Streaming moments of features in batches, in float64 and constant memory; `across` merges those of processes.

    A batch is merged by the exact formula for the moments of a union (Chan et al. 1979) and not as raw squares, so that
    a mean far from zero costs no precision.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    scatter: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def add(self, features: Tensor) -> None:
        """Fold features (B, F) in; InputError where an entry is NaN or infinite."""
        features = features.double()
        if not bool(features.isfinite().all()):
            raise InputError("The features have NaN or infinite entries: check the images that they were taken from.")
        if len(features):
            mean = features.mean(0)
            offset = features - mean
            self.include(len(features), mean, offset.T @ offset)

    def include(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Fold ``count`` features in by their mean (F,) and sum of outer products about it (F, F)."""
        if self.count == 0:
            self.count, self.mean, self.scatter = count, mean, scatter
            return
        if mean.shape != self.mean.shape:
            raise InputError(f"Features of {len(mean)} dimensions cannot join those of {len(self.mean)}.")
        total = self.count + count
        step = mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(step, step) * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    def across(self, sum_: Callable[[Sequence[Tensor]], None], dimensions: int, device: str = "cpu") -> Stream:
        """The stream of all processes. sum_: makes tensors their sum over the processes, in place.

        Every process calls it with the number of dimensions, also one that saw no feature.
        """
        empty = self.count == 0
        mean = torch.zeros(dimensions, dtype=torch.float64) if empty else self.mean
        scatter = torch.zeros(dimensions, dimensions, dtype=torch.float64) if empty else self.scatter
        count = torch.tensor(float(self.count), dtype=torch.float64, device=device)
        total = mean.to(device) * count
        sums = [count.clone(), total]
        sum_(sums)
        if not sums[0]:
            return Stream()
        center = sums[1] / sums[0]
        step = mean.to(device) - center
        whole = scatter.to(device) + count * torch.outer(step, step)
        sum_([whole])
        return Stream(int(sums[0]), center.cpu(), whole.cpu())

    def moments(self) -> Moments:
        """The moments so far, of at least 2 features."""
        if self.count < 2:
            raise InputError(f"Moments need at least 2 features, as (count, dimensions); got {self.count}.")
        return Moments(self.count, self.mean, self.scatter / (self.count - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of C_b^(1/2) C_a C_b^(1/2), which is symmetric, so
    that singular covariances (fewer samples than dimensions) need no regularisation. With few samples the distance is
    biased upwards: compare only sets of one size.
    """
    return distance_to(b)(a)


def distance_to(reference: Moments) -> Callable[[Moments], float]:
    """`frechet_distance` to one reference, whose root is taken once."""
    values, vectors = torch.linalg.eigh(reference.covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T

    def distance(other: Moments) -> float:
        if other.mean.shape != reference.mean.shape:
            raise InputError(f"The two sets have features of {len(other.mean)} and {len(reference.mean)} dimensions.")
        cross = torch.linalg.eigvalsh(root @ other.covariance @ root).clamp_min(0).sqrt().sum()
        traces = other.covariance.trace() + reference.covariance.trace()
        return max(0.0, ((other.mean - reference.mean).square().sum() + traces - 2 * cross).item())

    return distance
