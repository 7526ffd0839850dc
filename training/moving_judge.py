"""How clips of "moving-digits" are judged: which digits every frame shows, and where each of them moves.

    python training/moving_judge.py train --data ../shared/data/mnist.npz --to runs/moving-judge.safetensors
    python training/moving_judge.py judge --judge runs/moving-judge.safetensors --out runs/moving-digits

A small convolutional network reads every window of 14x14 pixels of a frame: the digit that fills it, or none. Digits
are followed from frame to frame through the windows that it is surest of. `train` tells how often the judge is right on
clips of digits of the test set, which it has not seen; `judge` says what it finds in samples of a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
import flow
import flow_options
import moving_digits
from moving_clips import DIGIT, DIRECTIONS, FRAMES, NAMES, SIZE, Clips, load, made

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

NONE = len(NAMES)
"""The answer for a window that no digit fills."""
ROOM = SIZE - DIGIT + 1
NEAR = 2
"""Windows that lie this close to a digit's own are not asked for in training: they show most of it."""
APART = 4
"""A second digit is looked for in windows that are farther than this from the first one's."""
FIRST = 4
"""Frames from which a direction is read: the fastest digits are thrown back soon after."""
MOVES = 1.5
"""Pixels that a digit moves along an axis in these frames at least, if it moves along it; it moves 3 or more."""


class Judge(torch.nn.Module):
    """Frames (B, 1, 32, 32) in [-1, 1] to logits (B, 11, 19, 19) of the windows: ten digits and none."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.windows = torch.nn.Sequential(
            torch.nn.Conv2d(1, width, 3),
            torch.nn.SiLU(),
            torch.nn.Conv2d(width, width, 3),
            torch.nn.SiLU(),
            torch.nn.Conv2d(width, width, 3, dilation=2),
            torch.nn.SiLU(),
            torch.nn.Conv2d(width, 4 * width, 6),
            torch.nn.SiLU(),
            torch.nn.Conv2d(4 * width, NONE + 1, 1),
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Logits (B, 11, 19, 19)."""
        return self.windows(frames)

    def save(self, path: Path, record: dict[str, object]) -> None:
        """Weights in half precision, with a record in the file's header."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, path, {"judge": json.dumps(record)})


def load_judge(path: Path) -> Judge:
    """The judge that `train` wrote."""
    judge = Judge()
    with safe_open(path, "pt") as file:
        judge.load_state_dict({name: file.get_tensor(name).float() for name in list(file.keys())})
    return judge.eval()


def answers(clips: Clips) -> Tensor:
    """The right answer for every window of every frame (B, 12, 19, 19): a digit, none, or -1 where none is asked."""
    right = torch.full((len(clips.pixels), FRAMES, ROOM, ROOM), NONE)
    for row, (digits, found) in enumerate(zip(clips.digits, clips.found, strict=True)):
        for columns, rows in found:
            for frame, (x, y) in enumerate(zip(columns, rows, strict=True)):
                right[row, frame, max(0, y - NEAR) : y + NEAR + 1, max(0, x - NEAR) : x + NEAR + 1] = -1
        for digit, (columns, rows) in zip(digits, found, strict=True):
            for frame, (x, y) in enumerate(zip(columns, rows, strict=True)):
                right[row, frame, y, x] = digit
    return right


@torch.no_grad()
def seen(judge: Judge, pixels: Tensor, count: int) -> list[list[tuple[int, int, int]]]:
    """For each frame (N, 32, 32) the ``count`` digits that are surest to be there: digit, column, row of each."""
    odds = torch.cat([judge(part.unsqueeze(1)) for part in pixels.split(256)]).log_softmax(1)[:, :NONE]
    result: list[list[tuple[int, int, int]]] = []
    for frame in odds:
        best: list[tuple[int, int, int]] = []
        left = frame.clone()
        for _ in range(count):
            place = int(left.argmax())
            digit, y, x = place // ROOM**2, place // ROOM % ROOM, place % ROOM
            best.append((digit, x, y))
            left[
                :, max(0, y - DIGIT // 3) : y + DIGIT // 3 + 1, max(0, x - DIGIT // 3) : x + DIGIT // 3 + 1
            ] = -math.inf
        result.append(best)
    return result


def direction(track: Sequence[tuple[int, int]]) -> str:
    """The direction of a way through the first frames, "" if it stands still."""
    (x, y), (u, v) = track[0], track[-1]
    return next((name for name, turn in DIRECTIONS.items() if turn == (sign(u - x), sign(v - y))), "")


def sign(moved: int) -> int:
    """The sign of a way along one axis, 0 for one that is too short to count."""
    return 0 if abs(moved) < MOVES else int(math.copysign(1, moved))


def follow(frames: Sequence[Sequence[tuple[int, int, int]]]) -> list[list[tuple[int, int, int]]]:
    """The digits of frames as tracks: each goes on where the sum of all ways is shortest."""
    tracks = [[each] for each in frames[0]]
    for frame in frames[1:]:
        orders = permutations(frame)
        ends = [track[-1] for track in tracks]
        best = min(orders, key=lambda order: sum(math.dist(a[1:], b[1:]) for a, b in zip(ends, order, strict=True)))
        for track, each in zip(tracks, best, strict=True):
            track.append(each)
    return tracks


def verdict(judge: Judge, pixels: Tensor, digits: Sequence[int], directions: Sequence[str]) -> tuple[float, float]:
    """The share of a clip's digits that are found, over all frames (12, 32, 32), and of directions that are right."""
    frames = seen(judge, pixels, len(digits))
    found = 0
    for frame in frames:
        left = [digit for digit, _, _ in frame]
        for digit in digits:
            if digit in left:
                left.remove(digit)
                found += 1
    tracks = follow(frames[:FIRST])
    # a track's digit is the one that it shows most often; the order of two equal ones is free
    names = [max(set(shown), key=shown.count) for shown in ([digit for digit, _, _ in track] for track in tracks)]
    turns = [direction([place[1:] for place in track]) for track in tracks]
    asked = list(zip(digits, directions, strict=True))
    right = max(
        sum(one == other for one, other in zip(asked, order, strict=True))
        for order in permutations(zip(names, turns, strict=True))
    )
    return found / (FRAMES * len(digits)), right / len(digits)


def figures(judge: Judge, clips: Clips) -> dict[str, float]:
    """Shares of digits found in frames and of directions that are right, over all clips."""
    rows = zip(clips.pixels, clips.digits, clips.directions, strict=True)
    shares = [verdict(judge, *row) for row in rows]
    return {"digits": sum(a for a, _ in shares) / len(shares), "directions": sum(b for _, b in shares) / len(shares)}


def train(args: argparse.Namespace) -> None:
    """A judge from nothing, with how often it is right on digits of the test set."""
    torch.manual_seed(args.seed)
    judge, (digits, labels) = Judge(), load(args.data)
    steps = args.clips // args.batch
    optimizer = torch.optim.AdamW(judge.parameters(), lr=args.lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps)
    began = time.process_time()
    for step in range(steps):
        draw = flow.generator(args.seed, step)
        clips = made(digits, labels, args.batch, draw)
        frame = torch.randint(FRAMES, (args.batch,), generator=draw)
        rows = torch.arange(args.batch)
        frames, right = clips.pixels[rows, frame].unsqueeze(1), answers(clips)[rows, frame]
        frames = frames + 0.1 * torch.rand(1, generator=draw) * torch.randn(frames.shape, generator=draw)
        told = judge(frames)
        loss = functional.cross_entropy(told, right, ignore_index=-1)
        shown = (right >= 0) & (right < NONE)
        loss = loss + functional.cross_entropy(told.movedim(1, -1)[shown], right[shown], label_smoothing=0.02)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % args.log == 0:
            print(f"{(step + 1) * args.batch:,} of {args.clips:,} clips: loss {loss.item():.3f}", flush=True)
    judge = judge.half().float().eval()
    test = made(*load(args.data, "test"), args.count, flow.generator(args.seed, steps))
    record: dict[str, object] = {
        "frames_seen": steps * args.batch,
        "cpu_seconds": round(time.process_time() - began),
        "seed": args.seed,
        "clips_of_the_test_set": args.count,
        **figures(judge, test),
    }
    judge.save(args.to, record)
    print(json.dumps(record, indent=2))


def judge_samples(args: argparse.Namespace) -> None:
    """What the judge finds in samples of a checkpoint, asked for as in training."""
    judge = load_judge(args.judge)
    args.compile = False
    task = moving_digits.Filming(args)
    header = flow.load_average(task.module, args.start or args.out / flow.CHECKPOINT)
    asked = made(task.digits, task.labels, args.count, flow.generator(args.seed + 3, 0))
    filmed = task.film(asked.captions, args).squeeze(1).clamp(-1, 1)
    found = figures(judge, Clips(filmed, asked.digits, asked.directions, asked.found))
    flow_options.tell(args, header["step"], found)


def main() -> None:
    words, commands = flow_options.judge_parser(
        __doc__, moving_digits.DEFAULTS, seen=("--clips", 100_000, "clips to see a frame of"), lr=3e-3, count=500
    )
    commands.choices["train"].add_argument("--count", type=int, default=500, help="clips of the test set")
    args = words.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "train":
        train(args)
    else:
        judge_samples(args)


if __name__ == "__main__":
    main()
