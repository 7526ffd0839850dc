"""The nodes: Forecache, which patches a MODEL, and Forecache Schedule, which draws what it skips."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import forecache as fc

from .sampling import KEY, Settings, Wrappers

CELL = 24
"""Pixels of a step in the picture of a schedule."""
COLOURS = {
    "#": (0.29, 0.44, 0.71),
    "~": (0.78, 0.85, 0.95),
    ".": (0.90, 0.90, 0.90),
}
"""Computed, forecast and reused."""


class Forecache:
    """A MODEL that is sampled with fewer computed features."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {
            "required": {
                "model": ("MODEL",),
                "method": (
                    ["speed-up", "fora", "taylorseer", "goc"],
                    {"tooltip": "speed-up takes what is on record for it; the others compute one step in `interval`."},
                ),
                "speedup": ("FLOAT", {"default": 2.0, "min": 1.3, "max": 5.0, "step": 0.1}),
                "interval": ("INT", {"default": 2, "min": 1, "max": 10}),
                "cache": (["gpu", "cpu"], {"tooltip": "Where kept features are; cpu is slower and needs no VRAM."}),
            },
            "optional": {
                "plan": ("STRING", {"default": "", "tooltip": "Path of a plan file, in place of the method."}),
                "level": (
                    ["stack", "blocks"],
                    {"tooltip": "stack keeps one feature of all blocks; blocks one of each, for a ControlNet."},
                ),
            },
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "forecache"
    DESCRIPTION = "Skips model calls and forecasts what they would have given. Put it last before the sampler."

    def patch(
        self, model: Any, method: str, speedup: float, interval: int, cache: str, plan: str = "", level: str = "stack"
    ) -> tuple[Any]:
        """A clone of the model whose samplings follow the settings."""
        from comfy.patcher_extension import WrappersMP  # type: ignore[import-not-found]

        wrappers = Wrappers(Settings(method, speedup, interval, cache, plan.strip(), level))
        patched = model.clone()
        for kind, wrapper in (
            (WrappersMP.OUTER_SAMPLE, wrappers.outer_sample),
            (WrappersMP.APPLY_MODEL, wrappers.apply_model),
        ):
            patched.remove_wrappers_with_key(kind, KEY)  # of another Forecache node before this one
            patched.add_wrapper_with_key(kind, KEY, wrapper)
        patched.set_attachments(KEY, wrappers)
        return (patched,)


class ForecacheSchedule:
    """The schedule of a patched MODEL as an IMAGE, without sampling."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"model": ("MODEL",), "steps": ("INT", {"default": 20, "min": 1, "max": 1000})}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "draw"
    CATEGORY = "forecache"
    DESCRIPTION = "One square a step: dark is computed, light is forecast, grey is reused."

    def draw(self, model: Any, steps: int) -> tuple[Tensor]:
        """The picture (1, H, W, 3), one line for all parts of the model that do the same."""
        wrappers = model.get_attachment(KEY)
        if wrappers is None:
            raise fc.errors.InputError("The model has no schedule: connect the output of a Forecache node.")
        return (picture(wrappers.settings.plan_for(model.model.diffusion_model, steps)),)


def picture(plan: fc.Plan) -> Tensor:
    """A plan as an image (1, H, W, 3) in [0, 1]."""
    lines = list(dict.fromkeys("".join(cell.sign for cell in row) for row in plan.rows))
    pixels_HWC = torch.ones(CELL * len(lines), CELL * plan.num_steps, 3)
    for row, line in enumerate(lines):
        for step, sign in enumerate(line):
            y, x = CELL * row, CELL * step
            colour = torch.tensor(COLOURS.get(sign, COLOURS["~"]))
            pixels_HWC[y + 1 : y + CELL - 1, x + 1 : x + CELL - 1] = colour
    return pixels_HWC[None]


NODE_CLASS_MAPPINGS = {"Forecache": Forecache, "ForecacheSchedule": ForecacheSchedule}
NODE_DISPLAY_NAME_MAPPINGS = {"Forecache": "Forecache", "ForecacheSchedule": "Forecache Schedule"}
