"""The settings of a tuning, as its trials file and the provenance of its plans record them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from forecache._version import __version__
from forecache.fit.tuning.forecasts import ForecastSpec
from forecache.fit.tuning.trials import Trial
from forecache.io.text import dtype_name
from forecache.models.find import find, grid_at
from forecache.models.levels import FINEST, AskedSites
from forecache.parts.grid import Grid
from forecache.sampling.fine import FineRun, Reference
from forecache.sampling.sources import Condition, Source, options_of


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a tuning, besides its budgets.

    model: class of the model.
    fingerprint: of the model's weights.
    scheduler: configuration of the scheduler.
    dtype: of the model's weights.
    num_steps: sampling steps.
    guidance: classifier-free guidance scale.
    seed: of the noise that is tuned on.
    batch: samples of a generation.
    conditions: class labels or texts, one for each sample.
    forecasts: the forecasts to choose from.
    longest: longest interval between computed steps, in steps.
    trials: schedules that are sampled with for each budget.
    search_seed: seed of the proposals.
    reference: what images are compared with, "converged" or "own" (`sampling.fine.Reference`).
    options: of every call of the pipeline that were given, such as its height.
    asked: what sites are.
    """

    model: str
    fingerprint: str
    scheduler: str
    dtype: str
    num_steps: int
    guidance: float
    seed: int
    batch: int
    conditions: tuple[Condition, ...]
    forecasts: tuple[ForecastSpec, ...]
    longest: int
    trials: int
    search_seed: int
    reference: Reference
    options: Mapping[str, Any] = field(default_factory=dict)
    asked: AskedSites = FINEST

    @classmethod
    def of_source(
        cls,
        source: Source,
        conditions: tuple[Condition, ...],
        *,
        num_steps: int,
        guidance: float,
        seed: int,
        batch: int,
        forecasts: tuple[ForecastSpec, ...],
        longest: int,
        trials: int,
        search_seed: int,
        reference: Reference,
        asked: AskedSites = FINEST,
    ) -> Settings:
        """The settings of a tuning of the source's model."""
        whole = grid_at(source.target, num_steps, asked)
        return cls(
            model=whole.model,
            fingerprint=whole.fingerprint,
            scheduler=whole.scheduler,
            dtype=dtype_name(next(find(source.target).parameters()).dtype),
            num_steps=num_steps,
            guidance=float(guidance),
            seed=seed,
            batch=batch,
            conditions=conditions,
            forecasts=forecasts,
            longest=min(longest, num_steps),
            trials=trials,
            search_seed=search_seed,
            reference=reference,
            options=options_of(source),
            asked=asked,
        )

    def grid(self, source: Source) -> Grid:
        """The grid of the source's model."""
        return grid_at(source.target, self.num_steps, self.asked)

    def as_document(self) -> dict[str, Any]:
        """The settings as plain data, with the version of forecache; without options and sites if none were given."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "asked"}
        if self.asked.words:
            values["sites"] = self.asked.words
        if not self.options:
            del values["options"]
        values["conditions"] = list(self.conditions)
        values["forecasts"] = [forecast.as_document() for forecast in self.forecasts]
        return values | {"forecache": __version__}


@dataclass(frozen=True)
class HeldOut:
    """The mean PSNR of a plan on held-out samples.

    psnr: to the reference that ranks trials, in dB.
    own: to the same samples without a cache, in dB.
    uncached: of these samples without a cache to the reference, in dB; without it `EQUAL_DB`, as they are equal.
    """

    psnr: float
    own: float
    uncached: float


def provenance(
    settings: Settings, trial: Trial, schedules: int, noises: int, held_out: HeldOut | None, run: FineRun | None
) -> dict[str, str]:
    """How a plan was found.

    schedules: number of schedules sampled with. noises: number of other noises that finalists were judged on.
    held_out: on held-out samples, None without them. run: the fine run of the converged samples, None without one.
    """
    seed = settings.seed
    judged = f"searched on seed {seed}, finalists also on {seed + 1} to {seed + noises}"
    return {
        "tuned": f"best of {schedules} schedules with {trial.computed} of {settings.num_steps} steps computed, search "
        f"seed {settings.search_seed}",
        "samples": f"{len(settings.conditions)}, guidance {settings.guidance:g}, {settings.dtype}; {judged}",
        "reference": f"converged: {run}" if run is not None else "own: the pipeline's run without a cache",
        "psnr": f"{trial.psnr:.2f} dB to the reference, {trial.own:.2f} dB to no cache, on these samples"
        + (f"; {held_out.psnr:.2f} and {held_out.own:.2f} dB on held-out samples" if held_out else ""),
    }
