"""Decisions at run time: a decider is asked once a step whether the step is computed or skipped.

A decider is a frozen dataclass of thresholds. ``begin()`` gives the state of a generation, and ``decide(state, now)`` a
decision and the next state; neither keeps anything of its own, so that the state has one owner and dies with its
generation. Bounds (`forecache.parts.bounds`) belong to the plan: they say beforehand at which steps it has no choice.

B batch, N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from forecache.errors import PlanError
from forecache.parts.bounds import Decision


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


@dataclass(frozen=True)
class Now:
    """A step that is to be decided about.

    step: its number, from 0
    num_steps: model calls of the run
    computed: the steps that were computed so far, oldest first
    forced: what the bounds leave; None for a free choice
    sigma: share of noise in the sample, 0 to 1; None if it is not known
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
    sigma: float | None = None
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


def _change(now: Tensor, before: Tensor) -> Tensor:
    """The mean absolute difference of two tensors as a share of the mean absolute value of the second."""
    return (now - before).abs().mean() / before.abs().mean()


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
            decision = Decision.SKIP if bool(_change(residual_BND, state) <= self.threshold) else Decision.COMPUTE
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
        change = _change(now.modulated, before)
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
                rate = (now.output - computed_v).abs().mean() / (before - computed_x).abs().mean()
            computed_x, computed_v = before, now.output
        if now.sample is None or computed_v is None or rate is None:
            decision = now.forced or Decision.COMPUTE
        elif now.forced is Decision.COMPUTE:
            decision = Decision.COMPUTE
        else:
            total = total + rate * ((now.sample - before).abs().mean() / computed_v.abs().mean())
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
        total = total + change_B.mean()
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
        total = total + (_change(now.after, y_BND) - _change(now.before, x_BND)).abs()
        decision = _unless_forced(now, total < self.threshold)
        return decision, (now.before, now.after, 0.0 if decision is Decision.COMPUTE else total)


@dataclass(frozen=True)
class Followed:
    """Follows a pattern of steps, and computes more of them where a run changes faster than it was calibrated (ours).

    The run's ratio is mean|v_c - v_c'| / mean|v_c| of the model's outputs at its last two computed steps c' < c, over
    the calibrated one of these two steps; 1 before there are two. A step that the pattern skips is skipped while ratio
    * changes(c, step) <= factor * tolerance, with the tolerance the largest calibrated change that the pattern skips. A
    run whose ratio never exceeds the factor follows the pattern exactly.

    pattern: of the plan, "#" computed and "." skipped
    changes: calibrated mean|v_t - v_s| / mean|v_t| of all steps s < t: (0, 1), (0, 2), ..., (1, 2), ...
    factor: the largest ratio that changes nothing, over 0
    """

    pattern: str
    changes: tuple[float, ...]
    factor: float = 1.5

    def __post_init__(self) -> None:
        steps = len(self.pattern)
        if not self.pattern.startswith("#") or set(self.pattern) - {"#", "."}:
            raise PlanError(f"A pattern starts with '#' and goes on with '#' and '.'; {self.pattern!r} does not.")
        if len(self.changes) != steps * (steps - 1) // 2 or not all(0 <= change < math.inf for change in self.changes):
            raise PlanError(
                f"Calibrated changes of {steps} steps are {steps * (steps - 1) // 2} numbers from 0 on, and "
                f"{len(self.changes)} were given: measure them for this number of steps, forecache.fit.measure_rules."
            )
        if not 0 < self.factor < math.inf:
            raise PlanError(f"The factor of a drift is over 0, such as 1.5; {self.factor!r} was given.")

    @property
    def sees(self) -> Sees:
        return Sees(output=True)

    def change(self, earlier: int, later: int) -> float:
        """The calibrated change of the output between two steps."""
        steps = len(self.pattern)
        return self.changes[earlier * steps - earlier * (earlier + 1) // 2 + later - earlier - 1]

    @property
    def tolerance(self) -> float:
        """The largest calibrated change over which the pattern skips."""
        newest, most = 0, 0.0
        for step, sign in enumerate(self.pattern):
            if sign == "#":
                newest = step
            else:
                most = max(most, self.change(newest, step))
        return most

    def begin(self) -> tuple[Tensor | None, int, Tensor | float]:
        """The output at the newest computed step but one that was looked at, that step, and the run's ratio."""
        return None, 0, 1.0

    def decide(self, state: tuple[Tensor | None, int, Tensor | float], now: Now) -> tuple[Decision, Any]:
        before, earlier, ratio = state
        newest = now.computed[-1] if now.computed else 0
        if now.output is not None and (before is None or newest != earlier):
            calibrated = self.change(earlier, newest) if before is not None else 0.0
            if before is not None and calibrated > 0:
                ratio = (now.output - before).abs().mean() / now.output.abs().mean() / calibrated
            before, earlier = now.output, newest
        state = before, earlier, ratio
        if now.forced is not None or self.pattern[now.step] == "#":
            return now.forced or Decision.COMPUTE, state
        expected = ratio * self.change(newest, now.step)
        return (Decision.SKIP if bool(expected <= self.factor * self.tolerance) else Decision.COMPUTE), state


DECIDERS: dict[str, type[Any]] = {
    "first_blocks": FirstBlocks,
    "modulated_input": ModulatedInput,
    "transformation_rate": TransformationRate,
    "filtered_input": FilteredInput,
    "probe": Probe,
    "followed": Followed,
}
"""The deciders that a plan file can hold, by name."""
