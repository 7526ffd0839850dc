"""A plan's constants, weights and random scores where and as the features are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from forecache.errors import RunError
from forecache.models.blocks import Gate
from forecache.plan.folding import Shift
from forecache.runtime import selection
from forecache.runtime.program import Run


def times(gate: Gate, weight: float | Tensor) -> Gate:
    """A gate, or those of several streams, times a number; in the gate's dtype."""
    return tuple(_times(each, weight) for each in gate) if isinstance(gate, tuple) else _times(gate, weight)


def _times(gate: Tensor | float, weight: float | Tensor) -> Tensor | float:
    if not isinstance(gate, Tensor) or not isinstance(weight, Tensor):
        return gate * weight
    return (gate.to(torch.promote_types(gate.dtype, torch.float32)) * weight).to(gate.dtype)


class Placed:
    """What a plan holds besides cells, moved once a device and dtype.

    A constant of another shape is refused. What is made in inference mode serves outside of it, too. cache_dtype,
    cache_device: what features are kept in and where, if it is not as and where they are. max_error: how far an
    estimate may lie from the newest feature, if there is a limit.
    """

    def __init__(
        self,
        constants: Mapping[str, Tensor],
        cache_dtype: torch.dtype | None = None,
        cache_device: torch.device | None = None,
        max_error: float | None = None,
    ) -> None:
        self.cache_dtype, self.cache_device, self.max_error = cache_dtype, cache_device, max_error
        self._constants = constants
        self._placed: dict[tuple[Shift, torch.device, torch.dtype, torch.Size], Tensor] = {}
        self._terms: dict[tuple[Run, torch.device], tuple[Tensor, Tensor]] = {}
        self._shifts: dict[tuple[Run, torch.device, torch.dtype, torch.Size], tuple[Tensor, Tensor] | None] = {}
        self._random: dict[tuple[tuple[int, ...], int, torch.device], Tensor] = {}
        self._numbers: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}

    def like(self, names: Shift, feature: Tensor) -> Tensor:
        """The sum of these constants, each times its share, for features like this one, (B, N, D)."""
        key = names, feature.device, feature.dtype, feature.shape[1:]
        if key not in self._placed:
            with torch.inference_mode(False):
                parts = [self._fitting(name, feature).mul(share) for name, share in names]
                total = torch.stack(torch.broadcast_tensors(*parts)).sum(0)
                self._placed[key] = total.to(feature.device, feature.dtype)
        return self._placed[key]

    def _fitting(self, name: str, feature: Tensor) -> Tensor:
        constant = self._constants[name]
        if constant.shape not in (feature.shape[1:], feature.shape[-1:]):
            raise RunError(
                f"The correction {name} is for features of shape {tuple(constant.shape)}, the model gives "
                f"{tuple(feature.shape[1:])}: calibrate at this size, or make the plan with per='channel'."
            )
        return constant

    def weighted(self, run: Run, gates: Sequence[Gate] | Tensor) -> Sequence[Gate]:
        """The gates of a run times the weights of its features, one a feature."""
        if not isinstance(gates, Tensor):
            return [times(gates[branch], weight) for branch, weight in zip(run.index, run.weights, strict=True)]
        key = run, gates.device
        if key not in self._terms:
            shape = (-1, *[1] * (gates.ndim - 1))
            with torch.inference_mode(False):
                weights = torch.tensor(run.weights, device=gates.device).view(shape)
                self._terms[key] = torch.tensor(run.index, device=gates.device, dtype=torch.long), weights
        index, weights = self._terms[key]
        return (gates.index_select(0, index) * weights).to(gates.dtype).unbind(0)

    def offset(self, run: Run, gates: Tensor, like: Tensor) -> Tensor | None:
        """The sum of a run's gated shifts for a stream like this one, (B, 1, D); None if one has a value per token."""
        key = run, like.device, like.dtype, like.shape[1:]
        if key not in self._shifts:
            parts = [self.like(run.ops[branch].shift, like) for branch in run.shifted]
            channels = all(part.ndim == 1 for part in parts)
            with torch.inference_mode(False):
                index = torch.tensor(run.shifted, device=like.device)
                self._shifts[key] = (index, torch.stack(parts)[:, None, None]) if channels else None
        found = self._shifts[key]
        return None if found is None else (gates.index_select(0, found[0]) * found[1]).sum(0)

    def random(self, seed: tuple[int, ...], feature: Tensor) -> Tensor:
        """Random scores (1, N) for the tokens of a feature (B, N, D)."""
        key = seed, feature.shape[1], feature.device
        if key not in self._random:
            with torch.inference_mode(False):
                self._random[key] = selection.random_scores(seed, feature.shape[1]).to(feature.device)
        return self._random[key]

    def numbers(self, values: tuple[float, ...], device: torch.device) -> Tensor:
        """Numbers as a float32 tensor."""
        key = values, device
        if key not in self._numbers:
            with torch.inference_mode(False):
                self._numbers[key] = torch.tensor(values, dtype=torch.float32, device=device)
        return self._numbers[key]
