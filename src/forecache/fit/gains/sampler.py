"""The linear response of a sampler: every sample of a run as a sum of its noise and the model's predictions.

A deterministic scheduler without clipping or thresholding is linear in what it is given and treats all entries alike,
multistep solvers with their history included. So one run on a tensor with an entry for every impulse measures all of
its coefficients.

T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forecache.errors import InputError

TOLERANCE = 1e-4
"""Largest share by which a recorded run may differ from the response."""


@dataclass(frozen=True)
class Response:
    """The coefficients of a sampler, float64.

    of_noise: (T + 1,), of the initial noise in the sample before every step, and in the last one.
    of_predictions: (T + 1, T), of every step's prediction in the same samples.
    """

    of_noise: Tensor
    of_predictions: Tensor

    def check(self, samples: Sequence[Tensor], predictions: Sequence[Tensor], name: str) -> None:
        """Raises InputError unless a recorded run is what the response says.

        samples: before every step, and the last one. predictions: of every step. name: of the scheduler.
        """
        noise, size = samples[0].double(), samples[-1].double().norm()
        sums = torch.stack([prediction.double() for prediction in predictions])
        last = self.of_noise[-1] * noise + torch.tensordot(self.of_predictions[-1].to(sums), sums, 1)
        if not float((last - samples[-1].double()).norm()) <= TOLERANCE * float(size):
            raise InputError(
                f"The samples of {name} are no linear function of the model's predictions, because it draws noise, "
                "clips or thresholds: gains are measured for deterministic samplers without clipping."
            )


def response(scheduler: Any, timesteps: Tensor, begin: Any) -> Response:
    """The response of a scheduler that took these timesteps.

    begin: called with the scheduler, sets its timesteps as the pipeline did.
    """
    count = len(timesteps)
    begin(scheduler)
    x = torch.zeros(count + 1, 1, 1, 1, dtype=torch.float64)  # an entry for every prediction, and one for the noise
    x[count] = 1.0
    samples = [x]
    for step, t in enumerate(timesteps):
        impulse = torch.zeros_like(x)
        impulse[step] = 1.0
        x = scheduler.step(impulse, t, x, return_dict=False)[0].double()
        samples.append(x)
    table = torch.stack(samples).flatten(1)
    return Response(table[:, count], table[:, :count])
