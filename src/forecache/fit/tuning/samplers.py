"""The samplers that a tuning chooses from: diffusers' schedulers with the process of the pipeline's own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from forecache.errors import InputError
from forecache.models.fingerprint import describe_scheduler
from forecache.plan.sampler import Sampler
from forecache.sampling.fine import PLAIN, is_flow, rescheduled, scheduler_of
from forecache.sampling.sources import Source

OWN = "own"
"""The name of the pipeline's own scheduler."""
GRID: Mapping[str, Any] = {
    "final_sigmas_type": "zero",
    "steps_offset": 0,
    "thresholding": False,
    "lower_order_final": True,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "interpolation_type": "linear",
}
"""Settings of the other solvers: from the last training timestep down to the image, as the fine solver's."""
CLASSES: Mapping[str, tuple[str, str]] = {
    "dpmsolver++": ("DPMSolverMultistepScheduler", "DPMSolverMultistepScheduler"),
    "unipc": ("UniPCMultistepScheduler", "UniPCMultistepScheduler"),
    "euler": ("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
    "heun": ("HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
}
"""The classes of a name in diffusers: for models of noise, and for flow matching."""
SAMPLERS = (OWN, *CLASSES)
"""The names of samplers, each but the first also with a grid behind it, such as ``unipc leading``."""
SPACINGS = ("trailing", "linspace", "leading")
"""Timestep spacings of models of noise; the first is the default (arXiv 2305.08891 says why)."""
SIGMAS = ("karras", "exponential")
"""Grids of noise levels in the place of a spacing: Karras et al.'s (arXiv 2206.00364, Eq. 5), and even logarithms."""
GRIDS = (*SPACINGS, *SIGMAS)


@dataclass(frozen=True)
class SamplerRun:
    """A sampler in a number of steps.

    name: of the sampler, one of `SAMPLERS`.
    num_steps: the steps that the pipeline is called with.
    scheduler: of diffusers.
    """

    name: str
    num_steps: int
    scheduler: Any

    def __str__(self) -> str:
        return f"{self.name}, {self.num_steps} steps"

    @property
    def calls(self) -> int:
        """Model calls of a run: one a step, and two in all steps but the last for Heun's method."""
        return calls_of(self.scheduler, self.num_steps)

    @property
    def can_be_cached(self) -> bool:
        """Whether plans are searched for it: those of samplers with one call a step."""
        return self.calls == self.num_steps

    @property
    def brought(self) -> Sampler | None:
        """The sampler as its plans bring it; None for the pipeline's own, which they leave in place."""
        return None if self.name == OWN else Sampler(describe_scheduler(self.scheduler), self.num_steps)

    @contextmanager
    def of(self, source: Source) -> Iterator[Source]:
        """The source with this sampler; the pipeline has its own back after the block."""
        if self.name == OWN:
            yield source
            return
        with rescheduled(source, self.scheduler) as other:
            yield other


def calls_of(scheduler: Any, num_steps: int) -> int:
    """Model calls of a scheduler's run of so many steps."""
    return 2 * num_steps - 1 if getattr(scheduler, "order", 1) == 2 else num_steps


def steps_for(scheduler: Any, calls: int) -> int:
    """The largest number of steps with at most so many model calls."""
    return (calls + 1) // 2 if getattr(scheduler, "order", 1) == 2 else calls


def schedulers(source: Source, names: Sequence[str]) -> dict[str, Any]:
    """The schedulers of these names, without those that are an earlier one once more.

    Raises InputError for a name that does not exist, and for a pipeline without a scheduler if others are asked for.
    """
    spaced = [f"{name} {grid}" for name in CLASSES for grid in GRIDS]
    if unknown := [name for name in names if name not in (*SAMPLERS, *spaced)]:
        raise InputError(
            f"There is no sampler {unknown[0]!r}; there are: {', '.join(SAMPLERS)}, and all but the first also with a "
            f"grid of timesteps, {' or '.join(GRIDS)}, such as {spaced[-1]!r}."
        )
    found: dict[str, Any] = {}
    known: set[str] = set()
    for name in dict.fromkeys(names):
        own = scheduler_of(source)
        scheduler = own if name == OWN else _scheduler(own, name)
        if (described := describe_scheduler(scheduler)) not in known:
            known.add(described)
            found[name] = scheduler
    return found


def on_other_grids(source: Source, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The solvers of these names on all grids that are not among them; none for flow matching, whose grid is its shift.

    kinds: schedulers by name, as `schedulers` gives them.
    """
    if is_flow(scheduler_of(source)):
        return {}
    names = {name.split(" ")[0] for name in kinds if name != OWN}
    wide = schedulers(source, [*kinds, *(f"{name} {grid}" for name in CLASSES if name in names for grid in GRIDS)])
    return {name: kind for name, kind in wide.items() if name not in kinds}


def _scheduler(own: Any, name: str) -> Any:
    import diffusers

    config, flow = dict(own.config), is_flow(own)
    name, _, grid = name.partition(" ")
    kind = getattr(diffusers, CLASSES[name][flow])
    if flow and name in ("euler", "heun"):
        return kind.from_config(config)
    settings = {**config, **GRID, **(PLAIN if name == "dpmsolver++" else {})}
    if grid in SIGMAS:
        if flow:
            raise InputError(
                f"{name} {grid} is a grid of models of noise, and the pipeline's scheduler is one of flow matching, "
                f"whose grid is its shift: give {name!r}."
            )
        settings[f"use_{grid}_sigmas"] = True
        grid = SPACINGS[0]
    settings["timestep_spacing"] = grid or SPACINGS[0]
    if flow:
        settings |= {
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": config.get("shift", 1.0),
        }
    known = inspect.signature(kind).parameters
    return kind.from_config({key: value for key, value in settings.items() if key in known})
