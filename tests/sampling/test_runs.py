"""Runs that are written to a folder."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

import forecache as fc
from forecache.evaluate import psnr, ssim
from forecache.sampling import runs
from forecache.sampling.timing import Spread, Turns
from forecache.zoo import load_digits


@dataclass
class Recording:
    """A source that notes the number of images of every generation."""

    source: object = field(default_factory=load_digits)
    sizes: list = field(default_factory=list)

    @property
    def target(self):
        return self.source.target

    @property
    def classes(self):
        return self.source.classes

    def generate(self, labels, how, first_index=0, on_step=None):
        self.sizes.append(len(labels))
        return self.source.generate(labels, how, first_index, on_step)


def test_times_are_measured_in_turn_after_both_runs_have_run_once(tmp_path):
    """A first call is slow, and would be counted for or against the plan."""
    source, settings = Recording(), runs.Settings((3, 1, 4), 4, 1.5, 7, 2)
    plan = fc.fora(2).plan(fc.grid(source.target, 4))
    alone = runs.sample_to(tmp_path / "alone", source, plan, settings, model="digits")
    assert (source.sizes, "time_ratio" in alone.record) == ([2, 1], False)
    source.sizes.clear()
    compared = runs.sample_to(tmp_path / "compared", source, plan, settings, model="digits", compare=True, rounds=3)
    assert source.sizes == [2, 1, 2, 1, *[2, 2] * 3]
    timing = compared.record["timing"]
    assert (timing["samples"], timing["warmed_up"], timing["in_turn"]) == (2, True, True)
    assert [timing["seconds"][name]["count"] for name in ("no cache", "with the plan")] == [3, 3]
    ratio = compared.record["time_ratio"]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    first, second = ((tmp_path / name / "00001.png").read_bytes() for name in ("alone", "compared"))
    assert first == second
    untimed = runs.sample_to(tmp_path / "untimed", source, plan, settings, model="digits", compare=True)
    assert not {"timing", "time_ratio", "uncached_seconds"} & untimed.record.keys()


def test_a_ratio_of_times_is_formed_within_a_round():
    """By hand: the machine is twice as slow in the second round, and every ratio is 2."""
    turns = Turns(1, {"no cache": (2.0, 4.0, 2.0), "plan": (1.0, 2.0, 1.0)})
    assert turns.ratio("plan", "no cache") == Spread(2.0, 2.0, 2.0, 3)


@pytest.mark.parametrize("large", [True, False])
def test_quality_stands_beside_every_image(tmp_path, large):
    """PSNR and SSIM by the functions of `evaluate`; SSIM needs 11 pixels."""
    size = 12 if large else 8
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    other = torch.cat([images[:1], (images[1:] + 0.1).clamp(max=1)])
    made, bare = runs.Run(images, 1.0, None), runs.Run(other, 1.0, None)
    record = runs.write(tmp_path, made, runs.Settings((1, 2), 4, 1.5, 0, 2), model="m", uncached=bare)
    assert record["images"][0]["psnr"] is None
    assert record["images"][1]["psnr"] == pytest.approx(psnr(images, other)[1].item())
    assert [entry.get("ssim") for entry in record["images"]] == (ssim(images, other).tolist() if large else [None] * 2)


def test_videos_are_written_as_frames_and_as_one_file(tmp_path):
    videos = torch.rand(2, 3, 3, 16, 18, generator=torch.Generator().manual_seed(0))
    run, settings = runs.Run(videos, 1.0, None), runs.Settings(("a cat", "a dog"), 4, 1.5, 0, 2)
    record = runs.write(tmp_path, run, settings, model="m", uncached=run)
    assert [entry["frames"] for entry in record["images"]] == [3, 3]
    frame = np.asarray(Image.open(tmp_path / "00001" / "002.png"))
    assert np.array_equal(frame, (videos[1, 2] * 255).round().byte().permute(1, 2, 0).numpy())
    with Image.open(tmp_path / record["images"][0]["file"]) as film:
        assert (film.n_frames, film.size) == (3, (18, 16))
    assert np.load(tmp_path / "uncached.npz")["arr_0"].shape == (6, 16, 18, 3)
    (tmp_path / "00001" / "mine.txt").write_text("mine")
    runs.write(tmp_path, runs.Run(videos[:1, 0], 1.0, None), runs.Settings(("a",), 4, 1.5, 0, 2), model="m")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        "00000.png", "00001/mine.txt", "run.json",
    ]  # fmt: skip
