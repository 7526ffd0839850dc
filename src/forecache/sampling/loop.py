"""A sampling loop of our own for class-conditional transformers and any diffusers scheduler.

The noise of a sample depends on the seed and its number, never on the batch that it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forecache.errors import InputError
from forecache.runtime.payback import followed


def generators(seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per sample, seeded by (seed, index)."""
    states = [int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]) for index in indices]
    return [torch.Generator().manual_seed(state % 2**63) for state in states]


def noise(shape: Sequence[int], seed: int, indices: Sequence[int]) -> Tensor:
    """Standard normal noise (len(indices), *shape), float32 on the CPU; row i depends on (seed, indices[i]) alone."""
    return _noise(shape, generators(seed, indices))


def _noise(shape: Sequence[int], drawn: Sequence[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in drawn])


def random_labels(count: int, classes: int, seed: int) -> list[int]:
    """``count`` classes, uniform at random as in ADM's sampling; label i depends on (seed, i) alone."""
    rngs = (np.random.default_rng((seed, index, 1)) for index in range(count))  # (seed, index) is the noise's
    return [int(rng.integers(classes)) for rng in rngs]


def check_labels(labels: Sequence[int], classes: int) -> None:
    """Raises InputError unless every label is one of the model's classes."""
    if not labels:
        raise InputError(f"No label was given; this model has the classes 0 to {classes - 1}.")
    if unknown := [label for label in labels if not 0 <= label < classes]:
        verb = "are" if len(unknown) > 1 else "is"
        raise InputError(
            f"This model has the classes 0 to {classes - 1}; {', '.join(map(str, unknown[:5]))} {verb} not among them."
        )


@torch.no_grad()
def sample(
    model: Any,
    scheduler: Any,
    labels: Sequence[int],
    *,
    num_steps: int,
    guidance: float = 1.5,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Samples (B, C, H, W) of a DiT, one per label, as the model gives them (pixels or latents).

    model: called as ``model(x, timestep=..., class_labels=...)``, with ``num_embeds_ada_norm`` classes and the label
    after the last one meaning "no class"; an output of twice the channels is (prediction, variance). guidance: with a
    scale over 1 each step is one call on the batch [conditional; unconditional]. indices: the numbers of the
    samples, 0, 1, ... by default; noise depends on them and the seed alone, also what a stochastic scheduler adds on
    its way if its `step` takes generators. on_step: called with the number of the finished step.
    """
    config = model.config
    check_labels(labels, config.num_embeds_ada_norm)
    if num_steps < 1:
        raise InputError(f"A run has at least one step; {num_steps} were asked for.")
    scheduler = followed(type(scheduler).from_config(scheduler.config), scheduler)
    try:
        scheduler.set_timesteps(num_steps, device=model.device)
    except ValueError as error:
        raise InputError(f"{type(scheduler).__name__} has no {num_steps} steps: {error}") from error
    shape = (config.in_channels, config.sample_size, config.sample_size)
    drawn = generators(seed, range(len(labels)) if indices is None else indices)
    more = {"generator": drawn} if "generator" in signature(scheduler.step).parameters else {}
    x_BCHW = _noise(shape, drawn).to(model.device, model.dtype) * scheduler.init_noise_sigma
    y_B = torch.tensor(list(labels), device=model.device)
    pair = guidance > 1
    if pair:
        y_B = torch.cat([y_B, torch.full_like(y_B, config.num_embeds_ada_norm)])
    for step, t in enumerate(scheduler.timesteps):
        inputs = scheduler.scale_model_input(torch.cat([x_BCHW, x_BCHW]) if pair else x_BCHW, t)
        times = t.to(inputs.device).expand(len(inputs))
        out = model(inputs, timestep=times, class_labels=y_B, return_dict=False)[0][:, : config.in_channels]
        if pair:
            conditional, unconditional = out.chunk(2)
            out = unconditional + guidance * (conditional - unconditional)
        x_BCHW = scheduler.step(out, t, x_BCHW, return_dict=False, **more)[0]
        if on_step is not None:
            on_step(step)
    return x_BCHW


def to_images(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] as images in [0, 1], float32 on the CPU, clipped."""
    return (pixels.float().cpu() / 2 + 0.5).clamp(0, 1)
