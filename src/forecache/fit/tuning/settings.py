"""What decides the outcome of a tuning, as its file keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from forecache._version import __version__
from forecache.fit.tuning.trials import Trial
from forecache.models.find import find, grid
from forecache.sampling.sources import Condition, Source


@dataclass(frozen=True)
class Settings:
    """What decides the outcome of a tuning, besides the budgets. conditions: one sample each, of noise ``seed``.

    model, fingerprint, scheduler, dtype: of the model. longest: the longest interval between computed steps. trials:
    how many schedules are sampled with for every budget. search_seed: of what is proposed.
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
    forecasts: tuple[str, ...]
    longest: int
    trials: int
    search_seed: int


def settings_of(
    source: Source,
    labels: tuple[Condition, ...],
    num_steps: int,
    guidance: float,
    seed: int,
    batch: int,
    forecasts: Sequence[str],
    longest: int,
    number: int,
    search_seed: int,
) -> Settings:
    cells = grid(source.target, num_steps)
    dtype = str(next(find(source.target).parameters()).dtype).removeprefix("torch.")
    about = (cells.model, cells.fingerprint, cells.scheduler, dtype)
    longest = min(longest, num_steps)
    how = (float(guidance), seed, batch, labels, tuple(forecasts), longest, number, search_seed)
    return Settings(*about, num_steps, *how)


def plain(settings: Settings) -> dict[str, Any]:
    """As JSON gives it back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()} | {
        "forecache": __version__
    }


def provenance(settings: Settings, trial: Trial, tried: int, noises: int, unseen: float | None) -> dict[str, str]:
    """How a plan was found. tried: schedules; noises: that finalists were judged on; unseen: dB on others."""
    seed = settings.seed
    judged = f"searched on seed {seed}, finalists also on {seed + 1} to {seed + noises}"
    return {
        "tuned": f"best of {tried} schedules with {trial.computed} of {settings.num_steps} steps computed, search seed "
        f"{settings.search_seed}",
        "samples": f"{len(settings.conditions)}, guidance {settings.guidance:g}, {settings.dtype}; {judged}",
        "psnr": f"{trial.psnr:.2f} dB on these samples" + (f", {unseen:.2f} dB on others" if unseen else ""),
    }
