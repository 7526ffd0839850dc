"""The bootstrap: a metric on resamples, drawn with replacement from the samples; the reference is kept.

B samples, R resamples, F dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from forecache.errors import InputError
from forecache.evaluate.frechet import Moments, distance_to

FEWEST = 20
"""Fewest resamples of a bootstrap; the standard error then has an error of 16 % itself."""

JACKKNIFE = 20
"""Groups of a jackknife, which replaces the bootstrap where duplicates would change a metric."""

FRECHET_BUDGET = 4e12
"""Most multiply-adds for the resamples of one Fréchet distance; at least FEWEST resamples are drawn."""


@dataclass(frozen=True)
class Bootstrap:
    """The settings of a bootstrap.

    resamples: number of resamples, at least 20; 0 for no interval
    seed: seed of the draws, which are the same for all sets of one size
    """

    resamples: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples != 0 and self.resamples < FEWEST:
            raise InputError(f"A bootstrap has at least {FEWEST} resamples, or 0 for none; got {self.resamples}.")

    def weights(self, count: int, resamples: int | None = None) -> Iterator[Tensor]:
        """The number of times (B,) that each of ``count`` samples is drawn, for one resample after another."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.resamples if resamples is None else resamples):
            drawn = torch.randint(count, (count,), generator=generator)
            yield torch.bincount(drawn, minlength=count)

    def groups(self, count: int) -> Tensor:
        """The group (B,) of each sample for a jackknife: 20 random groups of nearly one size."""
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        return order % min(JACKKNIFE, count)

    def of_jackknife(self, without: Tensor) -> tuple[float, ...]:
        """A statistic without each of G groups (G,), rescaled so that its deviation is the jackknife's error."""
        centered = without.double().cpu() - without.double().cpu().mean()
        return tuple((without.double().mean().cpu() + centered * (len(without) - 1) / len(without) ** 0.5).tolist())

    def of_mean(self, values: Tensor) -> tuple[float, ...]:
        """The mean of values (B,) on every resample."""
        values = values.double().cpu()
        return tuple((weight.double() @ values / len(values)).item() for weight in self.weights(len(values)))

    def of(self, statistic: Callable[[Tensor], Tensor], count: int) -> tuple[float, ...]:
        """A statistic on every resample; it maps weights (R, B) to values (R,)."""
        values: list[float] = []
        pending: list[Tensor] = []
        for number, weight in enumerate(self.weights(count), 1):
            pending.append(weight.float())
            if len(pending) == 16 or number == self.resamples:
                values += statistic(torch.stack(pending)).tolist()
                pending = []
        return tuple(values)

    def frechet_resamples(self, count: int, dimensions: int) -> int:
        """The number of resamples of a Fréchet distance within `FRECHET_BUDGET`."""
        # 63 % of the samples are in a resample; eigenvalues run at a quarter of the speed of products
        cost = 12 * count**3 if count < dimensions else 0.63 * count * dimensions**2 + 12 * dimensions**3
        return min(self.resamples, max(FEWEST, int(FRECHET_BUDGET / cost)))

    def of_frechet(
        self, features: Tensor, reference: Moments, on_draw: Callable[[int, int], None] | None = None
    ) -> tuple[float, ...]:
        """The Fréchet distance of features (B, F) on every resample.

        on_draw: called with the number of resamples done, and of all

        With at least as many samples as dimensions, products are computed in float32 about the mean; that does not
        affect the spread of the draws.
        """
        total = self.frechet_resamples(*features.shape)
        if total == 0:
            return ()
        device = features.device
        if features.shape[1:] != reference.mean.shape:
            raise InputError(f"Features of {features.shape[1]} dimensions, a reference of {len(reference.mean)}.")
        target = Moments(None, reference.mean.to(device), reference.covariance.to(device))
        few = len(features) < features.shape[1]
        distance = _distance_of_few(features, target) if few else _distance_of_many(features, target)
        draws = []
        for number, weight in enumerate(self.weights(len(features), total), 1):
            draws.append(distance(weight.to(device)))
            if on_draw is not None:
                on_draw(number, total)
        return tuple(draws)


def _distance_of_many(features_BF: Tensor, target: Moments) -> Callable[[Tensor], float]:
    """The distance as a function of the counts of the samples, by the covariance of the resample."""
    distance = distance_to(target)
    center = features_BF.double().mean(0)
    offset_BF = (features_BF - center).float()

    def of(weight_B: Tensor) -> float:
        rows = weight_B.nonzero()[:, 0]
        count = int(weight_B.sum())
        weight = weight_B[rows].float()[:, None]
        part = offset_BF[rows]
        mean = (part * weight).sum(0) / count
        part = (part - mean) * weight.sqrt()
        return distance(Moments(count, center + mean.double(), (part.T @ part).double() / (count - 1)))

    return of


def _distance_of_few(features_BF: Tensor, target: Moments) -> Callable[[Tensor], float]:
    """The distance as a function of the counts, for fewer samples than dimensions: matrices of at most (B, B).

    With the centred resample X, C = X^T X / (n - 1), and C times the target's covariance T has the eigenvalues of
    X T X^T / (n - 1), but for zeros.
    """
    offset_BF = features_BF.double() - target.mean
    gram_BB, cross_BB = offset_BF @ offset_BF.T, offset_BF @ target.covariance @ offset_BF.T
    trace = target.covariance.trace()

    def of(weight_B: Tensor) -> float:
        count = int(weight_B.sum())
        share_B = weight_B.double() / count
        squared = share_B @ gram_BB @ share_B  # of the distance of the means
        root_B = weight_B.double().sqrt()
        centered = torch.eye(len(share_B), dtype=torch.float64, device=share_B.device) - share_B
        product = root_B[:, None] * (centered @ cross_BB @ centered.T) * root_B / (count - 1)
        own = (weight_B * gram_BB.diagonal()).sum() - count * squared
        roots = torch.linalg.eigvalsh(product).clamp_min(0).sqrt().sum()
        return max(0.0, (squared + own / (count - 1) + trace - 2 * roots).item())

    return of
