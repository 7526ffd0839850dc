"""What a tuning found."""

from __future__ import annotations

from dataclasses import dataclass

from forecache.fit.tuning.surrogate import Surrogate
from forecache.fit.tuning.trials import Trial, told
from forecache.plan.plan import Plan


@dataclass(frozen=True)
class Tuned:
    """What tuning found. plans: one a budget, in the order of the budgets, with its provenance; chosen: their trials.

    held_out: their mean PSNR in dB on samples that they were not tuned on; empty if there were none. trials: everything
    that was sampled with. uniform: for every budget, the best that the even schedule did under any of the forecasts.
    surrogate: the model of the error, fitted to the trials; predicted: what it says of every trial, in dB.
    """

    plans: tuple[Plan, ...]
    chosen: tuple[Trial, ...]
    uniform: tuple[Trial, ...]
    held_out: tuple[float, ...]
    trials: tuple[Trial, ...]
    predicted: tuple[float, ...]
    surrogate: Surrogate

    @property
    def plan(self) -> Plan:
        """The plan of the first budget."""
        return self.plans[0]

    def show(self) -> str:
        """One line a plan, as text."""
        lines = [f"{len(self.trials)} schedules sampled with"]
        for place, (trial, even) in enumerate(zip(self.chosen, self.uniform, strict=True)):
            unseen = f", {self.held_out[place]:.2f} dB on others" if self.held_out else ""
            lines.append(
                f"{trial.pattern}  {told(trial.forecast)}: {trial.psnr:.2f} dB{unseen} (even steps: {even.psnr:.2f} dB)"
            )
        return "\n".join(lines)
