"""The table of docs/sessions.md: what every scheduler announces, how often a pipeline calls its model, what is counted.

`python -m support.counting`, in the folder tests, prints it.
"""

from __future__ import annotations

import contextlib
import sys
import warnings

import diffusers

import forecache as fc
from forecache.runtime import calls, counting
from support import runs
from support.pipelines import MASKED, PAIR, POOLED, SQUARE, pipeline
from support.tiny import TINY

STEPS = 5
BEGIN, END = "<!-- counting: python -m support.counting, in tests -->", "<!-- /counting -->"

OWN_PIPELINES = {
    "CogVideoXDPMScheduler": runs.cog_video,
    "SCMScheduler": runs.sana_sprint,
    "FlowMapEulerDiscreteScheduler": runs.any_flow,
    "LTXEulerAncestralRFScheduler": runs.ltx_long,
}
"""Schedulers that come with pipelines of their own."""

NOT_RUN = {
    "CosineDPMSolverMultistepScheduler": "needs torchsde",
    "DPMSolverSDEScheduler": "needs torchsde",
    "HeliosDMDScheduler": "Helios alone sets its timesteps",
    "HeliosScheduler": "Helios alone sets its timesteps",
    "PiflowScheduler": "takes a model of several outputs",
}
"""Schedulers of transformers that are not in the table, and why."""

NO_TRANSFORMER = {
    "AmusedScheduler", "BlockRefinementScheduler", "DDPMWuerstchenScheduler", "DiscreteDDIMScheduler",
    "EntropyBoundScheduler", "KarrasVeScheduler", "RFD4ProteinaScheduler", "RePaintScheduler", "ScoreSdeVeScheduler",
    "UnCLIPScheduler", "VQDiffusionScheduler",
}  # fmt: skip
"""Schedulers of U-Nets, of tokens, and of molecules."""


def schedulers() -> list[str]:
    """The schedulers of diffusers that a pipeline with a diffusion transformer can use."""
    names = [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")]
    return [name for name in names if name not in NO_TRANSFORMER]


def run_with(name: str) -> object:
    """A pipeline with a scheduler of this name, as `support.runs` has them."""
    if name in OWN_PIPELINES:
        return OWN_PIPELINES[name]()
    scheduler = getattr(diffusers, name)()
    if hasattr(scheduler, "init_noise_sigma"):
        model = runs.random("PixArtTransformer2DModel", **TINY["PixArt"].config | {"num_layers": 1})
        how = MASKED | SQUARE | {"use_resolution_binning": False, "negative_prompt": None}
        return runs.run(pipeline("PixArtAlphaPipeline", model, scheduler), None, STEPS, **how)
    model = runs.random("SD3Transformer2DModel", **TINY["SD3"].config | {"num_layers": 1})
    how = PAIR | SQUARE | {"pooled_prompt_embeds": POOLED, "negative_pooled_prompt_embeds": POOLED}
    return runs.run(pipeline("StableDiffusion3Pipeline", model, scheduler), None, STEPS, **how)


def counted(run: object, steps: int = STEPS) -> tuple[int, int, list[int]]:
    """The number of timesteps that are announced, of model calls that are made, and those that we count, of each run.

    Calls that fill a model's own KV cache are left out.
    """
    made, found, of = [], [], counting.run_of

    def spy(*args, **kwargs):
        found.append(of(*args, **kwargs))
        return found[-1]

    def note(module, args, kwargs):
        if not calls.fills_kv_cache(kwargs):
            made.append(1)

    hook = run.pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    counting.run_of = spy
    plan = fc.fora(2).plan(fc.grid(run.pipe, steps, sites=run.sites))
    try:
        with warnings.catch_warnings(), fc.apply(run.pipe, plan, resample=True):
            warnings.simplefilter("ignore")
            run.sample(steps)
    finally:
        counting.run_of = of
        hook.remove()
    return len(run.pipe.scheduler.timesteps), len(made), [each.num_calls for each in found]


def table() -> list[str]:
    """The rows of the table."""
    rows = [
        "| scheduler | pipeline | steps asked | announced | model calls | counted |",
        "|---|---|---|---|---|---|",
    ]
    for name in schedulers():
        if name not in NOT_RUN:
            run = run_with(name)
            announced, calls, found = counted(run)
            kind = type(run.pipe).__name__
            times = f"{len(found)} x {found[0]}" if len(found) > 1 else str(found[0])
            of = f"{calls} in {len(found)} chunks" if len(found) > 1 else str(calls)
            rows.append(f"| `{name}` | `{kind}` | {STEPS} | {announced} | {of} | {times} |")
    return rows


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        lines = table()
    print("\n".join(lines))
