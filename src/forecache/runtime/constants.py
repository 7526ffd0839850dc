"""A plan's constants on the device: corrections, weights of gates, random scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from forecache.errors import RunError
from forecache.models.blocks import Gate
from forecache.plan.ops import Shift
from forecache.runtime.program import SkippedSpan
from forecache.runtime.tokens import random_scores


def times(gate: Gate, weight: float | Tensor) -> Gate:
    """A gate, or one gate a stream, times a weight, in the gate's dtype."""
    return tuple(_times(part, weight) for part in gate) if isinstance(gate, tuple) else _times(gate, weight)


def _times(gate: Tensor | float, weight: float | Tensor) -> Tensor | float:
    if not isinstance(gate, Tensor) or not isinstance(weight, Tensor):
        return gate * weight
    return (gate.to(torch.promote_types(gate.dtype, torch.float32)) * weight).to(gate.dtype)


class DeviceConstants:
    """A table of a plan's constants, each moved once a device and dtype.

    What is made in inference mode serves outside of it, too.
    """

    def __init__(self, constants: Mapping[str, Tensor]) -> None:
        self._constants = constants
        self._sums: dict[tuple[Shift, torch.device, torch.dtype, torch.Size], Tensor] = {}
        self._gate_weights: dict[tuple[SkippedSpan, torch.device], tuple[Tensor, Tensor]] = {}
        self._span_shifts: dict[
            tuple[SkippedSpan, torch.device, torch.dtype, torch.Size], tuple[Tensor, Tensor] | None
        ] = {}
        self._random: dict[tuple[tuple[int, ...], int, torch.device], Tensor] = {}
        self._weights: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}

    def weighted_sum(self, terms: Shift, like: Tensor) -> Tensor:
        """The weighted sum of these constants, for a feature (B, N, D) like this one.

        Raises RunError if the model's features have another shape than the constants.
        """
        key = terms, like.device, like.dtype, like.shape[1:]
        if key not in self._sums:
            with torch.inference_mode(False):
                parts = [self._fitting(name, like).mul(weight) for name, weight in terms]
                total = torch.stack(torch.broadcast_tensors(*parts)).sum(0)
                self._sums[key] = total.to(like.device, like.dtype)
        return self._sums[key]

    def _fitting(self, name: str, feature: Tensor) -> Tensor:
        constant = self._constants[name]
        if constant.shape not in (feature.shape[1:], feature.shape[-1:]):
            raise RunError(
                f"The correction {name} is for features of shape {tuple(constant.shape)}, the model gives "
                f"{tuple(feature.shape[1:])}: calibrate at this size, or make the plan with per='channel'."
            )
        return constant

    def weighted_gates(self, span: SkippedSpan, gates: Sequence[Gate] | Tensor) -> Iterable[Gate]:
        """One gate for every feature of the span, times the weight of the feature, in turn; gates: one a branch."""
        if not isinstance(gates, Tensor):
            return (times(gates[branch], weight) for branch, weight in zip(span.branches, span.weights, strict=True))
        key = span, gates.device
        if key not in self._gate_weights:
            shape = (-1, *[1] * (gates.ndim - 1))
            with torch.inference_mode(False):
                weights = torch.tensor(span.weights, device=gates.device).view(shape)
                index = torch.tensor(span.branches, device=gates.device, dtype=torch.long)
                self._gate_weights[key] = index, weights
        index, weights = self._gate_weights[key]
        return (gates.index_select(0, index) * weights).to(gates.dtype).unbind(0)

    def gated_shifts(self, span: SkippedSpan, gates: Tensor, like: Tensor) -> Tensor | None:
        """The sum of a span's gated shifts for a stream (B, N, D) like this one; None if one has a value per token."""
        key = span, like.device, like.dtype, like.shape[1:]
        if key not in self._span_shifts:
            parts = [self.weighted_sum(span.ops[branch].shift, like) for branch in span.shifted]
            per_channel = all(part.ndim == 1 for part in parts)
            with torch.inference_mode(False):
                index = torch.tensor(span.shifted, device=like.device)
                self._span_shifts[key] = (index, torch.stack(parts)[:, None, None]) if per_channel else None
        known = self._span_shifts[key]
        return None if known is None else (gates.index_select(0, known[0]) * known[1]).sum(0)

    def random(self, seed: tuple[int, ...], like: Tensor) -> Tensor:
        """Random scores (1, N) for the tokens of a feature (B, N, D) like this one."""
        key = seed, like.shape[1], like.device
        if key not in self._random:
            with torch.inference_mode(False):
                self._random[key] = random_scores(seed, like.shape[1]).to(like.device)
        return self._random[key]

    def weights(self, values: tuple[float, ...], device: torch.device) -> Tensor:
        """Weights as a float32 tensor (len(values),)."""
        key = values, device
        if key not in self._weights:
            with torch.inference_mode(False):
                self._weights[key] = torch.tensor(values, dtype=torch.float32, device=device)
        return self._weights[key]
