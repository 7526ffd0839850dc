"""The result of a tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forecache.fit.tuning.settings import HeldOut
from forecache.fit.tuning.surrogate import Surrogate
from forecache.fit.tuning.trials import Trial
from forecache.plan.plan import Plan
from forecache.sampling.fine import FineRun


@dataclass(frozen=True)
class Uncached:
    """A sampler without a cache, at the model calls of a budget.

    sampler: its name.
    num_steps: the steps that the pipeline is called with.
    calls: model calls.
    psnr: to the converged samples, mean over all noises, in dB.
    held_out: the same on held-out samples; None without them.
    """

    sampler: str
    num_steps: int
    calls: int
    psnr: float
    held_out: float | None = None


@dataclass(frozen=True)
class Tuned:
    """The plans that a tuning found, and all it measured on the way.

    plans: one for each budget, in the order of the budgets, with its provenance.
    best: the trials of these plans; their PSNR is the mean over all noises.
    even: for each budget, the best trial with evenly spaced steps, under any of the forecasts.
    held_out: of each plan, its mean PSNR on held-out samples; empty if there were none.
    trials: every trial of the searches.
    predicted: the PSNR to no cache that the surrogate expects of each of these trials, in dB.
    surrogate: the model of the error, fitted to the trials.
    fine: the run of the converged samples that plans are ranked by; None for the pipeline's own run.
    samplers: of each plan, the name of the sampler that it is for; ("own", ...) unless others were tried.
    schedulers: of each plan, the scheduler that it is for; None for the pipeline's own.
    uncached: for each budget, every sampler without a cache at its model calls; empty unless others were tried.
    images: what the search has sampled, as a number of images without a cache in the pipeline's own steps, trials of a
        file not included, nor what judged the result on held-out samples.
    """

    plans: tuple[Plan, ...]
    best: tuple[Trial, ...]
    even: tuple[Trial, ...]
    held_out: tuple[HeldOut, ...]
    trials: tuple[Trial, ...]
    predicted: tuple[float, ...]
    surrogate: Surrogate
    fine: FineRun | None = None
    samplers: tuple[str, ...] = ()
    schedulers: tuple[Any, ...] = ()
    uncached: tuple[tuple[Uncached, ...], ...] = ()
    images: float = 0.0

    @property
    def scheduler(self) -> Any:
        """The scheduler of the first plan, of diffusers; None for the pipeline's own."""
        return self.schedulers[0] if self.schedulers else None

    @property
    def num_steps(self) -> int:
        """The number of steps to call the pipeline with, for the first plan."""
        return self.plan.sampler.num_steps if self.plan.sampler is not None else self.plan.num_steps

    @property
    def plan(self) -> Plan:
        """The plan of the first budget."""
        return self.plans[0]

    def save(self, folder: Path, names: Sequence[str]) -> list[Path]:
        """Write every plan as ``plan-NAME.json``, by the names of the budgets; returns the paths."""
        paths = [folder / f"plan-{name}.json" for name in names]
        for plan, path in zip(self.plans, paths, strict=True):
            plan.save(path)
        return paths

    @property
    def reference(self) -> str:
        """What ``psnr`` compares with, as one line of text."""
        return f"converged samples: {self.fine}" if self.fine is not None else "the pipeline's own run without a cache"

    def document(self, paths: Sequence[Path]) -> dict[str, Any]:
        """The plans, saved at these paths, with their scores, for JSON."""
        held_out = [asdict(row) for row in self.held_out] or [None] * len(self.plans)
        rows = [
            asdict(trial)
            | {"forecast": str(trial.forecast), "plan": str(path), "even_psnr": even.psnr, "held_out": row}
            | ({"sampler": self.samplers[place], "uncached": [asdict(one) for one in self.uncached[place]]}
               if self.uncached else {})
            for place, (trial, even, path, row) in enumerate(zip(self.best, self.even, paths, held_out, strict=True))
        ]  # fmt: skip
        reference = {"text": self.reference, "run": asdict(self.fine) if self.fine is not None else None}
        return {"trials": len(self.trials), "images": self.images, "reference": reference, "plans": rows}

    def show(self) -> str:
        """A line of text for each plan, after one that says what PSNR is to; uncached samples for comparison."""
        lines = [f"{len(self.trials)} schedules sampled with. PSNR to {self.reference}; in brackets to no cache."]
        for place in range(len(self.best)):
            lines.append(f"{self.title(place)}: {self.scores(place)}")
            lines += self.beside(place)
        return "\n".join(lines)

    def title(self, place: int) -> str:
        """The schedule and forecast of a plan, with its sampler where others were tried."""
        trial = self.best[place]
        if not self.uncached:
            return f"{trial.pattern}  {trial.forecast}"
        run = f"{self.samplers[place]}, {len(trial.pattern)} steps"
        if "." not in trial.pattern:
            return f"{run}, no cache (no plan was nearer to the converged samples)"
        return f"{run}: {trial.pattern}  {trial.forecast}"

    def beside(self, place: int) -> list[str]:
        """A line of text for each sampler without a cache at the model calls of a plan's budget, the best first."""
        rows = sorted(self.uncached[place], key=lambda row: -row.psnr) if self.uncached else []
        return [
            f"    {row.sampler}, {row.num_steps} steps, {row.calls} calls, no cache: {row.psnr:.2f} dB"
            + (f", on held-out samples {row.held_out:.2f} dB" if row.held_out is not None else "")
            for row in rows
        ]

    def scores(self, place: int) -> str:
        """The PSNR of a plan to the reference and, in brackets, to no cache; and of the best even schedule."""
        trial, even = self.best[place], self.even[place]
        text = _both(trial.psnr, trial.own)
        if self.held_out:
            row = self.held_out[place]
            uncached = "" if self.fine is None else f", no cache {row.uncached:.2f} dB"
            text += f", on held-out samples {_both(row.psnr, row.own)}{uncached}"
        return f"{text}; even steps {_both(even.psnr, even.own)}"


def _both(psnr: float, own: float) -> str:
    return f"{psnr:.2f} dB ({own:.2f} dB)"
