"""Tuning of DiT-XL/2, PixArt, FLUX and Wan: the command for each, and the GPU hours that it needs.

    python benchmarks/tune_models.py                     the table in docs/tuning.md: exact MACs from shapes (seconds)
    python benchmarks/tune_models.py --run DiT-XL/2      the command itself, on a GPU with the weights at hand (hours)

Hours are model calls times MACs a call over --tflops, the bf16 rate that a GPU reaches on such a model (an H100 about
400 of its 989). Text encoders and decoders are not counted. Nothing of this has been run on the real weights.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import common
import torch

import forecache as fc
from forecache.fit.tuning import plan_search, proposals, refine, trial_runner
from forecache.zoo import SHAPES

SPEEDUPS = (1.5, 2.0, 3.0, 4.5)
TFLOPS = 400.0


@dataclass(frozen=True)
class Subject:
    """A model to tune, from its shapes.

    output: size of an image or a video.
    kind: class of the model in diffusers.
    config: arguments of the class.
    inputs: arguments of one call, for a number of rows.
    rows: of a call on one sample; two with a guidance pair.
    calls: model calls of a step.
    steps: sampling steps.
    samples: that are tuned on.
    held_out: samples that judge.
    schedules: sampled with for each speed-up.
    command: that tunes it.
    """

    output: str
    kind: str
    config: Mapping[str, Any]
    inputs: Callable[[int], Mapping[str, torch.Tensor | Mapping[str, Any]]]
    rows: int
    calls: int
    steps: int
    samples: int
    held_out: int
    schedules: int
    command: str

    def macs(self) -> int:
        """Multiply-accumulates of a call on one sample, its guidance pair included."""
        import diffusers

        with torch.device("meta"):
            model = getattr(diffusers, self.kind)(**self.config)
            inputs = self.inputs(self.rows)
        grid = fc.grid(model, self.steps)
        cost = fc.explicit(compute=range(self.steps)).plan(grid).cost(model, inputs=inputs)
        return self.calls * cost.macs_uncached // self.steps

    def passes(self) -> float:
        """The cost of a tuning, in runs of one sample without a cache."""
        noises = trial_runner.NOISES
        trials = self.schedules + proposals.LAST + plan_search.FINALISTS * noises
        fixed, by_step = refine.most_samplings(0, noises), refine.most_samplings(1, noises)
        refinements = [
            fixed + (by_step - fixed) * self.steps * (1 - 1 / speedup) for speedup in SPEEDUPS
        ]  # the skipped steps are not a whole number here
        runs = [(trials + refinement) / speedup for refinement, speedup in zip(refinements, SPEEDUPS, strict=True)]
        tuned = self.samples * (1 + noises + sum(runs))
        return tuned + self.held_out * (1 + sum(1 / speedup for speedup in SPEEDUPS))


def _dit(rows: int) -> dict[str, Any]:
    labels = torch.zeros(rows, dtype=torch.long)
    return {"hidden_states": torch.empty(rows, 4, 32, 32), "timestep": labels, "class_labels": labels}


def _pixart(rows: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(rows, 4, 64, 64),
        "encoder_hidden_states": torch.empty(rows, 120, 4096),
        "encoder_attention_mask": torch.empty(rows, 120),
        "timestep": torch.zeros(rows, dtype=torch.long),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _flux(rows: int) -> dict[str, Any]:
    """1024 x 1024: 64 x 64 tokens of 2 x 2 latents, 512 of the text."""
    return {
        "hidden_states": torch.empty(rows, 4096, 64),
        "encoder_hidden_states": torch.empty(rows, 512, 4096),
        "pooled_projections": torch.empty(rows, 768),
        "timestep": torch.empty(rows),
        "guidance": torch.empty(rows),
        "img_ids": torch.empty(4096, 3),
        "txt_ids": torch.empty(512, 3),
    }


def _wan(rows: int) -> dict[str, Any]:
    """832 x 480, 81 frames: 21 x 60 x 104 latents."""
    return {
        "hidden_states": torch.empty(rows, 16, 21, 60, 104),
        "timestep": torch.zeros(rows, dtype=torch.long),
        "encoder_hidden_states": torch.empty(rows, 512, 4096),
    }


XL = SHAPES["dit-xl-2"]
PIXART = SHAPES["pixart-alpha"]
WAN_SMALL = {"num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 30, "ffn_dim": 8960}
AT = " ".join(f"--speedup {speedup:g}" for speedup in SPEEDUPS)
MODELS = {
    "DiT-XL/2": Subject(
        "256 x 256", XL.kind, XL.config, _dit, 2, 1, 50, 32, 200, 48,
        f"forecache tune --model facebook/DiT-XL-2-256 --steps 50 --samples 32 --held-out 200 {AT} --out out/tune-dit",
    ),
    "PixArt-alpha": Subject(
        "512 x 512", PIXART.kind, PIXART.config, _pixart, 2, 1, 20, 32, 200, 48,
        "forecache tune --model PixArt-alpha/PixArt-XL-2-512x512 --steps 20 --samples 32 --held-out 200 "
        f"--prompts prompts.txt {AT} --out out/tune-pixart",
    ),
    "FLUX.1-dev": Subject(
        "1024 x 1024", "FluxTransformer2DModel", {"guidance_embeds": True}, _flux, 1, 1, 28, 16, 64, 48,
        "torchrun --nproc-per-node 8 -m forecache tune --model black-forest-labs/FLUX.1-dev --steps 28 --samples 16 "
        f"--held-out 64 --batch 1 --prompts prompts.txt {AT} --out out/tune-flux",
    ),
    "Wan 2.1 1.3B": Subject(
        "832 x 480, 81 frames", "WanTransformer3DModel", WAN_SMALL, _wan, 1, 2, 50, 8, 16, 32,
        "torchrun --nproc-per-node 8 examples/tune_video.py Wan-AI/Wan2.1-T2V-1.3B-Diffusers --steps 50 --samples 8 "
        f"--held-out 16 --schedules 32 --prompts prompts.txt {AT} --out out/tune-wan",
    ),
}  # fmt: skip


def table(tflops: float) -> list[str]:
    """The table, its note, and the commands."""
    lines = [
        "| model | of | TMACs a step | steps | samples | schedules | GPU hours |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, subject in MODELS.items():
        macs = subject.macs()
        hours = subject.passes() * subject.steps * 2 * macs / (tflops * 1e12) / 3600
        lines.append(
            f"| {name} | {subject.output} | {macs / 1e12:.2f} | {subject.steps} | {subject.samples} + "
            f"{subject.held_out} | {subject.schedules} x {len(SPEEDUPS)} | {hours:.1f} |"
        )
    speedups = ", ".join(f"{speedup:g}x" for speedup in SPEEDUPS)
    note = (
        f"Plans for {speedups} fewer MACs; samples: tuned on + held out. MACs are counted from shapes, guidance "
        f"included; hours are of one GPU at {tflops:g} TFLOP/s, without text encoders and decoders."
    )
    return [*lines, "", note, "", "```text", *(subject.command for subject in MODELS.values()), "```"]


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--run", choices=list(MODELS), help="run the command of this model instead")
    parser.add_argument("--tflops", type=float, default=TFLOPS, help="bf16 rate of the GPU on such a model")
    args = parser.parse_args(words)
    if args.run:
        sys.exit(subprocess.run(shlex.split(MODELS[args.run].command), check=False, cwd=common.ROOT).returncode)
    lines = table(args.tflops)
    print("\n".join(lines))
    common.fill_page("table models", lines)


if __name__ == "__main__":
    main(sys.argv[1:])
