"""The linear response of samplers: how a sample, and a solver's history, answer to changes of earlier predictions.

A deterministic scheduler without clipping or thresholding is linear in the samples and predictions that it is given and
treats all entries alike, multistep solvers with their history included. So a copy of the scheduler that is run on a few
numbers, all zero but for one impulse, measures its response exactly, whatever its settings are. Written for schedulers
with diffusers' interface; diffusers is not imported.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forecache.errors import PlanError

HISTORIES: Mapping[str, tuple[str, ...]] = {
    "DDIMScheduler": (),
    "RespacedDDIM": (),
    "FlowMatchEulerDiscreteScheduler": (),
    "DPMSolverMultistepScheduler": ("model_outputs",),
    "UniPCMultistepScheduler": ("model_outputs", "last_sample"),
}
"""Schedulers whose response is known to be linear, and the attributes that hold their history: a tensor, or a list."""

NOT_LINEAR: Mapping[str, tuple[Any, ...]] = {
    "clip_sample": (None, False),
    "thresholding": (None, False),
    "stochastic_sampling": (None, False),
    "algorithm_type": (None, "dpmsolver", "dpmsolver++"),
    "solver_p": (None,),
}
"""Settings of these schedulers, each with the values at which the response is linear."""


@dataclass(frozen=True)
class Response:
    """The answer of a sampler to an impulse, just before a step.

    of_sample: of the sample that the step is given.
    of_history: of every tensor of the solver's history, by (attribute, place in its list); place 0 for a lone tensor.
    """

    of_sample: float
    of_history: Mapping[tuple[str, int], float]


def check_linear(scheduler: Any) -> None:
    """Raises PlanError for a scheduler whose response is not known to be linear."""
    name = type(scheduler).__name__
    if name not in HISTORIES:
        raise PlanError(
            f"Hindsight moves the sample by the linear response of the sampler, which is known for "
            f"{', '.join(HISTORIES)}, and this run has {f'a {name}' if scheduler is not None else 'no scheduler'}: set "
            "one of these, give forecache.apply the pipeline or an object with `transformer` and `scheduler`, or leave "
            "hindsight out."
        )
    for setting, linear in NOT_LINEAR.items():
        if (value := _setting(scheduler, setting)) not in linear:
            raise PlanError(
                f"Hindsight moves the sample by the linear response of the sampler, and a {name} with "
                f"{setting}={value!r} is not linear: set pipe.scheduler = {name}.from_config(pipe.scheduler.config, "
                f"{setting}={linear[-1]!r}), or leave hindsight out."
            )


def _setting(scheduler: Any, name: str) -> Any:
    config = getattr(scheduler, "config", None)
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def responses(
    scheduler: Any, timesteps: Sequence[Tensor], impulses: Mapping[int, Mapping[int, float]]
) -> dict[int, Response]:
    """The response just before each of some steps to changes of earlier predictions.

    scheduler: before the first step of its run; it is copied and stays as it is.
    timesteps: of the run, as the scheduler has them.
    impulses: step -> (earlier step -> change of its prediction). One entry of the small tensors is one such step.
    """
    copied, of_class = copy.deepcopy(scheduler), type(scheduler)
    x = torch.zeros(len(impulses), 1, 1, 1, dtype=torch.float64, device=timesteps[0].device)
    found: dict[int, Response] = {}
    for step, timestep in enumerate(timesteps):
        if step in impulses:
            entry = list(impulses).index(step)
            history = {place: float(tensor[entry]) for place, tensor in history_of(copied).items()}
            found[step] = Response(float(x[entry]), history)
        if len(found) == len(impulses):
            break
        change = torch.zeros_like(x)
        for entry, earlier in enumerate(impulses.values()):
            change[entry] = earlier.get(step, 0.0)
        x = of_class.step(copied, change, timestep, x, return_dict=False)[0].double()
    return found


def history_of(scheduler: Any) -> dict[tuple[str, int], Tensor]:
    """The tensors of a solver's history, by (attribute, place in its list)."""
    tensors: dict[tuple[str, int], Tensor] = {}
    for name in HISTORIES[type(scheduler).__name__]:
        value = getattr(scheduler, name)
        for place, tensor in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(tensor, Tensor):
                tensors[name, place] = tensor
    return tensors


def set_history(scheduler: Any, tensors: Mapping[tuple[str, int], Tensor]) -> None:
    """Put tensors in the place of those of a solver's history."""
    for (name, place), tensor in tensors.items():
        value = getattr(scheduler, name)
        if isinstance(value, list):
            value[place] = tensor
        else:
            setattr(scheduler, name, tensor)
