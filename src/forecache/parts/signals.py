"""Signals: what rules that decide while a plan runs look at, measured sample by sample in runs without a cache.

M samples, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forecache.errors import StatisticsError

PAIRS = ("outputs", "inputs", "residuals", "squares")
"""Tables of pairs of steps."""
STEPS = ("modulated", "stream", "probe", "filtered", "ratios")
"""Tables of steps."""
DEGREE = 4
"""Of TeaCache's polynomial."""


@dataclass(frozen=True, eq=False)
class Signals:
    """What rules look at, of single samples; in a guidance pair both halves count as one sample, as in a decision.

    Every table is float32 and begins with M. Those of pairs are (M, T (T + 1) / 2), the pairs (0, 0), (0, 1), ...,
    (1, 1), ... of steps s <= t, those of steps (M, T); of a change from the step before, the first entry is 0.

    outputs, inputs, residuals: mean|a_t - a_s| of the model's output and input, and of what the first block adds to the
        stream; mean|a_t| where s = t.
    squares: mean of (v_t - v_s)^2 of the model's output v; of v_t^2 where s = t.
    modulated: mean|m_t - m_{t-1}| / mean|m_{t-1}| of the first attention's normed and modulated input m.
    stream, probe: the same of the stream in front of the first block and behind it.
    filtered: the same of the input, filtered to what is signal at its noise.
    ratios: mean over tokens of |r_t| / |r_{t-1}|, L2 norms of what all blocks add to a token; 1 at the first step.

    tables: by these names; without those that the model does not show. Tensors of more than 65,536 numbers a row are
        looked at in so many of them, always the same ones.
    power: of the spectrum that the input was filtered by (`forecache.seacache`).
    """

    tables: Mapping[str, Tensor]
    power: float = 2.0

    @property
    def num_steps(self) -> int:
        """T, the model calls of a run."""
        count = self.tables["outputs"].shape[1]
        return round(((8 * count + 1) ** 0.5 - 1) / 2)

    @property
    def samples(self) -> tuple[int, ...]:
        """The numbers of the samples that were measured."""
        return tuple(torch.nonzero(self.tables["outputs"][:, 0] > 0).flatten().tolist())

    def steps(self, name: str) -> NDArray[np.float64]:
        """A table of steps, (measured samples, T); StatisticsError where the model does not show it."""
        return self._table(name)

    def pairs(self, name: str) -> NDArray[np.float64]:
        """A table of pairs, (measured samples, T, T), symmetric; StatisticsError where the model does not show it."""
        flat, steps = self._table(name), self.num_steps
        square = np.zeros((len(flat), steps, steps))
        square[:, *np.triu_indices(steps)] = flat
        return square + np.triu(square, 1).transpose(0, 2, 1)

    def _table(self, name: str) -> NDArray[np.float64]:
        if name not in self.tables:
            raise StatisticsError(
                f"The statistics have no {name} of their runs, because the model does not show them: take a rule that "
                "looks at something else, such as easycache."
            )
        if not self.samples:
            raise StatisticsError("The statistics were interrupted before a sample was complete: calibrate again.")
        return self.tables[name][list(self.samples)].double().numpy()

    def polynomial(self) -> tuple[tuple[float, ...], float]:
        """TeaCache's polynomial (arXiv 2411.19108) of degree 4, the highest power first, and its R2.

        By least squares over all samples and steps, from the change of the modulated input to mean|v_t - v_{t-1}| /
        mean|v_{t-1}| of the model's output v. R2 is the share of the variance of the output's changes that it explains.
        """
        outputs, steps = self.pairs("outputs"), range(1, self.num_steps)
        changes = [outputs[:, step - 1, step] / outputs[:, step - 1, step - 1] for step in steps]
        return polynomial(self.steps("modulated")[:, 1:].ravel(), np.stack(changes, axis=1).ravel())

    def magnitude_ratios(self) -> tuple[float, ...]:
        """MagCache's ratio of every step (arXiv 2506.09045), the mean over samples; 1 for the first."""
        return tuple(map(float, self.steps("ratios").mean(0)))

    def output_changes(self) -> tuple[float, ...]:
        """mean|v_t - v_s| / mean|v_t| of the model's output v at all pairs of steps s < t, the mean over samples.

        In the order (0, 1), (0, 2), ..., (1, 2), ...: what `forecache.runtime.Guards` takes as ``changes``.
        """
        outputs = self.pairs("outputs")
        earlier, later = np.triu_indices(self.num_steps, 1)
        return tuple(map(float, (outputs[:, earlier, later] / outputs[:, later, later]).mean(0)))

    def mean_squares(self) -> tuple[float, ...]:
        """The mean over samples of (v_t - v_s)^2 of the model's output, over that of v_t^2 of the samples and steps.

        Of the pairs of steps (0, 0), (0, 1), ..., (1, 1), ... with v_t^2 where s = t: what `forecache.adaptive` needs.
        """
        means = self._table("squares").mean(0)
        own = np.cumsum([0, *range(self.num_steps, 1, -1)])  # places of the pairs (t, t)
        return tuple(map(float, means / means[own].mean()))


def polynomial(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[tuple[float, ...], float]:
    """The polynomial of least squares, the highest power first, and the share of variance that it explains."""
    degree = min(DEGREE, max(0, len(set(x.tolist())) - 1))
    fitted = np.polynomial.Polynomial.fit(x, y, degree).convert()
    coefficients = np.zeros(DEGREE + 1)
    coefficients[: len(fitted.coef)] = fitted.coef
    spread = float(np.square(y - y.mean()).sum())
    missed = float(np.square(y - fitted(x)).sum())
    return tuple(float(number) for number in coefficients[::-1]), 1 - missed / spread if spread else 1.0


def check(tables: Mapping[str, Tensor], steps: int) -> None:
    """Raises ValueError for tables of a file that are not those of signals."""
    if unknown := [name for name in tables if name not in (*PAIRS, *STEPS)]:
        raise ValueError(f"it has unknown signals {', '.join(unknown)}")
    if "outputs" not in tables or not len(tables["outputs"]):
        raise ValueError("its signals have no outputs")
    count = len(tables["outputs"])
    for name, table in tables.items():
        wide = steps * (steps + 1) // 2 if name in PAIRS else steps
        if table.shape != (count, wide) or table.dtype != torch.float32:
            raise ValueError(f"its signals {name} have a shape or dtype that does not belong to {steps} steps")
        if not bool(table.isfinite().all()) or float(table.min()) < 0:
            raise ValueError(f"its signals {name} are not numbers from 0 on")
