"""The sampler that a plan brings with it: a diffusers scheduler as data, and the number of steps that it is for."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forecache.errors import PlanError, PlanFileError
from forecache.io.text import short
from forecache.models.fingerprint import describe_scheduler
from forecache.parts.identity import scheduler_differences

KINDS = (
    *("DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"),
    *("HeunDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
)
"""Schedulers of diffusers that a plan may bring."""


@dataclass(frozen=True)
class Sampler:
    """A scheduler in the place of the pipeline's own.

    scheduler: its class and settings as JSON, as `Grid.scheduler` has them.
    num_steps: the number of steps that the pipeline has to be called with, its ``num_inference_steps``.
    """

    scheduler: str
    num_steps: int

    @property
    def name(self) -> str:
        """The class of the scheduler."""
        return self._settings["class"]

    def instead_of(self, own: Any) -> Any:
        """The scheduler, made of the settings; ``own``, the pipeline's, where it is that already.

        Raises PlanError for a class that no plan brings, and for a pipeline without a scheduler.
        """
        if own is None or not hasattr(own, "config"):
            raise PlanError(
                f"The plan brings a {self.name} of {self.num_steps} steps, and there is no scheduler that it could "
                "take the place of: apply the plan to the pipeline, or to an object with your loop's transformer and "
                "scheduler."
            )
        if not scheduler_differences(described := describe_scheduler(own), self.scheduler) and described:
            return own
        if self.name not in KINDS:
            raise PlanError(
                f"The plan brings a {self.name}, and plans bring one of {', '.join(KINDS)}: set pipe.scheduler "
                "yourself, and apply dataclasses.replace(plan, sampler=None)."
            )
        import diffusers

        kind, theirs = getattr(diffusers, self.name), json.loads(described)
        settings = {name: value for name, value in self._settings.items() if name != "class"}
        for name, parameter in inspect.signature(kind).parameters.items():  # a description has lists as text
            if name in settings and isinstance(settings[name], str) and not isinstance(parameter.default, str):
                if settings[name] == str(parameter.default):
                    settings[name] = parameter.default
                elif name in own.config and theirs.get(name) == settings[name]:
                    settings[name] = own.config[name]
        return kind.from_config(settings)

    def as_document(self) -> dict[str, Any]:
        """The sampler as plain data, for a plan file."""
        return {"scheduler": self.scheduler, "num_steps": self.num_steps}

    @classmethod
    def from_document(cls, document: Any) -> Sampler:
        """The sampler of such a document; PlanFileError for anything else."""
        if not isinstance(document, Mapping) or set(document) != {"scheduler", "num_steps"}:
            raise PlanFileError(f"the sampler must be an object with scheduler and num_steps, not {short(document)}")
        scheduler, num_steps = document["scheduler"], document["num_steps"]
        if type(num_steps) is not int or num_steps < 1 or not isinstance(scheduler, str):
            raise PlanFileError(
                f"the sampler must have a scheduler, as text, and steps from 1 on, not {short(document)}"
            )
        settings = json.loads(scheduler)
        if not isinstance(settings, dict) or settings.get("class") not in KINDS:
            raise PlanFileError(f"the scheduler of the sampler must be one of {', '.join(KINDS)}")
        return cls(scheduler, num_steps)

    @property
    def _settings(self) -> dict[str, Any]:
        return json.loads(self.scheduler)
