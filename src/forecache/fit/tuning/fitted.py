"""A forecast whose weights are least squares on the features that a tuning measured (ours).

S sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from forecache.fit.tuning.gram import Array, Gram
from forecache.parts.forecasts import Taylor, paid_back
from forecache.parts.grid import Site


class Fitted:
    """The weights of the last computed features that come closest to the feature, site by site and step by step.

    order: it reads order + 1 features, as a Taylor forecast of that order does; Taylor's weights are the prior where
        the samples do not decide.
    strength: share of the error of the last estimates that is paid back on top, as in `parts.forecasts.Feedback`, 0 to
        1; `error` is without it.
    centred: fit the features less their averages, for estimates whose averages are corrected (`parts.corrections
        .Drift`). The weights are then free, and sum to less than one where the feature cannot be foreseen, as in any
        regression. Otherwise they sum to one, which leaves the averages about where they are.
    """

    def __init__(self, gram: Gram, order: int = 2, strength: float = 0.0, centred: bool = False) -> None:
        self.order, self.strength, self.centred = order, strength, centred
        self._gram = gram
        self._index = {site: index for index, site in enumerate(gram.sites)}
        self._solutions: dict[tuple[int, tuple[int, ...]], tuple[Array, float]] = {}

    def reads(self, step: int, computed: Sequence[int], site: Site) -> Mapping[int, float]:
        sources = tuple(computed[: self.order + 1])
        weights, _ = self._solution(step, sources)
        reads = dict(zip(sources, weights[self._index[site]].tolist(), strict=True))
        return paid_back(reads, computed, self.strength) if self.strength else reads

    def error(self, step: int, computed: Sequence[int]) -> float:
        """The squared error that is left, summed over all sites."""
        return self._solution(step, tuple(computed[: self.order + 1]))[1]

    def _solution(self, step: int, sources: tuple[int, ...]) -> tuple[Array, float]:
        """Weights (S, len(sources)) and error of an estimate."""
        if (step, sources) not in self._solutions:
            self._solutions[step, sources] = self._solve(step, sources)
        return self._solutions[step, sources]

    def _solve(self, step: int, sources: tuple[int, ...]) -> tuple[Array, float]:
        steps = [step, *sources]
        gram = (self._gram.centred if self.centred else self._gram.matrices)[:, steps][:, :, steps]
        # every feature as its change since the newest computed one (row 1), which itself counts if weights are free
        change: Array = np.eye(len(steps))
        change[:, 1] -= 1
        change[1, 1] = float(self.centred)
        changes = change @ gram @ change.T
        prior: Array = np.array([0.0, *Taylor(self.order).weights(step, sources)[1:]])
        square, right = changes[:, 1:, 1:], changes[:, 1:, 0]
        ridge = (1e-6 * square + 1e-30) * np.eye(len(sources))
        rest = right - square @ prior
        solution = prior + np.linalg.solve(square + ridge, rest[..., None])[..., 0]
        newest = 1 + solution[:, :1] - solution[:, 1:].sum(1, keepdims=True)
        weights = np.concatenate([newest, solution[:, 1:]], 1)
        residual = np.concatenate([np.ones((len(weights), 1)), -weights], 1)
        return weights, max(0.0, float(np.einsum("si,sij,sj->", residual, gram, residual)))
