"""Benchmark subjects: models and plans by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from forecache.errors import InputError
from forecache.methods.explicit import explicit
from forecache.methods.fora import fora
from forecache.methods.goc import goc
from forecache.methods.taylorseer import taylorseer
from forecache.models import find
from forecache.models.find import layout
from forecache.models.levels import FINEST, AskedSites
from forecache.parts.grid import Grid
from forecache.plan.cost import Cost
from forecache.plan.method import Method
from forecache.plan.plan import Plan
from forecache.sampling.device import resolve
from forecache.sampling.sources import call_inputs
from forecache.zoo import SHAPES, random_inputs, shaped
from forecache.zoo.open import open_source


@dataclass(frozen=True)
class Subject:
    """A model to time.

    name: as it was opened.
    model: the transformer.
    inputs: arguments of one call, without the timestep.
    """

    name: str
    model: Any
    inputs: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Samples in one call."""
        return len(self.inputs["hidden_states"])

    def timesteps(self, count: int) -> list[torch.Tensor]:
        """The timestep of every call of a run, each (rows,), from noise to image."""
        values = torch.linspace(999, 0, count).round().long()
        return [value.to(self.model.device).expand(self.rows) for value in values]

    def grid(self, num_steps: int, asked: AskedSites = FINEST) -> Grid:
        """The model's grid, with its finest sites by default."""
        return find.grid_at(self.model, num_steps, asked)

    def cost(self, plan: Plan) -> Cost:
        """The cost of a plan for these inputs."""
        return plan.cost(self.model, inputs={**self.inputs, "timestep": self.timesteps(1)[0]})


def open_subject(name: str, rows: int, device: str = "auto", dtype: str = "auto") -> Subject:
    """A shape with random weights (`zoo.SHAPES`), a bundled model, or a pipeline's transformer.

    rows: samples in one call.
    """
    if name not in SHAPES:
        source = open_source(name, device, dtype)
        model: Any = find.find(source.target)
        inputs = dict(call_inputs(source, rows) or _example_inputs(model, rows))
        inputs.pop("timestep", None)  # every call has its own
        return Subject(name, model, inputs)
    where, kind = resolve(device, dtype)
    model = shaped(name, kind, where)
    return Subject(name, model, random_inputs(model, rows))


def _example_inputs(model: Any, rows: int) -> dict[str, Any]:
    """Noise in the shapes of the example of a call of the model's class, without the timestep."""
    example = layout(model).example
    inputs = {} if example is None else dict(example(rows))
    if "hidden_states" not in inputs or "timestep" not in inputs:
        return random_inputs(model, rows)  # which names the classes that are timed
    del inputs["timestep"]
    random = torch.Generator().manual_seed(0)

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return torch.ones(tensor.shape, dtype=tensor.dtype, device=model.device)
        return torch.randn(tensor.shape, generator=random).to(model.device, tensor.dtype)

    return tree_map_only(torch.Tensor, filled, inputs)


PRESETS: Mapping[str, Callable[[int], Method]] = {
    "all-computed": lambda steps: explicit(compute=range(steps)),
    "fora-25": lambda steps: explicit(skip=range(1, steps // 2, 2)),
    "fora-50": lambda steps: fora(2),
    "fora-75": lambda steps: fora(4),
    "goc-50": lambda steps: goc(fora(2), 0.8),
    "goc-75": lambda steps: goc(fora(4), 0.8),
    "taylor-50": lambda steps: taylorseer(fora(2), 1),
    "taylor-75": lambda steps: taylorseer(fora(4), 1),
}
"""Methods that speed is compared on, by name, each for a number of steps: at 20 steps, the schedules of the GOC and EOC
papers.
"""


def preset(name: str, num_steps: int) -> Method:
    """The preset of a name; InputError if there is none."""
    if name not in PRESETS:
        raise InputError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[name](num_steps)
