"""Clips of digits that move, as training data: what they show, and what they are asked for by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Generator, Tensor

FRAMES, SIZE, DIGIT = 12, 32, 14
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up left": (-1, -1),
    "up right": (1, -1),
    "down left": (-1, 1),
    "down right": (1, 1),
}
"""Signs of the speeds to the right and down."""


def phrase(digit: int, direction: str) -> str:
    """The part of a caption that speaks of one digit."""
    return f"{'an' if digit == 8 else 'a'} {NAMES[digit]} moves {direction}"


def load(path: Path, part: str = "train") -> tuple[Tensor, Tensor]:
    """Digits (N, 14, 14) in [0, 1], cut to their middle 24x24 and made smaller, and their labels (N).

    part: "train" or "test"
    """
    file = np.load(path)
    pixels = torch.from_numpy(file[f"x_{part}"][:, 2:26, 2:26]).unsqueeze(1)
    digits = [
        torch.nn.functional.interpolate(some.float() / 255, size=DIGIT, mode="bilinear", antialias=True)
        for some in pixels.split(5000)
    ]
    return torch.cat(digits).squeeze(1), torch.from_numpy(file[f"y_{part}"]).long()


def way(start: float, speed: float) -> list[int]:
    """The places of a digit in all frames along one axis, thrown back at both borders."""
    room = SIZE - DIGIT
    places = []
    for frame in range(FRAMES):
        far = (start + speed * frame) % (2 * room)
        places.append(round(min(far, 2 * room - far)))
    return places


def start(sign: int, share: float) -> float:
    """Where a digit begins along one axis: anywhere, or in the half from which it has a way to go."""
    room = SIZE - DIGIT
    return share * room if sign == 0 else share * room / 2 + (room / 2 if sign < 0 else 0)


Way = tuple[list[int], list[int]]
"""A digit's columns and rows in all frames."""


def ways(directions: Sequence[str], dice: Sequence[float]) -> list[Way]:
    """The ways of the digits of a clip; three dice (in [0, 1)) of each say its place and its speed, 1 to 2 a frame."""
    found = []
    for number, direction in enumerate(directions):
        right, down = DIRECTIONS[direction]
        left, top, fast = dice[3 * number : 3 * number + 3]
        found.append((way(start(right, left), right * (1 + fast)), way(start(down, top), down * (1 + fast))))
    return found


def apart(found: Sequence[Way]) -> float:
    """How far apart the digits stay on average, along the axis where they are farther apart."""
    (x, y), (u, v) = found[0], found[-1]
    return sum(max(abs(a - c), abs(b - d)) for a, b, c, d in zip(x, y, u, v, strict=True)) / FRAMES


def clip(digits: Sequence[Tensor], found: Sequence[Way]) -> Tensor:
    """A clip (12, 32, 32) in [-1, 1]."""
    frames = torch.zeros(FRAMES, SIZE, SIZE)
    for digit, (columns, rows) in zip(digits, found, strict=True):
        for frame, row, column in zip(frames, rows, columns, strict=True):
            window = frame[row : row + DIGIT, column : column + DIGIT]
            torch.maximum(window, digit, out=window)
    return frames * 2 - 1


@dataclass(frozen=True)
class Clips:
    """Clips (B, 12, 32, 32) in [-1, 1] with what they show: digits, directions and ways, one or two of each."""

    pixels: Tensor
    digits: Sequence[Sequence[int]]
    directions: Sequence[Sequence[str]]
    found: Sequence[Sequence[Way]]

    @property
    def captions(self) -> list[str]:
        """What each clip is asked for by: "a three moves left, a seven moves up"."""
        rows = zip(self.digits, self.directions, strict=True)
        return [", ".join(phrase(*each) for each in zip(*row, strict=True)) for row in rows]


def made(digits: Tensor, labels: Tensor, count: int, draw: Generator) -> Clips:
    """Clips of one digit (a third of them) or two, drawn with ``draw``.

    digits: (N, 14, 14) in [0, 1]; labels: (N). Of four pairs of ways those are taken that keep two digits apart most.
    """
    numbers = torch.randint(len(digits), (count, 2), generator=draw).tolist()
    turns = torch.randint(len(DIRECTIONS), (count, 2), generator=draw).tolist()
    single = (torch.rand(count, generator=draw) < 1 / 3).tolist()
    tries = torch.rand(count, 4, 6, generator=draw).tolist()
    rows: list[tuple[Tensor, list[int], list[str], list[Way]]] = []
    for row in range(count):
        chosen = numbers[row][: 1 if single[row] else 2]
        directions = [list(DIRECTIONS)[turn] for turn in turns[row][: len(chosen)]]
        found = max((ways(directions, thrown) for thrown in tries[row]), key=apart)
        pixels = clip([digits[number] for number in chosen], found)
        rows.append((pixels, [int(labels[number]) for number in chosen], directions, found))
    pixels, shown, directions, found = zip(*rows, strict=True)
    return Clips(torch.stack(pixels), shown, directions, found)
