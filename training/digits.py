"""Training of the bundled model "digits": a class-conditional pixel-space DiT for MNIST, v-prediction.

    python -m training.digits --data mnist.npz --out runs/digits   # starts, or resumes what is there
    python -m training.digits --out runs/digits --export DIR       # fp16 weights, scheduler, record

Checkpoints hold everything (weights, averaged weights, optimiser, generator), so an interrupted run continues
where it stopped. The script prints one line per `--log` steps and writes the same figures to `log.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel

from forecache.zoo.classifier import SIZE
from training import mnist

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

CLASSES = 10  # label 10 is "no label", for guidance


def build(layers: int = 12, heads: int = 4, head_dim: int = 32, patch: int = 4) -> DiTTransformer2DModel:
    """An untrained digits transformer: images (B, 1, 24, 24) to v-predictions of the same shape."""
    return DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=1,
        out_channels=1,
        num_layers=layers,
        sample_size=SIZE,
        patch_size=patch,
        num_embeds_ada_norm=CLASSES,
    )


def build_scheduler() -> DDIMScheduler:
    """Linear betas, v-prediction; samples are images in [-1, 1], so they are clipped only when they are saved."""
    return DDIMScheduler(beta_schedule="linear", prediction_type="v_prediction", clip_sample=False)


class Trainer:
    """One training run: the state that a checkpoint holds, and the step that advances it."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.model = self.untrained()
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=args.lr, weight_decay=0.0, fused=True)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.alphas_cumprod = build_scheduler().alphas_cumprod
        self.steps_total = args.images // args.batch
        self.step = 0
        self.seconds = 0.0
        # eval(): the model has no dropout, and labels are dropped here, once for all blocks
        self.forward: Callable[..., Any] = self.model.eval() if args.no_compile else torch.compile(self.model.eval())

    def untrained(self) -> torch.nn.Module:
        """The untrained model."""
        model = build()
        zero_gates(model)
        return model

    def learning_rate(self) -> float:
        warm = min(1.0, (self.step + 1) / self.args.warmup)
        return self.args.lr * warm * 0.5 * (1 + math.cos(math.pi * self.step / self.steps_total))

    def corrupted(self, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noised images, their timesteps (one in each of B equal parts of the schedule) and v, the target."""
        batch, draw = len(clean), self.generator
        times = ((torch.arange(batch) + torch.rand(batch, generator=draw)) / batch * len(self.alphas_cumprod)).long()
        noise = torch.randn(clean.shape, generator=draw)
        signal = self.alphas_cumprod[times].sqrt()[:, None, None, None]
        sigma = (1 - self.alphas_cumprod[times]).sqrt()[:, None, None, None]
        return signal * clean + sigma * noise, times, signal * noise - sigma * clean

    def loss(self, train: mnist.Split) -> Tensor:
        """The mean square error of v on a batch of images, some of them without a label."""
        batch, draw = self.args.batch, self.generator
        index = torch.randint(len(train), (batch,), generator=draw)
        labels = train.labels[index]
        labels = torch.where(torch.rand(batch, generator=draw) < self.args.label_dropout, CLASSES, labels)
        noisy, times, target = self.corrupted(train.images[index])
        return (self.forward(noisy, times, labels, return_dict=False)[0] - target).square().mean()

    def train_step(self, train: mnist.Split) -> Tensor:
        loss = self.loss(train)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            decay = min(self.args.ema, (1 + self.step) / (10 + self.step))
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)
        return loss.detach()

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
            "args": {name: value for name, value in vars(self.args).items() if name not in ("out", "export")},
        }
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step, self.seconds = state["step"], state["seconds"]


def zero_gates(model: Any) -> None:
    """adaLN-Zero: every gate starts at zero, so that each block starts as the identity."""
    for block in model.transformer_blocks:
        torch.nn.init.zeros_(block.norm1.linear.weight)
        torch.nn.init.zeros_(block.norm1.linear.bias)
    for layer in (model.proj_out_1, model.proj_out_2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def train(trainer: Trainer) -> None:
    """Train from the checkpoint, if there is one, to the last step, with one line of output every ``--log`` steps."""
    args = trainer.args
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
        print(f"resuming at step {trainer.step} of {trainer.steps_total}")
    data, _ = mnist.load(args.data)
    losses: list[Tensor] = []
    while trainer.step < trainer.steps_total:
        started = time.perf_counter()
        losses.append(trainer.train_step(data))
        trainer.seconds += time.perf_counter() - started
        done = trainer.step == trainer.steps_total
        if trainer.step % args.log == 0 or done:
            images = trainer.step * args.batch
            row = {"step": trainer.step, "images": images, "loss": torch.stack(losses).mean().item()}
            row |= {"seconds": round(trainer.seconds), "images_per_second": round(images / trainer.seconds, 1)}
            losses.clear()
            print(json.dumps(row), flush=True)
            with (args.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        if trainer.step % args.checkpoint == 0 or done:
            trainer.save(checkpoint)


def export(args: argparse.Namespace) -> None:
    """Write the averaged weights as fp16 safetensors, the scheduler, and the record of the training."""
    state = torch.load(args.out / "checkpoint.pt", weights_only=True)
    model = build()
    model.load_state_dict(state["average"])
    model.half().save_pretrained(args.export / "transformer", safe_serialization=True)
    build_scheduler().save_pretrained(args.export / "scheduler")
    write_record(args, state, "python -m training.digits", {"diffusers": diffusers.__version__})


def write_record(args: argparse.Namespace, state: dict[str, Any], command: str, versions: dict[str, str]) -> None:
    """Write training.json: settings, hardware, versions, time, and the last loss."""
    rows = [json.loads(line) for line in (args.out / "log.jsonl").read_text().splitlines()]
    record = {
        "command": command,
        "settings": settings(state["args"]),
        "steps": state["step"],
        "images_seen": state["step"] * state["args"]["batch"],
        "final_loss": rows[-1]["loss"],
        "seconds": round(state["seconds"]),
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {"torch": torch.__version__, **versions},
    }
    (args.export / "training.json").write_text(json.dumps(record, indent=2, default=str) + "\n")


def settings(args: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run without paths, and those of the run ``before``, whose weights it started from."""
    values = {name: value for name, value in args.items() if name not in ("data", "init")}
    return values | {"before": settings(values["before"])} if "before" in values else values


def parser(description: str | None, out: str, images: int, batch: int) -> argparse.ArgumentParser:
    """The options of a training, with these defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=str, default=None, help="mnist.npz; without it, the hub dataset ylecun/mnist")
    parser.add_argument("--out", type=Path, default=Path(out), help="checkpoints and log")
    parser.add_argument("--export", type=Path, default=None, help="write the shipped files here and stop")
    parser.add_argument("--images", type=int, default=images, help="images to see")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=200, help="steps")
    parser.add_argument("--label-dropout", type=float, default=0.1)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=int, default=50, help="steps between two lines")
    parser.add_argument("--checkpoint", type=int, default=250, help="steps between two checkpoints")
    parser.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
    return parser


def main() -> None:
    args = parser(__doc__, "runs/digits", images=800_000, batch=96).parse_args()
    if args.export is not None:
        export(args)
    else:
        train(Trainer(args))


if __name__ == "__main__":
    main()
