"""Tune a plan for a diffusers video pipeline, such as Wan's: a source of your own in thirty lines.

    python examples/tune_video.py Wan-AI/Wan2.1-T2V-1.3B-Diffusers --prompts prompts.txt --steps 50 --speedup 2
    torchrun --nproc-per-node 8 examples/tune_video.py ...       each process samples its share

`forecache.tune` needs a source: the pipeline (`target`), and a method that samples images (`generate`). A video is one
tall image to it, frame below frame. Writes plan-2x.json and tune.json to --out; the same command continues an
interrupted tuning.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import forecache as fc


@dataclass(frozen=True)
class Videos:
    """A text-to-video pipeline as a source.

    pipe: the diffusers pipeline.
    size: height and width in pixels, and number of frames.
    classes: 0, since it takes prompts.
    """

    pipe: Any
    size: tuple[int, int, int]
    classes: int = 0

    @property
    def target(self) -> Any:
        return self.pipe

    def label(self, name: str) -> int:
        raise fc.errors.InputError(f"A {type(self.pipe).__name__} takes prompts; {name!r} is not a class.")

    def generate(self, labels: Sequence[str], how: Any, first_index: int = 0, on_step: Any = None) -> torch.Tensor:
        """Videos (B, C, frames x H, W) in [0, 1]; a video's noise depends on the seed and its number only."""
        height, width, frames = self.size
        numbers = how.indices(first_index, len(labels))
        seeds = [torch.Generator().manual_seed(1_000_003 * how.seed + number) for number in numbers]

        def step_done(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if on_step is not None:
                on_step(step)
            return tensors

        videos = self.pipe(
            prompt=list(labels),
            height=height,
            width=width,
            num_frames=frames,
            guidance_scale=how.guidance,
            num_inference_steps=how.num_steps,
            generator=seeds,
            callback_on_step_end=step_done,
            output_type="pt",
        ).frames
        return videos.float().cpu().transpose(1, 2).flatten(2, 3)


def say(trial: fc.fit.tuning.Trial) -> None:
    print(f"{trial.pattern}  {trial.forecast}: {trial.psnr:.2f} dB", flush=True)


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder of save_pretrained, or a hub repository")
    parser.add_argument("--prompts", type=Path, required=True, help="a file of prompts, one a line")
    parser.add_argument("--size", type=int, nargs=3, default=(480, 832, 81), metavar=("HEIGHT", "WIDTH", "FRAMES"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--speedup", type=float, action="append", help="MAC reduction; repeatable [2]")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--schedules", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("out/tune-video"))
    args = parser.parse_args(words)
    from diffusers import DiffusionPipeline

    gpu, leads = torch.cuda.is_available(), os.environ.get("RANK", "0") == "0"
    if "RANK" in os.environ:  # torchrun, or accelerate launch
        torch.distributed.init_process_group("nccl" if gpu else "gloo")
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    prompts = [line for line in args.prompts.read_text().splitlines() if line.strip()]
    if not prompts:
        parser.error(f"{args.prompts} has no prompts")
    speedups = args.speedup or [2.0]
    dtype = torch.bfloat16 if gpu else torch.float32
    pipe = DiffusionPipeline.from_pretrained(args.model, dtype=dtype)  # before diffusers 0.40: torch_dtype
    pipe.to("cuda" if gpu else "cpu").set_progress_bar_config(disable=True)
    tuned = fc.tune(
        Videos(pipe, tuple(args.size)),
        [prompts[number % len(prompts)] for number in range(args.samples)],
        num_steps=args.steps,
        budget=[1 / speedup for speedup in speedups],
        held_out=[prompts[-1 - number % len(prompts)] for number in range(args.held_out)],
        guidance=args.guidance,
        batch=1,
        number=args.schedules,
        path=args.out / "tune.json",
        on_trial=say if leads else None,
    )
    if leads:
        for speedup, plan in zip(speedups, tuned.plans, strict=True):
            plan.save(args.out / f"plan-{speedup:g}x.json")
        print(tuned.show())


if __name__ == "__main__":
    main(sys.argv[1:])
