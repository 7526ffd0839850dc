"""Running trials: samples under a pattern and a forecast, their PSNR, and the memory of all that were run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from forecache.distributed import World
from forecache.errors import SearchFileError
from forecache.fit.tuning import trials
from forecache.fit.tuning.forecasts import ForecastSpec
from forecache.fit.tuning.gram import Gram, measure_gram
from forecache.fit.tuning.samples import SharedSampler
from forecache.fit.tuning.settings import HeldOut, Settings
from forecache.fit.tuning.trials import Trial, TrialKey
from forecache.parts.grid import Grid
from forecache.parts.identity import is_same
from forecache.plan.plan import Plan
from forecache.runtime.apply import apply
from forecache.sampling.fine import FineRun, fine_run, fine_solver, in_fine_steps, scheduler_of
from forecache.sampling.sources import Condition, OnStep, Sampling, Source

NOISES = 3
"""Other noises, of the seeds after the search's own, that finalists are judged on."""


class TrialRunner:
    """Runs the trials of a tuning, each once.

    known: the trials that were run, by what identifies them; those of the file to begin with.
    fine: the run of the converged samples that trials are compared with; None for the pipeline's own.
    """

    def __init__(
        self,
        source: Source,
        settings: Settings,
        world: World,
        path: Path | None = None,
        on_step: OnStep | None = None,
        on_trial: Callable[[Trial], None] | None = None,
    ) -> None:
        self.world, self.settings = world, settings
        self._source, self._path, self._on_step, self._on_trial = source, path, on_step, on_trial
        self._sampler = SharedSampler(source, settings.batch, world, on_step)
        self._grid: Grid = settings.grid(source)
        self._how = Sampling(settings.num_steps, settings.guidance, settings.seed)
        self._uncached: dict[int, Tensor] = {}
        self._references: dict[int, Tensor] = {}
        self.fine: FineRun | None = None
        self.known = _load(path, settings) if path is not None and path.exists() else {}
        self.gram: Gram

    def measure_gram(self) -> Gram:
        """Samples without a cache on the search's own noise, and keeps the Gram matrices and the images."""
        settings = self.settings
        self.gram, self._uncached[0] = measure_gram(
            self._source, settings.conditions, self._how, settings.batch, self._on_step, self.world, self._grid
        )
        return self.gram

    def run(self, pattern: str, forecast: ForecastSpec, noise: int = 0) -> Trial:
        """The trial of a pattern and a forecast, sampled unless it is known."""
        if (pattern, forecast, noise) in self.known:
            return self.known[pattern, forecast, noise]
        conditions, how = self.settings.conditions, replace(self._how, seed=self.settings.seed + noise)
        if noise not in self._uncached:
            self._uncached[noise] = self._sampler.images(conditions, how)
        reference, own = self._reference(noise), self._uncached[noise]
        images = self._sample(self.plan(pattern, forecast), conditions, how)
        trial = Trial(pattern, forecast, self._sampler.psnr(images, reference), noise, self._sampler.psnr(images, own))
        self.known[trial.key] = trial
        if self._path is not None and self.world.leads:
            trials.write(self._path, self.settings.as_document(), self.known)
        if self._on_trial is not None:
            self._on_trial(trial)
        return trial

    def judge(self, trial: Trial) -> Trial:
        """The trial with its mean PSNR over all noises."""
        judged = [self.run(trial.pattern, trial.forecast, noise) for noise in range(NOISES + 1)]
        psnr, own = (sum(values) / len(judged) for values in zip(*((one.psnr, one.own) for one in judged), strict=True))
        return replace(trial, psnr=psnr, own=own)

    def plan(self, pattern: str, forecast: ForecastSpec) -> Plan:
        """The plan of a trial."""
        return forecast.method(pattern, self.gram).plan(self._grid)

    def images(self, plan: Plan) -> Tensor:
        """The images under a plan on the search's own noise, those of this process."""
        return self._sample(plan, self.settings.conditions, self._how)

    @property
    def reference_images(self) -> Tensor:
        """The images that trials are compared with, on the search's own noise, those of this process."""
        return self._reference(0)

    def find_reference(self) -> None:
        """Finds the steps of the converged samples, on the first samples, the same in every process."""
        if self.settings.reference == "converged":
            fine_solver(scheduler_of(self._source))  # what has none is refused in every process
            run = fine_run(self._source, self.settings.conditions, self._how) if self.world.leads else None
            self.fine = self.world.agree([run])[0] if self.world.size > 1 else run

    def _reference(self, noise: int) -> Tensor:
        """The reference images of a noise, sampled once."""
        if self.fine is None:
            return self._uncached[noise]
        if noise not in self._references:
            how = replace(self._how, seed=self.settings.seed + noise)
            self._references[noise] = self._converged(self.fine, self.settings.conditions, how)
        return self._references[noise]

    def _converged(self, run: FineRun, conditions: Sequence[Condition], how: Sampling) -> Tensor:
        with in_fine_steps(self._source, run, how) as (fine, fine_how):
            sampler = SharedSampler(fine, self.settings.batch, self.world, self._on_step)
            return sampler.images(conditions, fine_how)

    def held_out(self, plans: Sequence[Plan], conditions: Sequence[Condition], seed: int) -> tuple[HeldOut, ...]:
        """The mean PSNR of each plan on held-out samples, in dB."""
        how, psnr = replace(self._how, seed=seed), self._sampler.psnr
        uncached = self._sampler.images(conditions, how)
        reference = uncached if self.fine is None else self._converged(self.fine, conditions, how)
        rest = psnr(uncached, reference)
        sampled = (self._sample(plan, conditions, how) for plan in plans)
        return tuple(HeldOut(psnr(images, reference), psnr(images, uncached), rest) for images in sampled)

    def _sample(self, plan: Plan, conditions: Sequence[Condition], how: Sampling) -> Tensor:
        with apply(self._source.target, plan):
            return self._sampler.images(conditions, how)


def _load(path: Path, settings: Settings) -> dict[TrialKey, Trial]:
    """The trials in a file; SearchFileError if they are of another tuning."""
    theirs, known = trials.read(path)
    own = settings.as_document()
    differ = [name for name in own | theirs if name != "fingerprint" and theirs.get(name) != own.get(name)]
    if not is_same(str(theirs.get("fingerprint")), settings.fingerprint):
        differ.append("fingerprint")
    if differ:
        raise SearchFileError(
            f"{path} holds another tuning ({', '.join(differ)} differ): write to another file, or delete it first."
        )
    if strange := [trial.pattern for trial in known.values() if len(trial.pattern) != settings.num_steps]:
        raise SearchFileError(
            f"{path} has a pattern of {len(strange[0])} steps, {strange[0]}, and the tuning has {settings.num_steps}: "
            "delete it."
        )
    return known
