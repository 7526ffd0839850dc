"""Running trials: samples under a pattern and a forecast, their PSNR, and the memory of all that were run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from forecache.distributed import World
from forecache.errors import SearchFileError
from forecache.fit.tuning import trials
from forecache.fit.tuning.effort import Meter, of_finding
from forecache.fit.tuning.forecasts import ForecastSpec
from forecache.fit.tuning.gram import Gram, measure_gram
from forecache.fit.tuning.samples import SharedSampler
from forecache.fit.tuning.settings import HeldOut, Settings
from forecache.fit.tuning.trials import Trial, TrialKey
from forecache.parts.grid import Grid
from forecache.parts.identity import is_same
from forecache.plan.plan import Plan
from forecache.plan.sampler import Sampler
from forecache.runtime.apply import apply
from forecache.sampling.fine import JUDGES, FineRun, fine_run, fine_solver, rescheduled, scheduler_of
from forecache.sampling.sources import Condition, OnStep, Sampling, Source

NOISES = 3
"""Other noises, of the seeds after the search's own, that finalists are judged on."""


class ConvergedImages:
    """The converged images of a tuning, sampled once a noise; several samplers are compared with the same ones.

    run: the fine run, None before it was found.
    """

    def __init__(
        self,
        source: Source,
        settings: Settings,
        world: World,
        on_step: OnStep | None = None,
        meter: Meter | None = None,
        judges: int = JUDGES,
    ) -> None:
        self._source, self._settings, self._world, self._on_step = source, settings, world, on_step
        self._meter, self._judges = meter or Meter(settings.num_steps), min(judges, len(settings.conditions))
        self._how = Sampling(settings.num_steps, settings.guidance, settings.seed)
        self._solver = fine_solver(scheduler_of(source))  # what has none is refused in every process
        self._images: dict[tuple[tuple[Condition, ...], int], Tensor] = {}
        self.run: FineRun | None = None

    def find(self) -> None:
        """Finds the steps of the fine run on the first samples, the same in every process."""
        conditions, judges = self._settings.conditions, self._judges
        run = fine_run(self._source, conditions, self._how, judges=judges) if self._world.leads else None
        self.run = self._world.agree([run])[0] if self._world.size > 1 else run
        self._meter.images += of_finding(self.run, self._settings.num_steps, judges)

    def of(self, conditions: Sequence[Condition], seed: int) -> Tensor:
        """The images of conditions and a noise, those of this process."""
        key = tuple(conditions), seed
        if key not in self._images:
            assert self.run is not None
            how = replace(self._how, seed=seed, num_steps=self.run.num_steps)
            with rescheduled(self._source, self._solver) as fine:
                sampler = SharedSampler(fine, self._settings.batch, self._world, self._on_step)
                self._images[key] = sampler.images(conditions, how)
            if key[0] == self._settings.conditions:
                self._meter.add(len(conditions), self.run.num_steps)
        return self._images[key]


class TrialRunner:
    """Runs the trials of a tuning, each once.

    known: the trials that were run, by what identifies them; those of the file to begin with.
    converged: the images that trials are compared with; None for the pipeline's own.
    noises: other noises that finalists are judged on, `NOISES` by default.
    """

    def __init__(
        self,
        source: Source,
        settings: Settings,
        world: World,
        path: Path | None = None,
        on_step: OnStep | None = None,
        on_trial: Callable[[Trial], None] | None = None,
        converged: ConvergedImages | None = None,
        sampler: Sampler | None = None,
        meter: Meter | None = None,
        noises: int | None = None,
    ) -> None:
        self.noises = NOISES if noises is None else noises
        self._meter = meter or Meter(settings.num_steps)
        self.world, self.settings = world, settings
        self._source, self._path, self._on_step, self._on_trial = source, path, on_step, on_trial
        self._sampler = SharedSampler(source, settings.batch, world, on_step)
        self._grid: Grid = settings.grid(source)
        self._how = Sampling(settings.num_steps, settings.guidance, settings.seed)
        self._uncached: dict[int, Tensor] = {}
        self.converged, self._of_plans = converged, sampler
        self.known = _load(path, settings) if path is not None and path.exists() else {}
        self._gram: Gram | None = None

    @property
    def fine(self) -> FineRun | None:
        """The run of the converged samples that trials are compared with; None for the pipeline's own."""
        return self.converged.run if self.converged is not None else None

    @property
    def gram(self) -> Gram:
        """The Gram matrices of the features; the first time, samples without a cache on the search's own noise."""
        if self._gram is None:
            settings = self.settings
            self._gram, self._uncached[0] = measure_gram(
                self._source, settings.conditions, self._how, settings.batch, self._on_step, self.world, self._grid
            )
            self._meter.add(len(settings.conditions), settings.num_steps)
        return self._gram

    def run(self, pattern: str, forecast: ForecastSpec, noise: int = 0) -> Trial:
        """The trial of a pattern and a forecast, sampled unless it is known."""
        if (pattern, forecast, noise) in self.known:
            return self.known[pattern, forecast, noise]
        conditions, how = self.settings.conditions, replace(self._how, seed=self.settings.seed + noise)
        own, reference = self._own(noise), self._reference(noise)
        images = self._sample(self.plan(pattern, forecast), conditions, how)
        self._meter.add(len(conditions), pattern.count("#"))
        trial = Trial(pattern, forecast, self._sampler.psnr(images, reference), noise, self._sampler.psnr(images, own))
        self.known[trial.key] = trial
        if self._path is not None and self.world.leads:
            trials.write(self._path, self.settings.as_document(), self.known)
        if self._on_trial is not None:
            self._on_trial(trial)
        return trial

    def judge(self, trial: Trial) -> Trial:
        """The trial with its mean PSNR over all noises."""
        judged = [self.run(trial.pattern, trial.forecast, noise) for noise in range(self.noises + 1)]
        psnr, own = (sum(values) / len(judged) for values in zip(*((one.psnr, one.own) for one in judged), strict=True))
        return replace(trial, psnr=psnr, own=own)

    def plan(self, pattern: str, forecast: ForecastSpec) -> Plan:
        """The plan of a trial."""
        plan = forecast.method(pattern, self.gram).plan(self._grid)
        return plan if self._of_plans is None else replace(plan, sampler=self._of_plans)

    def images(self, plan: Plan) -> Tensor:
        """The images under a plan on the search's own noise, those of this process."""
        self._meter.add(len(self.settings.conditions), plan.computed_share * plan.num_steps)
        return self._sample(plan, self.settings.conditions, self._how)

    @property
    def reference_images(self) -> Tensor:
        """The images that trials are compared with, on the search's own noise, those of this process."""
        return self._reference(0)

    def uncached(self, noise: int = 0) -> float:
        """The mean PSNR of the samples without a cache to the reference, in dB."""
        return self._sampler.psnr(self._own(noise), self._reference(noise))

    def _own(self, noise: int) -> Tensor:
        """The images without a cache, sampled once a noise."""
        if noise not in self._uncached:
            how = replace(self._how, seed=self.settings.seed + noise)
            self._uncached[noise] = self._sampler.images(self.settings.conditions, how)
            self._meter.add(len(self.settings.conditions), self.settings.num_steps)
        return self._uncached[noise]

    def _reference(self, noise: int) -> Tensor:
        """The images that trials are compared with."""
        if self.converged is None:
            return self._own(noise)
        return self.converged.of(self.settings.conditions, self.settings.seed + noise)

    def held_out(self, plans: Sequence[Plan], conditions: Sequence[Condition], seed: int) -> tuple[HeldOut, ...]:
        """The mean PSNR of each plan on held-out samples, in dB."""
        how, psnr = replace(self._how, seed=seed), self._sampler.psnr
        uncached = self._sampler.images(conditions, how)
        reference = uncached if self.converged is None else self.converged.of(conditions, seed)
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
