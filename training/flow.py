"""Rectified-flow training on a CPU that others use too: what `emoji.py` and `moving_digits.py` have in common.

A run is a folder with `checkpoint.safetensors` (weights, averaged weights, the optimiser's moments; step and settings
as JSON in its header) and `log.jsonl`. Every random number of step n comes from a generator seeded with (seed, n), so a
run that was interrupted sees the data that it would have seen. Nothing depends on the clock: a run may be stopped with
SIGSTOP and go on with SIGCONT; SIGTERM ends it after the step at hand, with a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors import safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Generator, Tensor

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
AVERAGED = 12
"""The averaged weights look back over about one part in this many of all steps so far."""
ATTENTION = torch.nn.functional.scaled_dot_product_attention


class Task(Protocol):
    """What is trained, and its loss."""

    @property
    def module(self) -> torch.nn.Module:
        """Everything that has weights."""
        ...

    def prepare(self) -> None:
        """What comes before the first step of a new run."""
        ...

    def loss(self, draw: Generator) -> Tensor:
        """The loss of a batch that ``draw`` chooses."""
        ...


def generator(seed: int, step: int) -> Generator:
    """The source of all random numbers of one step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def times(count: int, draw: Generator, spread: float = 1.0) -> Tensor:
    """Logit-normal times in (0, 1), 1 for noise: one in each of ``count`` equally likely intervals."""
    share = (torch.arange(count) + torch.rand(count, generator=draw)) / count
    return torch.sigmoid(spread * torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4)))


def flow_loss(clean: Tensor, draw: Generator, velocity: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Mean square error of noise minus data, predicted by ``velocity`` from points on the line between the two."""
    time_B = times(len(clean), draw)
    noise = torch.randn(clean.shape, generator=draw)
    noisy = torch.lerp(clean, noise, time_B.view(-1, *[1] * (clean.ndim - 1)))
    return (velocity(noisy, time_B).float() - (noise - clean)).square().mean()


@torch.no_grad()
def draw_samples(
    noise: Tensor,
    velocity: Callable[[Tensor, Tensor], Tensor],
    without: Callable[[Tensor, Tensor], Tensor],
    scheduler: FlowMatchEulerDiscreteScheduler,
    steps: int,
    guidance: float,
) -> Tensor:
    """Euler's way from noise to data; ``without`` is the velocity without a prompt, for guidance over 1."""
    scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)])
    sample, euler = noise, cast("Any", scheduler)
    for timestep in euler.timesteps:
        time_B = (timestep / euler.config.num_train_timesteps).expand(len(noise))
        asked = velocity(sample, time_B)
        if guidance != 1:
            free = without(sample, time_B)
            asked = free + guidance * (asked - free)
        sample = euler.step(asked, timestep, sample, return_dict=False)[0]
    return sample


def write_grid(images: Tensor, path: Path, columns: int, scale: int = 3) -> None:
    """A PNG of images (B, C, H, W) in [-1, 1], row by row, enlarged ``scale`` times."""
    from PIL import Image

    rows = math.ceil(len(images) / columns)
    padded = torch.nn.functional.pad(images.clamp(-1, 1), (1, 1, 1, 1), value=0.0)
    missing = padded.new_zeros(rows * columns - len(padded), *padded.shape[1:])
    cells = torch.cat([padded, missing]).unflatten(0, (rows, columns))
    picture = cells.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    pixels = ((picture + 1) * 127.5).round().to(torch.uint8).expand(-1, -1, 3).contiguous().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    large = Image.fromarray(pixels)
    large.resize((large.width * scale, large.height * scale), Image.Resampling.NEAREST).save(path)


class Run:
    """One training run: the state that a checkpoint holds, and the step that advances it."""

    def __init__(self, task: Task, args: argparse.Namespace) -> None:
        self.task = task
        self.args = args
        self.live = dict(task.module.named_parameters())
        self.weights = self.live
        if args.bf16:
            self.weights = {name: weight.detach().clone().requires_grad_() for name, weight in self.live.items()}
            task.module.bfloat16()
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=args.lr, betas=(0.9, 0.99), weight_decay=args.weight_decay, fused=True
        )
        self.step = 0
        self.cpu_seconds = 0.0

    @property
    def steps(self) -> int:
        """The number of steps after which the run is complete."""
        return self.args.images // self.args.batch

    def learning_rate(self) -> float:
        """A rise over the warm-up, a constant, and a straight fall to zero over the last part of the run."""
        fall = max(1, round(self.steps * self.args.cooldown))
        return self.args.lr * min(1.0, (self.step + 1) / self.args.warmup, (self.steps - self.step) / fall)

    def advance(self) -> Tensor:
        """One step; its loss."""
        loss = self.task.loss(generator(self.args.seed, self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.task.module.zero_grad()
        loss.backward()
        for name, weight in self.weights.items():
            gradient = self.live[name].grad
            weight.grad = None if gradient is None else gradient.float()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            share = min(1.0, (AVERAGED + 1) / (self.step + AVERAGED))
            torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), share)
        self.pass_on()
        return loss.detach()

    @torch.no_grad()
    def pass_on(self) -> None:
        """The weights rounded to those that the model computes with, where these are others."""
        if self.args.bf16:
            torch._foreach_copy_(list(self.live.values()), list(self.weights.values()))

    def save(self, path: Path) -> None:
        """The state as one safetensors file, put in place at once."""
        tensors: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            state = self.optimizer.state[weight]
            tensors[f"weights.{name}"] = weight.detach()
            tensors[f"average.{name}"] = self.average[name]
            tensors[f"first.{name}"] = state["exp_avg"]
            tensors[f"second.{name}"] = state["exp_avg_sq"]
        header = {"step": self.step, "cpu_seconds": round(self.cpu_seconds, 1), "settings": settings(self.args)}
        partial = path.with_suffix(".tmp")
        save_file({name: each.contiguous() for name, each in tensors.items()}, partial, {"run": json.dumps(header)})
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """The state of a checkpoint, a small one or not."""
        header, tensors = read(path)
        self.step, self.cpu_seconds = header["step"], header["cpu_seconds"]
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(tensors[f"weights.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
                self.optimizer.state[weight] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": tensors.get(f"first.{name}", torch.zeros_like(weight)).float(),
                    "exp_avg_sq": tensors[f"second.{name}"].float(),
                }
        self.pass_on()


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a checkpoint."""
    with safe_open(path, "pt") as file:
        header = json.loads((file.metadata() or {})["run"])
        return header, {name: file.get_tensor(name) for name in list(file.keys())}


def load_average(module: torch.nn.Module, path: Path) -> dict[str, Any]:
    """The averaged weights of a checkpoint, put into ``module``; the checkpoint's header."""
    header, tensors = read(path)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(tensors[f"average.{name}"])
    return header


def plain_attention(query: Tensor, key: Tensor, value: Tensor, **other: Any) -> Tensor:
    """Attention as two products and a softmax: in bfloat16 on a CPU five times as fast as torch's, there and back."""
    if other.get("attn_mask") is not None or other.get("is_causal"):
        return ATTENTION(query, key, value, **other)
    scale = other.get("scale") or query.shape[-1] ** -0.5
    return torch.softmax((query * scale) @ key.transpose(-1, -2), -1) @ value


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of a run as a file has them, without its paths."""
    kept = {name: value for name, value in vars(args).items() if name not in ("data", "out", "init", "command", "go")}
    return {name: str(value) if isinstance(value, Path) else value for name, value in kept.items()}


def train(task: Task, args: argparse.Namespace) -> None:
    """Go on from the run's checkpoint, or from ``--init``, to the last step, with a checkpoint every so many steps."""
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / CHECKPOINT
    begin = path if path.exists() else args.init
    if begin is None:
        task.prepare()
    run = Run(task, args)
    if begin is not None:
        run.load(begin)
        print(f"going on from {begin.name} at step {run.step} of {run.steps}", flush=True)
    if args.bf16:
        torch.nn.functional.scaled_dot_product_attention = plain_attention
    asked_to_end: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda caught, _: asked_to_end.append(caught))
    losses, since, before = list[float](), time.perf_counter(), time.process_time()
    while run.step < run.steps and not asked_to_end:
        losses.append(run.advance().item())
        last = run.step == run.steps or bool(asked_to_end)
        if run.step % args.log == 0 or last:
            now, used = time.perf_counter(), time.process_time()
            run.cpu_seconds += used - before
            report(run, losses, now - since, used - before)
            losses, since, before = [], now, used
        if run.step % args.checkpoint == 0 or last:
            run.save(path)


def report(run: Run, losses: Sequence[float], took: float, used: float) -> None:
    """A line on the console, and the same figures as a line of the log.

    Seconds of the processor are what the run costs; those on the wall have its pauses in them.
    """
    images = len(losses) * run.args.batch
    row = {
        "step": run.step,
        "images": run.step * run.args.batch,
        "loss": round(sum(losses) / len(losses), 5),
        "lr": round(run.learning_rate(), 7),
        "images_per_second": round(images / took, 2),
        "images_per_cpu_second": round(images / used, 2),
        "cpu_seconds": round(run.cpu_seconds),
        "eta_seconds": round((run.steps - run.step) * run.args.batch * took / images),
    }
    with (run.args.out / LOG).open("a") as file:
        file.write(json.dumps(row) + "\n")
    eta = f"{row['eta_seconds'] // 3600} h {row['eta_seconds'] // 60 % 60:02} min"
    print(f"{row['images']:,} images: loss {row['loss']:.4f}, {images / took:.1f} images/s, {eta} left", flush=True)


def shrink(source: Path, target: Path) -> None:
    """The checkpoint with weights in half precision and without first moments, which a few steps bring back."""
    header, tensors = read(source)
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("second."):
            kept[name] = tensor.bfloat16()
        elif not name.startswith("first."):
            kept[name] = tensor.half()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".tmp")
    save_file(kept, partial, {"run": json.dumps(header)})
    os.replace(partial, target)
