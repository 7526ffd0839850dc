"""The judge of clips: what it says of clips whose digits and ways are known."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
import flow
import moving_judge
from moving_clips import DIRECTIONS, FRAMES, load, made


@pytest.fixture
def data(tmp_path):
    draw, arrays = np.random.default_rng(0), {}
    for name in ("train", "test"):
        arrays[f"x_{name}"] = draw.integers(0, 256, (64, 28, 28), dtype=np.uint8)
        arrays[f"y_{name}"] = np.arange(64, dtype=np.uint8) % 10
    np.savez(tmp_path / "mnist.npz", **arrays)
    return tmp_path / "mnist.npz"


class Knows:
    """A judge that is sure of the digits of the clip in front of it and of where they are."""

    def __init__(self, clips, row, off=0):
        self.right = moving_judge.answers(clips)[row]
        self.off = off

    def __call__(self, frames):
        logits = torch.zeros(len(frames), 11, *self.right.shape[1:])
        for digit in range(10):
            logits[:, (digit + self.off) % 10][self.right == digit] = 20.0
        return logits


def test_a_judge_that_knows_finds_every_digit_and_every_direction(data):
    clips = made(*load(data), 24, flow.generator(0, 0))
    kinds = {turn for turns in clips.directions for turn in turns}
    assert kinds == set(DIRECTIONS)
    for row, (digits, turns) in enumerate(zip(clips.digits, clips.directions, strict=True)):
        gap = min(
            max(abs(a - c), abs(b - d))
            for (x, y), (u, v) in [(clips.found[row][0], clips.found[row][-1])]
            for a, b, c, d in zip(x, y, u, v, strict=True)
        )
        if len(digits) == 2 and gap <= moving_judge.APART:
            continue  # digits that cover each other are not told apart
        assert moving_judge.verdict(Knows(clips, row), clips.pixels[row], digits, turns) == (1, 1)
        if len(digits) == 1:
            assert moving_judge.verdict(Knows(clips, row, off=3), clips.pixels[row], digits, turns) == (0, 0)
        wrong = [list(DIRECTIONS)[(list(DIRECTIONS).index(turn) + 1) % 8] for turn in turns]
        if len(set(digits)) == len(digits):  # of two equal digits either may have the other's direction
            assert moving_judge.verdict(Knows(clips, row), clips.pixels[row], digits, wrong) == (1, 0)


def test_tracks_do_not_depend_on_the_order_in_a_frame(data):
    clips, dice = made(*load(data), 50, flow.generator(1, 0)), random.Random(0)
    for digits, found, turns in zip(clips.digits, clips.found, clips.directions, strict=True):
        frames = []
        for frame in range(FRAMES):
            here = [(digit, x[frame], y[frame]) for digit, (x, y) in zip(digits, found, strict=True)]
            frames.append(dice.sample(here, len(here)))
        tracks = moving_judge.follow(frames[: moving_judge.FIRST])
        assert sorted(moving_judge.direction([each[1:] for each in track]) for track in tracks) == sorted(turns)


def test_what_stands_still_has_no_direction():
    assert moving_judge.direction([(3, 3), (3, 4), (4, 4)]) == ""


def test_it_learns_writes_its_record_and_is_read_again(data, tmp_path, monkeypatch, capsys):
    words = ["train", "--data", data, "--to", tmp_path / "judge.safetensors", "--clips", 8, "--batch", 4, "--count", 2]
    monkeypatch.setattr(sys, "argv", ["moving_judge", *map(str, words), "--threads", "1"])
    moving_judge.main()
    record = json.loads(capsys.readouterr().out)
    assert record["frames_seen"] == 8
    assert 0 <= record["digits"] <= 1
    judge = moving_judge.load_judge(tmp_path / "judge.safetensors")
    assert judge(torch.zeros(1, 1, 32, 32)).shape == (1, 11, 19, 19)
