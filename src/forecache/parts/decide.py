"""Decisions at run time: a decider is asked once a step whether the step is computed or skipped.

A decider is a frozen dataclass of thresholds. ``begin()`` gives the state of a generation, and ``decide(state, now)`` a
decision and the next state; neither keeps anything of its own, so that the state has one owner and dies with its
generation. Bounds (`forecache.parts.bounds`) belong to the plan: they say beforehand at which steps it has no choice.

B batch, N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forecache.errors import PlanError
from forecache.parts.bounds import Decision
from forecache.parts.forecasts import Forecast, Reuse, of_computed
from forecache.parts.grid import Site

OUTPUT = Site("output", 0, "")
"""The model's output as a site, for rules that forecast it."""
SMALLEST = 1e-30
"""The smallest mean square that is divided by."""


@dataclass(frozen=True)
class Sees:
    """What a decider looks at; what is not asked for is not kept.

    sample: whether it sees the model's input
    output: whether it sees the model's output at the newest computed step
    modulated: whether it sees the input of the first block's attention, which is normed and modulated
    head: number of first blocks that are computed at every step, and behind which the decision is made
    tail: number of last blocks that are computed at every step
    sigma: whether it needs the noise level of the step
    """

    sample: bool = False
    output: bool = False
    modulated: bool = False
    head: int = 0
    tail: int = 0
    sigma: bool = False

    @property
    def inside(self) -> bool:
        """Whether the decision is made among the blocks, and not before the model is called."""
        return self.modulated or self.head > 0


def alone(means: Tensor) -> Tensor:
    """The means (...) themselves, where one process has all of a request."""
    return means


@dataclass(frozen=True)
class Now:
    """A step that is to be decided about.

    step: its number, from 0
    num_steps: model calls of the run
    computed: the steps that were computed so far, oldest first
    forced: what the bounds leave; None for a free choice
    over: turns means over what this process has of a request into means over all of it, where several processes sample
        it together, such as halves of its tokens; by default there is one
    sigma: share of noise in the sample, 0 to 1; None if it is not known
    forecast: of the skipped steps
    sample: the model's input (B, ...)
    output: the model's output (B, ...) at the newest computed step; None before there is one
    modulated: the normed and modulated input (B, N, D) of the first block's attention
    before, after: the first stream (B, N, D) in front of the first block and behind the first ``Sees.head``

    What `Sees` does not ask for is None. Tensors belong to the decider, which may keep them in its state.
    """

    step: int
    num_steps: int
    computed: Sequence[int] = ()
    forced: Decision | None = None
    over: Callable[[Tensor], Tensor] = alone
    sigma: float | None = None
    forecast: Forecast = Reuse()  # noqa: RUF009 - it is frozen
    sample: Tensor | None = None
    output: Tensor | None = None
    modulated: Tensor | None = None
    before: Tensor | None = None
    after: Tensor | None = None


class Decider(Protocol):
    """A rule that decides step by step; a frozen dataclass of numbers, so that a file can hold it."""

    @property
    def sees(self) -> Sees:
        """What it looks at."""
        ...

    def begin(self) -> Any:
        """The state of a new generation."""
        ...

    def decide(self, state: Any, now: Now) -> tuple[Decision, Any]:
        """The decision about a step, which is ``now.forced`` where that is not None, and the state after it.

        It is asked at every step in turn, forced ones included, and reads at most one number off a device.
        """
        ...


# ---- deciders --------------------------------------------------------------------------------------------------------


def _change(now: Tensor, before: Tensor, over: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean absolute difference of two tensors as a share of the mean absolute value of the second."""
    return _ratio((now - before).abs().mean(), before.abs().mean(), over)


def _ratio(mean: Tensor, other: Tensor, over: Callable[[Tensor], Tensor]) -> Tensor:
    """The ratio of two means over all of a request."""
    if over is alone:
        return mean / other
    mean, other = over(torch.stack([mean, other])).unbind()
    return mean / other


def _norms(difference: Tensor, whole: Tensor, over: Callable[[Tensor], Tensor]) -> Tensor:
    """The ratio of two L2 norms over all of a request."""
    if over is alone:
        return difference.norm() / whole.norm()
    return _ratio(difference.square().mean(), whole.square().mean(), over).sqrt()


def _threshold(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise PlanError(f"A threshold is a number from 0 on, and 0 computes every step; {value!r} was given.")


def _blocks(value: object, least: int, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PlanError(f"{what} is a number of blocks from {least} on; {value!r} was given.")


def _unless_forced(now: Now, skips: Tensor | bool) -> Decision:
    """The decision, for which a device is waited for only where there is a choice."""
    if now.forced is not None:
        return now.forced
    return Decision.SKIP if bool(skips) else Decision.COMPUTE


@dataclass(frozen=True)
class FirstBlocks:
    """Skips while what the first blocks add differs little from what they added at the last computed step.

    The signal is mean|r - r_c| / mean|r_c|, with r the residual of the first ``head`` blocks (FBCache, DBCache).

    threshold: largest change at which a step is skipped
    head: number of first blocks that always run
    tail: number of last blocks that always run
    """

    threshold: float
    head: int = 1
    tail: int = 0

    def __post_init__(self) -> None:
        _threshold(self.threshold)
        _blocks(self.head, 1, "head")
        _blocks(self.tail, 0, "tail")

    @property
    def sees(self) -> Sees:
        return Sees(head=self.head, tail=self.tail)

    def begin(self) -> Tensor | None:
        """The residual of the last computed step."""
        return None

    def decide(self, state: Tensor | None, now: Now) -> tuple[Decision, Tensor | None]:
        if now.before is None or now.after is None:  # nothing is seen in the first call of an unknown model
            return now.forced or Decision.COMPUTE, state
        residual_BND = now.after - now.before
        if now.forced is not None or state is None or self.threshold == 0:
            decision = now.forced or Decision.COMPUTE
        else:
            decision = (
                Decision.SKIP if bool(_change(residual_BND, state, now.over) <= self.threshold) else Decision.COMPUTE
            )
        return decision, residual_BND if decision is Decision.COMPUTE else state


@dataclass(frozen=True)
class ModulatedInput:
    """Skips while the accumulated change of the first block's modulated input is small (TeaCache, arXiv 2411.19108).

    A += p(mean|m_t - m_{t-1}| / mean|m_{t-1}|) with a polynomial p; a step is skipped while A < threshold, and
    computing one sets A to 0.

    threshold: of A
    coefficients: of p, the highest power first; (1, 0) [default] leaves the change as it is
    """

    threshold: float
    coefficients: tuple[float, ...] = (1.0, 0.0)

    def __post_init__(self) -> None:
        _threshold(self.threshold)
        if not self.coefficients or not all(math.isfinite(number) for number in self.coefficients):
            raise PlanError(f"The coefficients of a polynomial are finite numbers; they are {self.coefficients!r}.")

    @property
    def sees(self) -> Sees:
        return Sees(modulated=True)

    def begin(self) -> tuple[Tensor | None, Tensor | float]:
        """The modulated input of the step before, and A."""
        return None, 0.0

    def decide(self, state: tuple[Tensor | None, Tensor | float], now: Now) -> tuple[Decision, Any]:
        before, total = state
        if now.forced is Decision.COMPUTE or before is None or now.modulated is None:
            return now.forced or Decision.COMPUTE, (now.modulated, 0.0)
        change = _change(now.modulated, before, now.over)
        value = torch.zeros_like(change)
        for coefficient in self.coefficients:
            value = value * change + coefficient
        total = total + value
        decision = _unless_forced(now, self.threshold > 0 and total < self.threshold)  # p may be below 0
        return decision, (now.modulated, 0.0 if decision is Decision.COMPUTE else total)


@dataclass(frozen=True)
class TransformationRate:
    """Skips while the accumulated change that is expected of the model's output is small (EasyCache, arXiv 2507.02860).

    k = mean|v_c - v_c'| / mean|x_c - x_c'| at the last two computed steps c and c'; E += k mean|x_t - x_{t-1}| /
    mean|v_c|. A step is skipped while E < threshold, and computing one sets E to 0.

    threshold: of E
    """

    threshold: float

    def __post_init__(self) -> None:
        _threshold(self.threshold)

    @property
    def sees(self) -> Sees:
        return Sees(sample=True, output=True)

    def begin(self) -> Any:
        """x and v of the newest computed step, x of the step before, k, E."""
        return None, None, None, None, 0.0

    def decide(self, state: Any, now: Now) -> tuple[Decision, Any]:
        computed_x, computed_v, before, rate, total = state
        if now.output is not None and now.computed and now.computed[-1] == now.step - 1:
            if computed_x is not None:
                rate = _ratio((now.output - computed_v).abs().mean(), (before - computed_x).abs().mean(), now.over)
            computed_x, computed_v = before, now.output
        if now.sample is None or computed_v is None or rate is None:
            decision = now.forced or Decision.COMPUTE
        elif now.forced is Decision.COMPUTE:
            decision = Decision.COMPUTE
        else:
            total = total + rate * _ratio((now.sample - before).abs().mean(), computed_v.abs().mean(), now.over)
            decision = _unless_forced(now, total < self.threshold)
        total = 0.0 if decision is Decision.COMPUTE else total
        return decision, (computed_x, computed_v, now.sample, rate, total)


@dataclass(frozen=True)
class FilteredInput:
    """Skips while the accumulated change of the filtered input is small (SeaCache, arXiv 2602.18993).

    The filter lets through what is signal at this noise level: by axis, with frequencies f, the gain is a S / (a^2 S +
    b^2) with S = |f|^-power, a = 1 - sigma and b = sigma, and its mean over all frequencies is 1.

    threshold: of the sum of mean|s_t - s_{t-1}| / mean|s_{t-1}|, of each sample, mean over the batch
    power: of the signal's spectrum: 2 for images, 3 for videos
    """

    threshold: float
    power: float = 2.0

    def __post_init__(self) -> None:
        _threshold(self.threshold)
        if not 0 < self.power < math.inf:
            raise PlanError(f"The power of a spectrum is over 0: 2 for images, 3 for videos; not {self.power!r}.")

    @property
    def sees(self) -> Sees:
        return Sees(sample=True, sigma=True)

    def begin(self) -> tuple[Tensor | None, Tensor | float]:
        """The filtered input of the step before, and the sum."""
        return None, 0.0

    def decide(self, state: tuple[Tensor | None, Tensor | float], now: Now) -> tuple[Decision, Any]:
        before, total = state
        assert now.sample is not None
        assert now.sigma is not None
        filtered = filtered_by_noise(now.sample, now.sigma, self.power)
        if now.forced is Decision.COMPUTE or before is None:
            return now.forced or Decision.COMPUTE, (filtered, 0.0)
        axes = tuple(range(1, filtered.ndim))
        change_B = (filtered - before).abs().mean(axes) / (before.abs().mean(axes) + 1e-16)
        total = total + now.over(change_B.mean())
        decision = _unless_forced(now, total < self.threshold)
        return decision, (filtered, 0.0 if decision is Decision.COMPUTE else total)


def filtered_by_noise(sample: Tensor, sigma: float, power: float) -> Tensor:
    """A sample (B, C, [T,] H, W) with the gains of `FilteredInput` on its frequencies."""
    axes = tuple(range(2, sample.ndim))
    wide = sample.contiguous().to(torch.promote_types(sample.dtype, torch.float32))
    noise = max(1e-6, min(1.0 - 1e-6, sigma))
    gain = torch.ones((), device=sample.device)
    for axis in axes:
        frequencies = torch.fft.fftfreq(sample.shape[axis], device=sample.device, dtype=torch.float32)
        spectrum = 1.0 / (frequencies.abs().pow(power) + 1e-16)
        own = (1 - noise) * spectrum / ((1 - noise) ** 2 * spectrum + noise**2 + 1e-16)
        gain = gain * own.reshape([-1 if other == axis else 1 for other in range(1, sample.ndim)])
    gain = gain / gain.mean()
    return torch.fft.ifftn(torch.fft.fftn(wide, dim=axes) * gain, dim=axes).real.to(sample.dtype)


@dataclass(frozen=True)
class Probe:
    """Skips while the first blocks change the stream as before (DiCache, arXiv 2508.17356).

    E += |mean|y_t - y_{t-1}| / mean|y_{t-1}| - mean|x_t - x_{t-1}| / mean|x_{t-1}||, with x the stream in front of the
    blocks and y behind the first ``depth`` of them; a step is skipped while E < threshold, and computing one sets E to
    0.

    threshold: of E
    depth: number of first blocks, which always run
    """

    threshold: float
    depth: int = 1

    def __post_init__(self) -> None:
        _threshold(self.threshold)
        _blocks(self.depth, 1, "depth")

    @property
    def sees(self) -> Sees:
        return Sees(head=self.depth)

    def begin(self) -> Any:
        """x and y of the step before, and E."""
        return None, None, 0.0

    def decide(self, state: Any, now: Now) -> tuple[Decision, Any]:
        x_BND, y_BND, total = state
        if now.forced is Decision.COMPUTE or x_BND is None or now.before is None or now.after is None:
            return now.forced or Decision.COMPUTE, (now.before, now.after, 0.0)
        total = total + (_change(now.after, y_BND, now.over) - _change(now.before, x_BND, now.over)).abs()
        decision = _unless_forced(now, total < self.threshold)
        return decision, (now.before, now.after, 0.0 if decision is Decision.COMPUTE else total)


@dataclass(frozen=True)
class Followed:
    """Follows a pattern of steps, and computes earlier where the forecast errs more than it was calibrated to (ours).

    At every computed step c the run's own error is known, |v_c - e_c| / |v_c|, with v the model's output and e_c what
    the plan's forecast makes of the outputs at the computed steps before c (L2 norms). The run's ratio is this error
    over the calibrated one of the same forecast from the same steps; 1 before there are two computed steps.

    A step that the pattern skips is computed iff ratio * error(step) > factor * tolerance, with the calibrated error of
    the forecast from the steps that were computed, and the tolerance the largest one that the pattern itself accepts in
    this gap. If ``moves``, a step that was computed beyond the pattern takes the place of the pattern's next one, which
    is skipped unless the same is true there. A run whose ratio never exceeds the factor follows the pattern exactly.

    pattern: of the plan, "#" computed and "." skipped
    squares: calibrated mean of (v_t - v_s)^2 of all steps s < t, and of v_t^2 where s = t, of any scale: (0, 0), (0,
        1), ..., (1, 1), (1, 2), ...
    factor: the largest ratio that changes nothing, at least 1
    moves: whether the number of computed steps stays that of the pattern
    """

    pattern: str
    squares: tuple[float, ...]
    factor: float = 1.5
    moves: bool = False

    def __post_init__(self) -> None:
        steps = len(self.pattern)
        if not self.pattern.startswith("#") or set(self.pattern) - {"#", "."}:
            raise PlanError(f"A pattern starts with '#' and goes on with '#' and '.'; {self.pattern!r} does not.")
        if len(self.squares) != steps * (steps + 1) // 2 or not all(0 <= one < math.inf for one in self.squares):
            raise PlanError(
                f"Calibrated squares of {steps} steps are {steps * (steps + 1) // 2} numbers from 0 on, and "
                f"{len(self.squares)} were given: calibrate for this number of steps, forecache.calibrate."
            )
        if not 1 <= self.factor < math.inf:
            raise PlanError(f"The factor of a drift is at least 1, such as 1.5; {self.factor!r} was given.")

    @property
    def sees(self) -> Sees:
        return Sees(output=True)

    @cached_property
    def _differences(self) -> NDArray[np.float64]:
        """(T, T): mean squares of differences; 0 where s = t."""
        steps = len(self.pattern)
        square = np.zeros((steps, steps))
        square[np.triu_indices(steps)] = self.squares
        square = square + np.triu(square, 1).T
        return square - np.diag(np.diag(square))

    @cached_property
    def _sizes(self) -> NDArray[np.float64]:
        """(T,): mean squares of the outputs."""
        ends = np.cumsum([0, *range(len(self.pattern), 1, -1)])
        return np.asarray(self.squares)[ends]

    @cached_property
    def _tolerances(self) -> dict[tuple[Forecast, int], float]:
        return {}

    def error(self, forecast: Forecast, step: int, computed: Sequence[int]) -> float:
        """The calibrated relative error of a forecast at a step. computed: the steps before it, newest first."""
        weights = of_computed(forecast, step, computed, OUTPUT)
        steps, shares = [*weights, step], np.array([*weights.values(), -1.0])
        square = shares.sum() * (shares @ self._sizes[steps])
        square -= shares @ self._differences[np.ix_(steps, steps)] @ shares / 2
        return math.sqrt(max(0.0, float(square)) / max(float(self._sizes[step]), SMALLEST))

    def tolerance(self, forecast: Forecast, step: int) -> float:
        """The largest calibrated error that the pattern accepts in the gap of a step; of the gap before a computed one.

        0 where there is no gap.
        """
        if (forecast, step) not in self._tolerances:
            start = self.pattern.rfind("#", 0, step)
            end = self.pattern.find("#", start + 1)
            gap = range(start + 1, end if end >= 0 else len(self.pattern))
            computed = [number for number in range(start, -1, -1) if self.pattern[number] == "#"]
            most = max((self.error(forecast, skipped, computed) for skipped in gap), default=0.0)
            self._tolerances[forecast, step] = most
        return self._tolerances[forecast, step]

    def begin(self) -> tuple[Mapping[int, Tensor], Tensor | float]:
        """The outputs at the computed steps that were looked at, and the run's ratio."""
        return {}, 1.0

    def decide(self, state: tuple[Mapping[int, Tensor], Tensor | float], now: Now) -> tuple[Decision, Any]:
        outputs, ratio = state
        newest = now.computed[-1] if now.computed else 0
        if now.output is not None and newest not in outputs:
            earlier = sorted(outputs, reverse=True)
            expected = self.error(now.forecast, newest, earlier) if earlier else 0.0
            if expected > 0:
                estimate = torch.zeros_like(now.output)
                for source, weight in of_computed(now.forecast, newest, earlier, OUTPUT).items():
                    estimate.add_(outputs[source], alpha=weight)
                ratio = _norms(now.output - estimate, now.output, now.over) / expected
            outputs = {**outputs, newest: now.output}
        state = outputs, ratio
        is_planned = self.pattern[now.step] == "#"
        spent = len(now.computed) - self.pattern.count("#", 0, now.step)
        if now.forced is not None or (is_planned and not (self.moves and spent > 0)):
            return now.forced or Decision.COMPUTE, state
        expected = self.error(now.forecast, now.step, tuple(reversed(now.computed)))
        drifts = ratio * expected > self.factor * self.tolerance(now.forecast, now.step)
        return (Decision.COMPUTE if bool(drifts) else Decision.SKIP), state


DECIDERS: dict[str, type[Any]] = {
    "first_blocks": FirstBlocks,
    "modulated_input": ModulatedInput,
    "transformation_rate": TransformationRate,
    "filtered_input": FilteredInput,
    "probe": Probe,
    "followed": Followed,
}
"""The deciders that a plan file can hold, by name."""
