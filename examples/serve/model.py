"""The bundled digits model behind a set of plans: one transformer, and a session for each plan.

The plans are applied once, when the server starts, to requests alone: a request begins with its number of steps in the
session of its plan, and every model call says which request it belongs to. So the steps of several requests may take
turns, each with a cache of its own; the model is not changed while it serves.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
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


@dataclass(frozen=True)
class Picture:
    """The image of a request.

    png: the PNG file's bytes.
    computed: share of the features that was computed for it, 0 to 1.
    """

    png: bytes
    computed: float


Generation = Generator[None, None, Picture]
"""A generation in progress."""


class Plans:
    """The model with its plans applied; `close` takes them off. One thread at a time may advance a generation.

    digits: the model. Default: loaded.
    files: further plans by name, as files of `Plan.save`.
    max_drift: the most by which a request may change faster than the samples at guidance 1.5 that are measured here at
        the start; what is left of one that does is computed. None, the default, is no limit.

    Raises PlanError for a file that is not a plan, PlanMismatchError for a plan of another model or scheduler, and
    AlreadyAppliedError if the transformer already has plans.
    """

    def __init__(
        self, digits: Digits | None = None, files: Mapping[str, Path] | None = None, max_drift: float | None = None
    ) -> None:
        self.digits = digits or load_digits()
        self.sessions: dict[str, fc.Session] = {}
        self._stack = ExitStack()
        grid = fc.grid(self.digits, num_steps=PLAN_STEPS)
        plans = {name: method.plan(grid) for name, method in METHODS.items()}
        plans |= {name: fc.Plan.load(path) for name, path in (files or {}).items()}
        changes: tuple[float, ...] = ()
        if max_drift is not None:
            stats = fc.Statistics.load(fc.zoo.record("digits").statistics_path(PLAN_STEPS))
            changes = stats.known_signals().output_changes()
        guards = fc.runtime.Guards(max_drift=max_drift, changes=changes, same_model=True, same_scheduler=True)
        try:
            for name, plan in plans.items():
                session = fc.apply(self.digits, plan, resample=True, guards=guards, only_requests=True)
                self.sessions[name] = self._stack.enter_context(session)
        except fc.ForecacheError:
            self.close()
            raise

    @property
    def names(self) -> list[str]:
        """The names of the plans that a request may ask for."""
        return [NONE, *self.sessions]

    def generate(self, plan: str, labels: Sequence[int], steps: int, guidance: float, seed: int) -> Generation:
        """A generation of the digits side by side: each ``next`` makes one step, and the last returns the picture.

        Any number of them may be in progress. One that is closed, or fails, leaves nothing. Raises PlanError with its
        first step if the plan cannot be resampled to this number of steps.
        """
        key, session = object(), self.sessions.get(plan)
        scheduler: Any = type(self.digits.scheduler).from_config(self.digits.scheduler.config)
        scheduler.set_timesteps(steps)
        computed = cells = 0
        if session is not None:
            session.requests.begin(key, timesteps=scheduler.timesteps.tolist())
        try:
            config: Any = self.digits.transformer.config
            shape = (config.in_channels, config.sample_size, config.sample_size)
            x_BCHW = noise(shape, seed, range(len(labels))) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                before = self.cells(plan)
                with session.requests.call(key) if session is not None else nullcontext():
                    output = self._predict(scheduler, x_BCHW, t, labels, guidance)
                made, of = (after - earlier for after, earlier in zip(self.cells(plan), before, strict=True))
                computed, cells = computed + made, cells + of
                x_BCHW = scheduler.step(output, t, x_BCHW, return_dict=False)[0]
                yield
            if session is not None:
                session.requests.end(key)
        finally:
            if session is not None:
                session.requests.abort(key)
        return Picture(png(to_images(x_BCHW)), computed / cells if cells else 1.0)

    @torch.no_grad()
    def _predict(self, scheduler: Any, x_BCHW: Tensor, t: Tensor, labels: Sequence[int], guidance: float) -> Tensor:
        """The model's output for a step, guided where guidance is over 1; both halves are one call."""
        model: Any = self.digits.transformer
        y_B = torch.tensor(list(labels))
        if guidance > 1:
            y_B = torch.cat([y_B, torch.full_like(y_B, model.config.num_embeds_ada_norm)])
        inputs = scheduler.scale_model_input(torch.cat([x_BCHW, x_BCHW]) if guidance > 1 else x_BCHW, t)
        output = model(inputs, timestep=t.expand(len(inputs)), class_labels=y_B, return_dict=False)[0]
        output = output[:, : model.config.in_channels]
        if guidance <= 1:
            return output
        conditional, unconditional = output.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def cells(self, plan: str) -> tuple[int, int]:
        """Features computed so far, and features that would have been computed without the plan; zeros for no plan."""
        if plan not in self.sessions:
            return 0, 0
        stats = self.sessions[plan].stats
        return stats.computed, stats.computed + stats.skipped + stats.partial

    def close(self) -> None:
        """Take every plan off; the model is then unchanged."""
        self._stack.close()
        self.sessions.clear()


def png(images: Tensor) -> bytes:
    """Images (B, 1, H, W) in [0, 1] side by side as an 8-bit grey PNG."""
    pixels = (tile(images, len(images))[..., 0] * 255).round().astype("uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
