"""Counting: the model calls of a run, from what its scheduler announced.

A scheduler announces timesteps. Most pipelines call their model once for each of them, and the exceptions are all here:
the schedulers and pipelines that leave the last one out, image-to-image runs that start in the middle, two transformers
that take turns, pipelines that walk a schedule of their own, and calls that are no step at all. A call may be several
in several lanes (`forecache.runtime.generations`); here it is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from forecache.runtime.run import PartOfRun, Run

LAST_IS_THE_END = frozenset({"SCMScheduler", "DDPMWuerstchenScheduler"})
"""Schedulers whose last timestep is where the run ends: they have no step from it, so no model is called for it."""

LAST_IS_LEFT_OUT = frozenset({"LTXI2VLongMultiPromptPipeline"})
"""Pipelines that leave out the last timestep of any scheduler."""

LAST_IS_LEFT_OUT_WITH = {
    "LTX2DFRPipeline": "LTXEulerAncestralRFScheduler",
    "LTX2DFRTemporalRefinePipeline": "LTXEulerAncestralRFScheduler",
}
"""Pipelines that leave out the last timestep of one scheduler."""

OWN_SCHEDULE = frozenset(
    {
        "SkyReelsV2DiffusionForcingPipeline",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
    }
)
"""Pipelines that make a schedule of their own from the announced one, a timestep for every frame: its length is their
``num_timesteps``, which they set before the first model call."""

UNCONDITIONAL = "unconditional_transformer"
"""The name of a pipeline's second transformer where both are called at every step, as in Ideogram 4."""


@dataclass(frozen=True)
class Announcement:
    """The timesteps at which a run will call its models, as a scheduler announced them.

    timesteps: in the scheduler's units.
    """

    timesteps: tuple[float, ...]


def announced(scheduler: Any, pipe: Any = None) -> Announcement:
    """The announcement of a scheduler whose timesteps were set.

    pipe: the pipeline that will walk them; None for a loop of the user's own.
    """
    timesteps = tuple(numbers(scheduler.timesteps))
    if _leaves_out_last(scheduler, pipe):
        timesteps = timesteps[:-1]
    return Announcement(timesteps)


def run_of(
    announcement: Announcement,
    timestep: float | None,
    scheduler: Any = None,
    pipe: Any = None,
    part: PartOfRun | None = None,
) -> Run:
    """The calls of one model in the run that starts with a call at ``timestep``: `Run.num_calls` is their number.

    announcement: what the scheduler announced for the run.
    timestep: of the run's first call of the model, as the model is given it; None where it is not known.
    scheduler: the scheduler, whose ``begin_index`` says where an image-to-image run starts, if it was set.
    pipe: the pipeline that makes the calls; None for a loop of the user's own.
    part: the steps at which the model is called, where another model is called at the others.
    """
    timesteps, scale = announcement.timesteps, _scale(scheduler)
    if (length := _own_schedule(pipe)) is not None:
        return Run(length, range(length))
    if part is not None:
        indices = part(timesteps)
        return Run(len(timesteps), indices, timesteps[indices.start : indices.stop], scale)
    timesteps = timesteps[first_step(timesteps, timestep, scheduler) :]
    return Run(len(timesteps), range(len(timesteps)), timesteps, scale)


def first_step(timesteps: Sequence[float], timestep: float | None, scheduler: Any = None) -> int:
    """The step at which a run starts: 0, or a later one where an image is given and its strength is below 1.

    Pipelines tell their scheduler by ``set_begin_index``. Older schedulers have no such method; there the timestep of
    the first call is looked up, in the scheduler's units, or in the fractions that flow-matching models are given.
    """
    begin = getattr(scheduler, "begin_index", None)
    if isinstance(begin, int) and 0 <= begin < len(timesteps):
        return begin
    if timestep is None or not timesteps:
        return 0
    fractions = [time / _scale(scheduler) for time in timesteps]
    rising = [1 - time for time in fractions]
    if timestep in timesteps:
        exact = timesteps.index(timestep)
        # a model that is given fractions starts at 1 or 0, which may be the scheduler's last timestep
        is_start = exact == len(timesteps) - 1 and any(_is_near(timestep, times[0]) for times in (fractions, rising))
        return 0 if is_start else exact
    for times in (timesteps, fractions, rising):
        nearest = min(range(len(times)), key=lambda step: abs(times[step] - timestep))
        if _is_near(timestep, times[nearest]):
            return nearest
    return 0


def parts_of_run(pipe: Any) -> list[PartOfRun | None]:
    """The part of a run that each of a pipeline's two transformers is called for; None for all of it."""
    if getattr(pipe, UNCONDITIONAL, None) is not None:
        return [None, None]

    def boundary(timesteps: Sequence[float]) -> int:
        if pipe.config.boundary_ratio is None:
            return len(timesteps)
        lowest = pipe.config.boundary_ratio * pipe.scheduler.config.num_train_timesteps
        return sum(timestep >= lowest for timestep in timesteps)

    return [
        lambda timesteps: range(boundary(timesteps)),
        lambda timesteps: range(boundary(timesteps), len(timesteps)),
    ]


def numbers(timesteps: Any) -> list[float]:
    """Timesteps as numbers; one transfer from a device."""
    return [float(time) for time in (timesteps.tolist() if isinstance(timesteps, Tensor) else timesteps)]


def _scale(scheduler: Any) -> float:
    """The number of a scheduler's timesteps in training."""
    return float(getattr(getattr(scheduler, "config", None), "num_train_timesteps", None) or 1000)


def _is_near(timestep: float, announced: float) -> bool:
    """Whether a timestep is an announced one, rounded to bfloat16."""
    return abs(timestep - announced) <= max(abs(announced) / 256, 1e-6)


def _own_schedule(pipe: Any) -> int | None:
    """The length of the schedule that a pipeline makes of its own; None if it walks the announced one."""
    length = getattr(pipe, "num_timesteps", None) if _is_kind(pipe, OWN_SCHEDULE) else None
    return length if isinstance(length, int) and length > 0 else None


def _leaves_out_last(scheduler: Any, pipe: Any) -> bool:
    if _is_kind(scheduler, LAST_IS_THE_END) or _is_kind(pipe, LAST_IS_LEFT_OUT):
        return True
    return any(_is_kind(pipe, {kind}) and _is_kind(scheduler, {of}) for kind, of in LAST_IS_LEFT_OUT_WITH.items())


def _is_kind(thing: Any, names: frozenset[str] | set[str]) -> bool:
    """Whether the class of a thing, or one that it derives from, has one of these names; diffusers is not imported."""
    return any(kind.__name__ in names for kind in type(thing).__mro__)
