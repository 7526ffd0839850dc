"""The record of an uncached run: the model's calls, the scheduler's steps, and how one follows from the other.

B samples of a batch, P parts of a step's model outputs: the halves of a guidance pair, or the calls of one step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from forecache.errors import InputError
from forecache.models.arguments import Arguments

TOLERANCE = 1e-3
"""Largest share of a prediction that guidance may leave unexplained, in single precision."""


@dataclass
class StepRecord:
    """One step of the scheduler.

    calls: the arguments of the model's calls before it.
    outputs: what they gave out, first tensors.
    timestep: that the scheduler was given.
    sample: before the step.
    prediction: what the scheduler was given as the model's output.
    """

    calls: list[Arguments]
    outputs: list[Tensor]
    timestep: Any
    sample: Tensor
    prediction: Tensor

    def guidance(self) -> list[float]:
        """The weight of every part in the prediction, by least squares; InputError if they do not explain it."""
        columns = torch.stack([part.double().flatten() for part in self.parts(self.outputs)], 1)
        target = self.prediction.double().flatten()
        weights = torch.linalg.lstsq(columns, target[:, None]).solution[:, 0]
        if not float((columns @ weights - target).norm()) <= TOLERANCE * float(target.norm()):
            raise InputError(
                "The scheduler is given something else than a weighted sum of the model's outputs, such as guidance "
                "that is rescaled or projected, or that changes some channels alone: gains cannot be measured for it."
            )
        return weights.tolist()

    def parts(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The parts of model outputs, each of the prediction's shape; a learned variance is left out."""
        rows, channels = self.prediction.shape[:2]
        parts = []
        for output in outputs:
            if len(output) % rows or output.shape[1] < channels:
                raise InputError(
                    f"The model gives out {tuple(output.shape)} for a prediction of {tuple(self.prediction.shape)}: "
                    "gains are measured for models whose outputs have the rows of the samples, or of guidance pairs."
                )
            parts += list(output[:, :channels].split(rows))
        return parts


@dataclass
class Run:
    """The record of a run.

    steps: one for each step of the scheduler.
    settings: positional and keyword arguments of the scheduler's ``set_timesteps``.
    scheduler: the one that ran.
    last: the last sample.
    """

    steps: list[StepRecord] = field(default_factory=list)
    settings: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    scheduler: Any = None
    last: Tensor = field(default_factory=lambda: torch.empty(0))


@contextmanager
def recording(model: nn.Module, kind: type[Any]) -> Iterator[Run]:
    """The record of the run in this block. model: the transformer. kind: the class of the scheduler."""
    run, calls, outputs = Run(), [], []

    def called(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output.sample
        calls.append(Arguments(args, kwargs))
        outputs.append(first.detach().clone())

    step, set_timesteps = kind.step, kind.set_timesteps

    def stepping(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        run.steps.append(
            StepRecord(calls[:], outputs[:], timestep, sample.detach().clone(), model_output.detach().clone())
        )
        calls.clear()
        outputs.clear()
        moved = step(scheduler, model_output, timestep, sample, *args, **kwargs)
        run.last = (moved[0] if isinstance(moved, tuple) else moved.prev_sample).detach().clone()
        return moved

    def setting(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        run.settings, run.scheduler = (args, kwargs), scheduler
        return set_timesteps(scheduler, *args, **kwargs)

    hook = model.register_forward_hook(called, with_kwargs=True)
    kind.step, kind.set_timesteps = stepping, setting
    try:
        yield run
    finally:
        hook.remove()
        kind.step, kind.set_timesteps = step, set_timesteps
