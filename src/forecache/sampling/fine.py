"""The converged sample of a noise: a run of a good solver in so many steps that more of them change nothing.

Images that are close to a coarse run share its discretisation error; images that are close to the converged sample are
what the model means. `fine_run` doubles the steps of a second-order solver until the images hardly change.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Literal

from torch import Tensor

from forecache.errors import InputError
from forecache.evaluate.images import EQUAL_DB, psnr
from forecache.sampling.sources import Condition, OnStep, Sampling, Source, as_source, check_conditions, in_batches

logger = logging.getLogger("forecache")

Reference = Literal["converged", "own"]
"""What images are compared with: the converged samples of the same noise, or the pipeline's own without a cache."""
REFERENCES: tuple[Reference, ...] = ("converged", "own")
ENOUGH_DB = 60.0
"""PSNR of the last two fine runs, in dB, from which on the finer one counts as converged."""
MARGIN_DB = 20.0
"""The same, above the PSNR of the pipeline's own run: its error is then a hundred times that of the reference."""
LEAST_STEPS, MOST_STEPS = 32, 512
"""Steps of the first fine run, unless twice the pipeline's own are more; and of the last one."""
JUDGES = 4
"""Samples, the first ones, by which the number of steps is found."""
NOISE_MODELS = (
    *("DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("UniPCMultistepScheduler", "DEISMultistepScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"),
    *("LMSDiscreteScheduler", "RespacedDDIM"),
)
"""Deterministic samplers whose settings DPM-Solver++ understands."""
PLAIN: Mapping[str, Any] = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "timestep_spacing": "linspace",
    "thresholding": False,
    "lower_order_final": True,
    "euler_at_final": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "variance_type": None,
    "steps_offset": 0,
}
"""Settings of the fine solver: from the last training timestep down to the image, every step of second order."""


@dataclass(frozen=True)
class FineRun:
    """A solver and a number of steps that give the converged samples.

    solver: its name.
    num_steps: its steps.
    change: PSNR in dB between its images and those in half as many steps.
    own: PSNR in dB of the pipeline's own images, without a cache, to its images.
    is_converged: whether ``change`` is what was asked for; where it is not, `MOST_STEPS` were reached before.
    """

    solver: str
    num_steps: int
    change: float
    own: float
    is_converged: bool

    def __str__(self) -> str:
        end = "" if self.is_converged else ", which is not converged"
        return f"{self.num_steps} steps of {self.solver} ({self.change:.1f} dB from half as many{end})"


@dataclass(frozen=True)
class Converged:
    """Converged samples.

    images: (B, C, H, W), or videos (B, F, C, H, W), in [0, 1], float32.
    run: how they were made.
    """

    images: Tensor
    run: FineRun


def converged(
    target: Any,
    conditions: Sequence[Condition],
    *,
    num_steps: int,
    guidance: float = 1.5,
    seed: int = 0,
    batch: int = 32,
    on_step: OnStep | None = None,
) -> Converged:
    """The converged samples of the noise that a run of ``num_steps`` steps starts from, one for each condition.

    target: a DiTPipeline, a text-to-image pipeline, a bundled model, or any `sources.Source`.

    Raises InputError for a sampler that draws noise on its way, and for one that is not known.
    """
    source = as_source(target)
    given, how = check_conditions(source, conditions), Sampling(num_steps, guidance, seed)
    if not given or batch < 1:
        raise InputError(f"There are {len(given)} conditions and a batch of {batch}: give at least one of each.")
    run = fine_run(source, given, how, on_step)
    with in_fine_steps(source, run, how) as (fine, fine_how):
        return Converged(in_batches(fine, given, fine_how, batch, on_step), run)


def fine_run(
    source: Source,
    conditions: Sequence[Condition],
    how: Sampling,
    on_step: OnStep | None = None,
    judges: int | None = None,
) -> FineRun:
    """The fine run of a source, found on its first conditions, `JUDGES` by default.

    The steps are doubled until the images change by less than `ENOUGH_DB`, or by `MARGIN_DB` less than the pipeline's
    own are off, at most up to `MOST_STEPS`; what came of it is logged. Raises InputError for a sampler that has none.
    """
    judged = conditions[: judges or JUDGES]
    solver = fine_solver(scheduler_of(source))
    own = source.generate(judged, how, 0, on_step)
    num_steps = max(LEAST_STEPS, 2 * how.num_steps)

    def images(num_steps: int) -> Tensor:
        with rescheduled(source, solver) as fine:
            return fine.generate(judged, replace(how, num_steps=num_steps), 0, on_step)

    coarse = images(num_steps)
    while True:
        num_steps *= 2
        fine = images(num_steps)
        change, error = _decibels(fine, coarse), _decibels(own, fine)
        is_converged = change >= min(ENOUGH_DB, error + MARGIN_DB)
        if is_converged or 2 * num_steps > MOST_STEPS:
            break
        coarse = fine
    run = FineRun(_name(solver), num_steps, change, error, is_converged)
    logger.log(logging.INFO if is_converged else logging.WARNING, "The converged samples are of %s.", run)
    return run


@contextmanager
def in_fine_steps(source: Source, run: FineRun, how: Sampling) -> Iterator[tuple[Source, Sampling]]:
    """The source with the solver of a fine run in its place, and the settings that it is sampled with."""
    with rescheduled(source, fine_solver(scheduler_of(source))) as fine:
        yield fine, replace(how, num_steps=run.num_steps)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is one of flow matching."""
    return any(kind.__name__.startswith("FlowMatch") for kind in type(scheduler).__mro__) or bool(
        scheduler.config.get("use_flow_sigmas")
    )


def fine_solver(scheduler: Any) -> Any:
    """A second-order solver of the same process: DPM-Solver++, or Adams-Bashforth on flow matching's own grid.

    scheduler: a pipeline's. Raises InputError for one that draws noise on its way, and for one that is not known.
    """
    name, config = type(scheduler).__name__, scheduler.config
    classes = {kind.__name__ for kind in type(scheduler).__mro__}
    draws = str(config.get("algorithm_type", "")).startswith("sde") or bool(config.get("stochastic_sampling"))
    if draws or not classes & {*NOISE_MODELS, "FlowMatchEulerDiscreteScheduler"}:
        why = "draws noise on its way" if draws else "is no deterministic sampler that forecache knows"
        raise InputError(
            f"The pipeline's {name} {why}, so that more steps have no sample of the same noise to converge to: take "
            "reference='own' (--reference own), which compares with the pipeline's run without a cache, or another "
            "scheduler, such as DPMSolverMultistepScheduler."
        )
    if "FlowMatchEulerDiscreteScheduler" in classes:
        return _second_order(type(scheduler)).from_config(config)
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler.from_config({**config, **PLAIN})


def _second_order(kind: type[Any]) -> type[Any]:
    """Flow matching's Euler scheduler whose steps follow the slope of Adams and Bashforth, of second order.

    The slope over a step is v + h / (2 h') (v - v'), with the step h, and the step h' and the prediction v' before.
    """

    class AdamsBashforth(kind):
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            self._before: Tensor | None = None

        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.step_index is None:
                self._init_step_index(timestep)
            number: Any = self.step_index
            slope = model_output
            if self._before is not None and number > 0:
                last, here, following = self.sigmas[number - 1 : number + 2].tolist()
                slope = slope + (following - here) / (2 * (here - last)) * (slope - self._before)
            self._before = model_output
            return super().step(slope, timestep, sample, *args, **kwargs)

    return AdamsBashforth


def _name(solver: Any) -> str:
    names = {"DPMSolverMultistepScheduler": "DPM-Solver++ 2M", "AdamsBashforth": "Adams-Bashforth 2"}
    return names[type(solver).__name__]


def scheduler_of(source: Source) -> Any:
    """The scheduler of a source's pipeline; InputError if it has none."""
    scheduler = getattr(source.target, "scheduler", None)
    if scheduler is None or not hasattr(scheduler, "config"):
        raise InputError(
            f"A {type(source.target).__name__} has no scheduler that forecache could run in finer steps: take "
            "reference='own' (--reference own), which compares with its run without a cache."
        )
    return scheduler


@contextmanager
def rescheduled(source: Source, scheduler: Any) -> Iterator[Source]:
    """The source with another scheduler; the pipeline has its own back after the block."""
    target: Any = source.target
    if target is source and is_dataclass(source):
        yield replace(source, scheduler=scheduler)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return
    own = target.scheduler
    target.scheduler = scheduler
    try:
        yield source
    finally:
        target.scheduler = own


def _decibels(images: Tensor, others: Tensor) -> float:
    return float(psnr(images, others).clamp_max(EQUAL_DB).mean())
