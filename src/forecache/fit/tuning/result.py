"""The result of a tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forecache.fit.tuning.surrogate import Surrogate
from forecache.fit.tuning.trials import Trial
from forecache.plan.plan import Plan


@dataclass(frozen=True)
class Tuned:
    """The plans that a tuning found, and all it measured on the way.

    plans: one for each budget, in the order of the budgets, with its provenance.
    best: the trials of these plans; their PSNR is the mean over all noises.
    even: for each budget, the best trial with evenly spaced steps, under any of the forecasts.
    held_out: mean PSNR of each plan on held-out samples, in dB; empty if there were none.
    trials: every trial of the searches.
    predicted: the PSNR that the surrogate expects of each of these trials, in dB.
    surrogate: the model of the error, fitted to the trials.
    """

    plans: tuple[Plan, ...]
    best: tuple[Trial, ...]
    even: tuple[Trial, ...]
    held_out: tuple[float, ...]
    trials: tuple[Trial, ...]
    predicted: tuple[float, ...]
    surrogate: Surrogate

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

    def document(self, paths: Sequence[Path]) -> dict[str, Any]:
        """The plans, saved at these paths, with their scores, for JSON."""
        held_out = self.held_out or (None,) * len(self.plans)
        rows = [
            asdict(trial)
            | {"forecast": str(trial.forecast), "plan": str(path), "even_psnr": even.psnr, "held_out_psnr": psnr}
            for trial, even, path, psnr in zip(self.best, self.even, paths, held_out, strict=True)
        ]
        return {"trials": len(self.trials), "plans": rows}

    def show(self) -> str:
        """One line of text for each plan."""
        lines = [f"{len(self.trials)} schedules sampled with"]
        for place, (trial, even) in enumerate(zip(self.best, self.even, strict=True)):
            held_out = f", {self.held_out[place]:.2f} dB on held-out samples" if self.held_out else ""
            lines.append(
                f"{trial.pattern}  {trial.forecast}: {trial.psnr:.2f} dB{held_out} (even steps: {even.psnr:.2f} dB)"
            )
        return "\n".join(lines)
