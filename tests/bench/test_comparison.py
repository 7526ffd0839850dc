"""Comparisons of methods on prompts or labels and seeds."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

import forecache as fc
from forecache.bench.comparison import quality, result
from forecache.bench.comparison.columns import Request
from forecache.bench.comparison.folder import ColumnFolder
from forecache.bench.comparison.rounds import Rounds
from forecache.evaluate import psnr, ssim
from forecache.sampling.runs import Settings
from forecache.zoo import load_digits

STEPS, LABELS = 4, (3, 1, 4)
METHODS = ("fora", "goc eta=1.2")
PAIRS = quality.Judges(("psnr", "ssim"))


@dataclass
class Counting:
    """Digits that count their generations, and are interrupted before the one of a number."""

    source: object = field(default_factory=load_digits)
    calls: list = field(default_factory=list)
    stop_at: int | None = None

    classes = 10

    @property
    def target(self):
        return self.source.target

    def label(self, name):
        return self.source.label(name)

    def generate(self, labels, how, first_index=0, on_step=None):
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append((tuple(labels), how.seed, first_index, how.num_steps))
        return self.source.generate(labels, how, first_index, on_step)


def comparison(source, folder, *, methods=METHODS, seeds=(0, 5), batch=2, **more):
    request = Request.of(methods, (), more.pop("steps", STEPS), **more)
    settings = Settings(LABELS, request.num_steps, 1.5, 0, batch)
    return Rounds(source, request.columns(source), settings, seeds, folder)


def test_every_column_samples_what_sampling_by_hand_gives(tmp_path):
    """From the same noise; quality by the functions of `evaluate` on what is in the files."""
    digits = load_digits()
    rounds = comparison(digits, tmp_path, fewer=(2,), reference=6)
    assert rounds.run(0) is None
    document = result.document(rounds, PAIRS, None, model="digits")
    columns = {column["name"]: column for column in document["columns"]}
    assert list(columns) == ["no cache", *METHODS, "no cache, 2 steps", "reference, 6 steps"]
    bare, plan = {}, fc.goc(fc.fora(2), 1.2).plan(fc.grid(digits.target, STEPS))
    for seed in (0, 5):
        how = fc.sampling.sources.Sampling(STEPS, 1.5, seed)
        bare[seed] = rounded(digits.generate(list(LABELS), how))
        with fc.apply(digits.target, plan):
            images = rounded(digits.generate(list(LABELS), how))
        for index, image in enumerate(images):
            entry = columns["goc eta=1.2"]["images"][index + len(LABELS) * (seed == 5)]
            assert (entry["seed"], entry["condition"]) == (seed, LABELS[index])
            there = np.asarray(Image.open(tmp_path / "columns" / entry["file"]))
            assert np.abs(there.astype(int) - (image[0] * 255).numpy()).max() <= 1
            pair = image[None].expand(1, 3, -1, -1), bare[seed][index][None].expand(1, 3, -1, -1)
            assert entry["quality"]["psnr"] == pytest.approx(psnr(*pair).item(), abs=0.2)
            assert entry["quality"]["ssim"] == pytest.approx(ssim(*pair).item(), abs=2e-3)
    assert columns["no cache"]["quality"] == {}
    assert columns["reference, 6 steps"]["to_reference"] == {}
    assert columns["fora"]["to_reference"]["psnr"]["count"] == 6
    values = [entry["quality"]["psnr"] for entry in columns["fora"]["images"]]
    assert columns["fora"]["quality"]["psnr"]["mean"] == pytest.approx(sum(values) / 6)
    assert columns["fora"]["quality"]["psnr"]["lowest"] == min(values)


def rounded(images):
    return (images * 255).round() / 255


def test_costs_are_those_of_an_image(tmp_path):
    digits = load_digits()
    rounds = comparison(digits, tmp_path, fewer=(2,))
    rounds.run(0)
    columns = {each["name"]: each for each in result.document(rounds, PAIRS, None, model="digits")["columns"]}
    cost = fc.fora(2).plan(fc.grid(digits.target, STEPS)).cost(digits.target, batch_size=2)
    assert columns["fora"]["cost"]["macs"] == pytest.approx(cost.macs / 2, rel=1e-6)
    assert columns["fora"]["cost"]["macs_ratio"] == pytest.approx(cost.speedup, rel=1e-6)
    assert columns["no cache"]["cost"] == {
        "macs": cost.macs_uncached // 2,
        "macs_ratio": 1.0,
        "cache_bytes": 0,
    }
    assert columns["no cache, 2 steps"]["cost"]["macs_ratio"] == pytest.approx(2.0)
    assert columns["fora"]["cost"]["cache_bytes"] > 0
    assert [columns[name]["computed_calls"] for name in ("no cache", "fora", "no cache, 2 steps")] == [4, 2, 2]


def test_times_are_those_of_rounds_in_which_all_take_turns_after_all_have_run(tmp_path):
    """The first round warms up and its images are kept; a smaller last batch does not count; missing rounds follow."""
    source = Counting()
    rounds = comparison(source, tmp_path)  # three labels in batches of 2, two seeds: rounds of 2, 1, 2, 1
    turns = rounds.run(3)
    sampled = [(seed, first) for _, seed, first, _ in source.calls]
    assert sampled == [(seed, first) for seed in (0, 5) for first in (0, 2) for _ in range(3)] + [(0, 0)] * 6
    assert turns.samples == 2
    assert {name: len(seconds) for name, seconds in turns.seconds.items()} == dict.fromkeys(["no cache", *METHODS], 3)
    document = result.document(rounds, PAIRS, turns, model="digits")
    column = document["columns"][1]
    ratios = sorted(a / b for a, b in zip(turns.seconds["no cache"], turns.seconds["fora"], strict=True))
    assert column["time_ratio"]["median"] == pytest.approx(ratios[1])
    assert document["timing"]["seconds"]["fora"]["count"] == 3
    source.calls.clear()
    assert comparison(source, tmp_path).run(3).seconds == turns.seconds
    assert source.calls == [], "nothing is sampled or timed again"


def test_a_reference_is_not_timed(tmp_path):
    source = Counting()
    turns = comparison(source, tmp_path, seeds=(0,), batch=4, methods=("fora",), reference=6).run(1)
    assert set(turns.seconds) == {"no cache", "fora"}
    assert [steps for *_, steps in source.calls] == [4, 4, 6, 4, 4]


@pytest.mark.parametrize("stop_at", [0, 4, 13])
def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path, stop_at):
    source = Counting(stop_at=stop_at)
    rounds = comparison(source, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        rounds.run(2)
    assert rounds.finished == sum(len(labels) for labels, *_ in source.calls[:12])
    resumed = Counting()
    again = comparison(resumed, tmp_path)
    assert again.finished == rounds.finished
    turns = again.run(2)
    missing = resumed.calls[: 12 - min(stop_at, 12)]
    assert not set(missing) & set(source.calls[:12]) or stop_at % 3, "a round that was cut is finished, not repeated"
    assert all(len(seconds) == 2 for seconds in turns.seconds.values())
    whole = comparison(Counting(), tmp_path / "whole")
    whole.run(0)
    for name in ("no cache", *METHODS):
        assert again.folders[name].images == whole.folders[name].images, "the same files, bit for bit"


def test_a_damaged_image_is_sampled_again_and_another_method_is_added(tmp_path):
    comparison(Counting(), tmp_path).run(0)
    image = tmp_path / "columns/goc-eta-1.2/seed-5/00002.png"
    good = image.read_bytes()
    image.write_bytes(good[:50])
    source = Counting()
    rounds = comparison(source, tmp_path, methods=(*METHODS, "taylorseer"))
    rounds.run(0)
    assert image.read_bytes() == good
    assert [(seed, first) for _, seed, first, _ in source.calls] == [(0, 0), (0, 2), (5, 0), (5, 2), (5, 2)]


@pytest.mark.parametrize(
    ("more", "differ"),
    [({"seeds": (0, 6)}, "seeds differ"), ({"steps": 5}, r"plan, num steps differ|num steps differ")],
)
def test_another_comparison_in_the_folder_is_refused(tmp_path, more, differ):
    comparison(load_digits(), tmp_path).run(0)
    with pytest.raises(fc.errors.ShardError, match=differ):
        comparison(load_digits(), tmp_path, **more)


def test_a_plan_file_that_changed_is_another_column(tmp_path):
    digits, path = load_digits(), tmp_path / "mine.json"
    grid = fc.grid(digits.target, STEPS)
    for interval, refused in ((2, False), (3, True)):
        fc.fora(interval).plan(grid).save(path)
        request = Request.of((), (path,), None)
        assert request.num_steps == STEPS
        columns = request.columns(digits)
        assert [column.name for column in columns] == ["no cache", "mine"]
        if refused:
            with pytest.raises(fc.errors.ShardError, match=r"columns/mine holds images .*plan differ"):
                Rounds(digits, columns, Settings(LABELS, STEPS, 1.5, 0, 4), (0,), tmp_path)
        else:
            Rounds(digits, columns, Settings(LABELS, STEPS, 1.5, 0, 4), (0,), tmp_path).run(0)


def test_a_damaged_record_is_refused_with_what_to_do(tmp_path):
    comparison(load_digits(), tmp_path, methods=("fora",), seeds=(0,)).run(0)
    record = tmp_path / "columns/fora/run.json"
    for broken in ("{", json.dumps(json.loads(record.read_text()) | {"version": 9})):
        record.write_text(broken)
        with pytest.raises(fc.errors.ShardError, match=r"Delete the folder, and it is sampled again"):
            ColumnFolder.open(record.parent, {})


PLANNING = {
    "a method that needs a file": (["eoc"], "The method 'eoc' cannot be made: eoc needs stats=, statistics"),
    "a level of other steps": (
        ["fora_paper level=50"],
        "cannot be planned for this model: .* of 20 steps, and the run has 4",
    ),
    "no method": ([], "Nothing is to be compared"),
    "one name for two": (["goc eta=1", "goc  eta=1"], "Two columns have the name 'goc-eta-1'"),
}


@pytest.mark.parametrize(("methods", "sentence"), PLANNING.values(), ids=PLANNING)
def test_a_method_that_cannot_be_planned_is_refused_before_any_work(tmp_path, methods, sentence):
    source = Counting()
    with pytest.raises(fc.errors.InputError, match=sentence):
        comparison(source, tmp_path / "out", methods=methods)
    assert source.calls == []
    assert not (tmp_path / "out").exists()


def test_a_metric_that_cannot_be_measured_is_left_out_with_its_reason_or_refused_if_it_was_asked_for(monkeypatch):
    monkeypatch.setattr(quality, "_lpips_is_missing", lambda: "it is not here")
    judges = quality.open_judges(None, texts=False, size=8)
    assert judges.names == ("psnr",)
    assert judges.notes == (
        "SSIM is left out: images of 8 pixels are smaller than its window of 11.",
        "LPIPS is left out: it is not here.",
        "CLIP is left out: images of classes have no prompts.",
    )
    with pytest.raises(fc.errors.InputError, match="CLIP cannot be measured: images of classes have no prompts"):
        quality.open_judges(["clip"], texts=False, size=64)
    with pytest.raises(fc.errors.InputError, match="no metric 'fid' of pairs and prompts; there are psnr"):
        quality.open_judges(["fid"], texts=False, size=64)


def test_lpips_and_clip_are_measured_where_they_are(monkeypatch):
    perceptual = quality.Perceptual("lpips-alex", lambda a, b: (a - b).abs().flatten(1).mean(1))

    class Scores:
        def score(self, images, prompts):
            assert images.dtype == torch.uint8
            return torch.tensor([float(len(prompt)) for prompt in prompts])

    for name in ("_lpips_is_missing", "_clip_is_missing"):
        monkeypatch.setattr(quality, name, lambda: "")
    monkeypatch.setattr(quality, "load_lpips", lambda device: perceptual)
    monkeypatch.setattr(quality, "load_clip", lambda device: Scores())
    judges = quality.open_judges(None, texts=True, size=16)
    assert (judges.names, judges.notes) == (quality.NAMES, ())
    video = torch.rand(3, 3, 16, 16)
    assert quality.of_pair(judges, video, video * 0.5)["lpips"] == pytest.approx((video / 2).mean().item())
    assert quality.of_pair(judges, video, video) == {"psnr": None, "ssim": pytest.approx(1), "lpips": 0}
    assert quality.of_prompt(judges, video, "a cat") == {"clip": 5.0}
    assert quality.of_prompt(judges, video, 7) == {}


def test_the_psnr_of_a_video_is_the_mean_over_its_frames():
    """By hand; an equal frame counts 100 dB, a video of equal frames is equal."""
    images = torch.rand(2, 2, 3, 4, 4)
    other = images.clone()
    other[0, 1] += 0.1
    assert psnr(other, images).tolist() == [pytest.approx((100 + 20) / 2, abs=1e-3), float("inf")]
