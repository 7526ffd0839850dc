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
    """

    plans: tuple[Plan, ...]
    best: tuple[Trial, ...]
    even: tuple[Trial, ...]
    held_out: tuple[HeldOut, ...]
    trials: tuple[Trial, ...]
    predicted: tuple[float, ...]
    surrogate: Surrogate
    fine: FineRun | None = None

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
            for trial, even, path, row in zip(self.best, self.even, paths, held_out, strict=True)
        ]
        reference = {"text": self.reference, "run": asdict(self.fine) if self.fine is not None else None}
        return {"trials": len(self.trials), "reference": reference, "plans": rows}

    def show(self) -> str:
        """A line of text for each plan, after one that says what PSNR is to; uncached samples for comparison."""
        lines = [f"{len(self.trials)} schedules sampled with. PSNR to {self.reference}; in brackets to no cache."]
        lines += [f"{trial.pattern}  {trial.forecast}: {self.scores(place)}" for place, trial in enumerate(self.best)]
        return "\n".join(lines)

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
