"""Clips of digits that move, as training data: what they show, and what they are asked for by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

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


def load(path: Path) -> tuple[Tensor, Tensor]:
    """Digits (N, 14, 14) in [0, 1], cut to their middle 24x24 and made smaller, and their labels (N)."""
    file = np.load(path)
    pixels = torch.from_numpy(file["x_train"][:, 2:26, 2:26]).unsqueeze(1)
    digits = [
        torch.nn.functional.interpolate(part.float() / 255, size=DIGIT, mode="bilinear", antialias=True)
        for part in pixels.split(5000)
    ]
    return torch.cat(digits).squeeze(1), torch.from_numpy(file["y_train"]).long()


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
