"""The sampler of the original DiT code, by which the GOC and EOC papers sample: DDIM on a respaced process.

`RespacedDDIM` has the timesteps 999, 946, ..., 53, 0 for 20 steps, where diffusers' DDIMScheduler has 950, 900, ..., 0.
`RespacedDiT` is a pipeline that samples by it and guides the first three of the four channels alone; the fourth is the
conditional prediction. Written from Nichol & Dhariwal (arXiv 2102.09672, section 4) and from DDIM (arXiv 2010.02502,
Eq. 12).

B images, C channels of the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from forecache.errors import InputError
from forecache.sampling.sources import DiTSource, OnStep, Sampling

GUIDED_CHANNELS = 3
"""Channels that classifier-free guidance changes in DiT's code."""


def spaced_timesteps(num_steps: int, num_train_timesteps: int) -> tuple[int, ...]:
    """Evenly spaced real numbers from the last timestep down to 0, each rounded to the nearest whole number.

    Raises InputError for fewer than 2 steps, or for more than there are timesteps.
    """
    if not 2 <= num_steps <= num_train_timesteps:
        raise InputError(
            f"A respaced process has 2 to {num_train_timesteps} steps, the last and the first timestep among them; "
            f"{num_steps} were asked for."
        )
    stride = Fraction(num_train_timesteps - 1, num_steps - 1)
    return tuple(round(index * stride) for index in reversed(range(num_steps)))


def signal_shares(config: Mapping[str, Any]) -> Tensor:
    """Cumulative products of the alphas of every training timestep, float64, by the settings of a scheduler.

    Raises InputError for a schedule of betas other than ``linear``, ``scaled_linear`` and listed ones.
    """
    start, end, count = config["beta_start"], config["beta_end"], config["num_train_timesteps"]
    if config.get("trained_betas") is not None:
        betas = torch.as_tensor(config["trained_betas"], dtype=torch.float64)
    elif config["beta_schedule"] == "linear":
        betas = torch.linspace(start, end, count, dtype=torch.float64)
    elif config["beta_schedule"] == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
    else:
        raise InputError(
            f"The respaced sampler knows linear, scaled_linear and listed betas, and the pipeline's are "
            f"{config['beta_schedule']}: sample with the pipeline's own scheduler."
        )
    return torch.cumprod(1 - betas, 0)


class RespacedDDIM:
    """A scheduler with diffusers' interface: deterministic DDIM on `spaced_timesteps`, which clips nothing.

    config: settings of a diffusers scheduler: betas, number of training timesteps, type of prediction.
    timesteps: the timesteps of the run, int64, descending.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, **config: Any) -> None:
        if config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction", "sample"):
            raise InputError(f"The respaced sampler knows no predictions of type {config['prediction_type']!r}.")
        self.config = {name: value for name, value in config.items() if not name.startswith("_")}
        self._shares = signal_shares(self.config)
        self._following: dict[int, int | None] = {}
        self.timesteps = torch.arange(len(self._shares) - 1, -1, -1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RespacedDDIM:
        """The scheduler with the settings of another one."""
        return cls(**config)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Begin a run of so many steps."""
        steps = spaced_timesteps(num_inference_steps, len(self._shares))
        self._following = dict(zip(steps, [*steps[1:], None], strict=True))
        self.timesteps = torch.tensor(steps, device=device)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample as it is."""
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *, return_dict: bool = True) -> Any:
        """The sample at the next timestep; after the last one, the predicted image (its alpha is one).

        model_output, sample: (B, C, ...), of one shape.
        """
        wide = torch.promote_types(sample.dtype, torch.float32)
        x, predicted = sample.to(wide), model_output.to(wide)
        of_sample, of_prediction = self._coefficients(int(timestep))
        moved = (of_sample * x + of_prediction * predicted).to(sample.dtype)
        return SimpleNamespace(prev_sample=moved) if return_dict else (moved,)

    def _coefficients(self, timestep: int) -> tuple[float, float]:
        """The weights of the sample and of the prediction in the next sample, calculated in float64."""
        if timestep not in self._following:
            raise InputError(f"Timestep {timestep} is not among those of this run: call set_timesteps first.")
        following = self._following[timestep]
        share = float(self._shares[timestep])
        next_share = 1.0 if following is None else float(self._shares[following])
        signal, noise = math.sqrt(share), math.sqrt(1 - share)
        next_signal, next_noise = math.sqrt(next_share), math.sqrt(1 - next_share)
        kind = self.config.get("prediction_type", "epsilon")
        if kind == "epsilon":  # image = (x - noise * e) / signal
            return next_signal / signal, next_noise - next_signal * noise / signal
        if kind == "v_prediction":  # image = signal * x - noise * v, e = noise * x + signal * v
            return next_signal * signal + next_noise * noise, next_noise * signal - next_signal * noise
        return next_noise / noise, next_signal - next_noise * signal / noise  # e = (x - signal * image) / noise


class RespacedDiT(DiTSource):
    """A diffusers DiTPipeline that samples as DiT's original code does; see `respaced`.

    pipe: the pipeline, whose scheduler is a `RespacedDDIM`.
    """

    def generate(
        self, labels: Sequence[int], how: Sampling, first_index: int = 0, on_step: OnStep | None = None
    ) -> Tensor:
        with _guided(self.pipe.transformer, how.guidance):
            return super().generate(labels, how, first_index, on_step)


def respaced(pipe: Any) -> RespacedDiT:
    """The source that samples a DiTPipeline by the papers' sampler; its scheduler is replaced by a `RespacedDDIM`.

    Raises InputError for another pipeline, and for a scheduler whose betas are not known.
    """
    if type(pipe).__name__ != "DiTPipeline":
        raise InputError(
            f"The papers' sampler is that of DiT, and a {type(pipe).__name__} guides all of its channels: sample it by "
            "its own scheduler."
        )
    pipe.scheduler = RespacedDDIM.from_config(pipe.scheduler.config)
    return RespacedDiT(pipe)


@contextmanager
def _guided(transformer: Any, guidance: float) -> Iterator[None]:
    """Guide the first channels alone in this block.

    The pipeline guides every channel: u + s * (c - u) of the conditional c and the unconditional u. Where u is c, that
    is c exactly. So the unconditional half gets the conditional prediction in the channels that are not guided.
    """
    if guidance <= 1:
        yield
        return
    channels = transformer.config.in_channels

    def replace(module: Any, args: Any, output: Any) -> Any:
        tensor = output[0]
        half, rest = len(tensor) // 2, slice(GUIDED_CHANNELS, channels)
        tensor = tensor.clone()
        tensor[half:, rest] = tensor[:half, rest]
        return (tensor,) if isinstance(output, tuple) else type(output)(sample=tensor)

    hook = transformer.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()
