"""The bundled digits model behind a set of plans: one transformer, and a pipeline for each plan.

A plan enabled on a pipeline applies to that pipeline's calls only. The plans are enabled once, when the server starts,
and a request selects its plan by selecting a pipeline; the model is not changed while it serves.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import forecache as fc
from forecache.report.figures import tile
from forecache.sampling.loop import noise, to_images
from forecache.zoo import Digits, load_digits

NONE = "none"
"""The name of sampling without a plan."""
METHODS: Mapping[str, fc.Method] = MappingProxyType(
    {
        "fora-50": fc.fora(interval=2),
        "goc-50": fc.goc(fc.fora(interval=2), eta=0.8),
        "taylor-50": fc.taylorseer(fc.fora(interval=2), 1),
        "taylor-67": fc.taylorseer(fc.fora(interval=3), 2),
    }
)
"""The plans that every server has; the number is the percentage of skipped steps."""
PLAN_STEPS = 20
"""Number of steps of these plans; requests of other lengths get the plan resampled."""


class DigitsPipeline:
    """A pipeline for digits, made like those of diffusers: it sets its scheduler's timesteps and calls the model."""

    def __init__(self, digits: Digits) -> None:
        self.transformer: Any = digits.transformer
        self.scheduler: Any = type(digits.scheduler).from_config(digits.scheduler.config)

    @torch.no_grad()
    def __call__(
        self,
        labels: Sequence[int],
        num_inference_steps: int,
        guidance_scale: float,
        seed: int,
        on_step: Callable[[], None] | None = None,
    ) -> Tensor:
        """Images (B, 1, H, W) in [0, 1], one per label. on_step: called after every step; may raise to end the run."""
        config = self.transformer.config
        self.scheduler.set_timesteps(num_inference_steps)
        shape = (config.in_channels, config.sample_size, config.sample_size)
        x_BCHW = noise(shape, seed, range(len(labels))) * self.scheduler.init_noise_sigma
        y_B = torch.tensor(list(labels))
        pair = guidance_scale > 1
        if pair:
            y_B = torch.cat([y_B, torch.full_like(y_B, config.num_embeds_ada_norm)])
        for t in self.scheduler.timesteps:
            inputs = self.scheduler.scale_model_input(torch.cat([x_BCHW, x_BCHW]) if pair else x_BCHW, t)
            output = self.transformer(inputs, timestep=t.expand(len(inputs)), class_labels=y_B, return_dict=False)[0]
            output = output[:, : config.in_channels]
            if pair:
                conditional, unconditional = output.chunk(2)
                output = unconditional + guidance_scale * (conditional - unconditional)
            x_BCHW = self.scheduler.step(output, t, x_BCHW, return_dict=False)[0]
            if on_step is not None:
                on_step()
        return to_images(x_BCHW)


@dataclass(frozen=True)
class Picture:
    """The image of a request.

    png: the PNG file's bytes.
    computed: share of the features that was computed for it, 0 to 1.
    """

    png: bytes
    computed: float


class Plans:
    """The model with its plans enabled; `close` disables them. One thread at a time may call `generate`.

    digits: the model. Default: loaded.
    files: further plans by name, as files of `Plan.save`.

    Raises PlanError for a file that is not a plan, PlanMismatchError for a plan of another model or scheduler, and
    AlreadyAppliedError if the transformer already has plans.
    """

    def __init__(self, digits: Digits | None = None, files: Mapping[str, Path] | None = None) -> None:
        self.digits = digits or load_digits()
        self.pipes: dict[str, DigitsPipeline] = {NONE: DigitsPipeline(self.digits)}
        self.sessions: dict[str, fc.Session] = {}
        grid = fc.grid(self.pipes[NONE], num_steps=PLAN_STEPS)
        plans = {name: method.plan(grid) for name, method in METHODS.items()}
        plans |= {name: fc.Plan.load(path) for name, path in (files or {}).items()}
        guards = fc.runtime.Guards(same_model=True, same_scheduler=True)
        try:
            for name, plan in plans.items():
                pipe = DigitsPipeline(self.digits)
                session = fc.enable(pipe, plan, resample=True, guards=guards)
                assert isinstance(session, fc.Session)  # of one transformer
                self.pipes[name], self.sessions[name] = pipe, session
        except fc.ForecacheError:
            self.close()
            raise

    @property
    def names(self) -> list[str]:
        """The names of the plans that a request may ask for."""
        return list(self.pipes)

    def generate(
        self, plan: str, labels: Sequence[int], steps: int, guidance: float, seed: int, on_step: Callable[[], None]
    ) -> Picture:
        """The digits side by side. Raises PlanError if the plan cannot be resampled to this number of steps."""
        before = self.cells(plan)
        images = self.pipes[plan](labels, steps, guidance, seed, on_step)
        computed, cells = (after - earlier for after, earlier in zip(self.cells(plan), before, strict=True))
        return Picture(png(images), computed / cells if cells else 1.0)

    def cells(self, plan: str) -> tuple[int, int]:
        """Features computed so far, and features that would have been computed without the plan; zeros for no plan."""
        if plan not in self.sessions:
            return 0, 0
        stats = self.sessions[plan].stats
        return stats.computed, stats.computed + stats.skipped + stats.partial

    def close(self) -> None:
        """Disable every plan; the model is then unchanged."""
        for name in self.sessions:
            fc.disable(self.pipes[name])
        self.sessions.clear()


def png(images: Tensor) -> bytes:
    """Images (B, 1, H, W) in [0, 1] side by side as an 8-bit grey PNG."""
    pixels = (tile(images, len(images))[..., 0] * 255).round().astype("uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
