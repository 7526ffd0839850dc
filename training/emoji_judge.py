"""How the judge of "emoji" is made: a small convolutional network that tells an emoji's subgroup and name.

    python training/emoji_judge.py train --data ../shared/data/emoji32.npz --to runs/emoji-judge.safetensors
    python training/emoji_judge.py judge --judge runs/emoji-judge.safetensors --out runs/emoji   # its samples

It learns from the pictures that `emoji.py` learns from, shifted, turned, scaled and recoloured a little; the renderings
that are held out say how often it is right. They are hard: it knows their names from the other style alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
import emoji
import emoji_data
import flow
import flow_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emoji_data import Emoji
    from torch import Generator, Tensor


class Judge(torch.nn.Module):
    """Pictures (B, 3, 32, 32) in [-1, 1] to logits of subgroups and of names."""

    def __init__(self, subgroups: Sequence[str], names: Sequence[str], width: int = 32) -> None:
        super().__init__()
        self.subgroups, self.names = list(subgroups), list(names)
        sizes = [3, width, 2 * width, 4 * width, 4 * width]
        parts: list[torch.nn.Module] = []
        for before, after in pairwise(sizes):
            parts += [torch.nn.Conv2d(before, after, 3, padding=1), torch.nn.GroupNorm(8, after), torch.nn.SiLU()]
            parts += [torch.nn.MaxPool2d(2)]
        self.trunk = torch.nn.Sequential(*parts, torch.nn.Flatten(), torch.nn.Linear(16 * width, 256), torch.nn.SiLU())
        self.subgroup = torch.nn.Linear(256, len(self.subgroups))
        self.name = torch.nn.Linear(256, len(self.names))

    def features(self, pictures: Tensor) -> Tensor:
        """What both answers are read from (B, 256)."""
        return self.trunk(pictures)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of subgroups (B, 99) and of names (B, 1911)."""
        features = self.features(pictures)
        return self.subgroup(features), self.name(functional.dropout(features, 0.2, self.training))

    def save(self, path: Path, record: dict[str, object]) -> None:
        """Weights in half precision, with the names of the answers and a record in the file's header."""
        header = {"subgroups": self.subgroups, "names": self.names, "record": record}
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, path, {"judge": json.dumps(header)})


def load(path: Path) -> Judge:
    """The judge that `train` wrote."""
    with safe_open(path, "pt") as file:
        header = json.loads((file.metadata() or {})["judge"])
        judge = Judge(header["subgroups"], header["names"])
        judge.load_state_dict({name: file.get_tensor(name).float() for name in list(file.keys())})
    return judge.eval()


def changed(pictures: Tensor, draw: Generator) -> Tensor:
    """The pictures turned by up to 10 degrees, scaled by a tenth, shifted by 2 pixels, in slightly other colours."""
    count = len(pictures)
    dice = torch.rand(5, count, generator=draw) * 2 - 1
    angle, scale = dice[0] * 0.17, 1 + dice[1] * 0.1
    sine, cosine = torch.sin(angle) * scale, torch.cos(angle) * scale
    rows = torch.stack([cosine, -sine, dice[2] / 8, sine, cosine, dice[3] / 8], 1).view(count, 2, 3)
    grid = functional.affine_grid(rows, list(pictures.shape), align_corners=False)
    moved = functional.grid_sample(pictures - 1, grid, align_corners=False) + 1  # white around
    tint = 1 + 0.1 * (torch.rand(count, 3, 1, 1, generator=draw) * 2 - 1)
    blurred = functional.avg_pool2d(functional.pad(moved, (1, 1, 1, 1), value=1.0), 3, 1)
    soft = torch.lerp(moved, blurred, dice[4].clamp(min=0).view(-1, 1, 1, 1))
    noise = 0.05 * torch.randn(soft.shape, generator=draw)
    return ((soft + 1) * tint - 1 + noise).clamp(-1, 1)


@torch.no_grad()
def accuracy(judge: Judge, pictures: Tensor, subgroups: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Shares of pictures whose subgroup, name, and name among the first five answers are right."""
    parts = [judge(part) for part in pictures.split(256)]
    groups = torch.cat([part[0] for part in parts]).argmax(1).tolist()
    best = torch.cat([part[1] for part in parts]).topk(5, 1).indices.tolist()
    count = len(pictures)
    return {
        "subgroup": sum(judge.subgroups[a] == b for a, b in zip(groups, subgroups, strict=True)) / count,
        "name": sum(judge.names[a[0]] == b for a, b in zip(best, names, strict=True)) / count,
        "name_in_five": sum(b in [judge.names[i] for i in a] for a, b in zip(best, names, strict=True)) / count,
    }


def plain(emoji_: Emoji) -> Emoji:
    """The pictures without a skin tone: one for each name and style."""
    return emoji_.pick([i for i, tone in enumerate(emoji_.tones) if not tone])


def train(args: argparse.Namespace) -> None:
    """A judge from nothing, with its accuracy on what was held out."""
    torch.manual_seed(args.seed)
    everything = emoji_data.load(args.data)
    seen, held = everything.split()
    judge = Judge(sorted(set(everything.subgroups)), sorted(set(everything.names)))
    places = {name: number for number, name in enumerate(judge.names)}
    groups = torch.tensor([judge.subgroups.index(subgroup) for subgroup in seen.subgroups])
    names = torch.tensor([places[name] for name in seen.names])
    steps = args.images // args.batch
    optimizer = torch.optim.AdamW(judge.parameters(), lr=args.lr, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps)
    weights, began = emoji_data.weights(seen), time.process_time()
    for step in range(steps):
        draw = flow.generator(args.seed, step)
        index = torch.multinomial(weights, args.batch, replacement=True, generator=draw)
        told = judge(changed(seen.pictures[index], draw))
        loss = functional.cross_entropy(told[0], groups[index], label_smoothing=0.05)
        loss = loss + 0.5 * functional.cross_entropy(told[1], names[index], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % args.log == 0:
            print(f"{(step + 1) * args.batch:,} of {args.images:,} images: loss {loss.item():.3f}", flush=True)
    judge.eval()
    record: dict[str, object] = {
        "images_seen": steps * args.batch,
        "cpu_seconds": round(time.process_time() - began),
        "seed": args.seed,
        "held_out_pictures": len(plain(held)),
        "held_out": accuracy(judge, plain(held).pictures, plain(held).subgroups, plain(held).names),
        "seen": accuracy(judge, plain(seen).pictures, plain(seen).subgroups, plain(seen).names),
    }
    judge.save(args.to, record)
    print(json.dumps(record, indent=2))


def judge_samples(args: argparse.Namespace) -> None:
    """How often the judge finds what was asked for in samples of a checkpoint, prompts drawn as in training."""
    judge = load(args.judge)
    args.compile = False
    task = emoji.Painting(args)
    header = flow.load_average(task.module, args.start or args.out / flow.CHECKPOINT)
    seen = plain(task.emoji)
    weights = emoji_data.weights(seen)
    drawn = torch.multinomial(weights, args.count, replacement=True, generator=flow.generator(args.seed, 0))
    chosen = [int(i) for i in drawn]
    prompts = [emoji_data.caption(seen.names[i], seen.styles[i]) for i in chosen]
    pictures = torch.cat([task.paint(prompts[row : row + 50], args, row) for row in range(0, args.count, 50)])
    found = accuracy(judge, pictures.clamp(-1, 1), [seen.subgroups[i] for i in chosen], [seen.names[i] for i in chosen])
    flow_options.tell(args, header["step"], found)


def main() -> None:
    words, _ = flow_options.judge_parser(
        __doc__, emoji.DEFAULTS, seen=("--images", 100_000, "images to see"), lr=2e-3, count=64
    )
    args = words.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "train":
        train(args)
    else:
        judge_samples(args)


if __name__ == "__main__":
    main()
