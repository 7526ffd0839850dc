"""The commands that would tune the large models: their MACs, their words, and small models in the same format."""

import importlib.util
import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from support.commands import COMMANDS

import forecache as fc

ROOT = Path(__file__).parents[2]
TEXTS = "a red cat\na green cactus\na small apple\n"


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield loaded(ROOT / "benchmarks/tune_models.py")
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def video():
    return loaded(ROOT / "examples/tune_video.py")


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(TEXTS)
    return path


def test_macs_are_the_published_ones(models):
    """118.64 G of DiT-XL/2 (Peebles and Xie, table 4); 3719.5 TFLOPs of FLUX.1-dev in 50 steps (TaylorSeer)."""
    assert models.MODELS["DiT-XL/2"].macs() / 2 == pytest.approx(118.64e9, rel=1e-3)
    assert models.MODELS["FLUX.1-dev"].macs() * 2 * 50 == pytest.approx(3719.5e12, rel=1e-3)


def test_hours_are_runs_times_macs(models, monkeypatch):
    """By hand: 32 samples at four speed-ups with 48 + 12 + 18 schedules, two more on three seeds, and five rounds of
    refinement, which move each skipped step two ways and sample five times more; four runs without a cache; 200 others.
    """
    subject = models.MODELS["DiT-XL/2"]
    monkeypatch.setattr(models, "MODELS", {"DiT-XL/2": subject})
    shares = 1 / 1.5 + 1 / 2 + 1 / 3 + 1 / 4.5
    skipped = sum(50 * (1 - 1 / speedup) / speedup for speedup in (1.5, 2, 3, 4.5))
    assert subject.passes() == pytest.approx(32 * (4 + (78 + 6 + 25) * shares + 10 * skipped) + 200 * (1 + shares))
    line = next(line for line in models.table(1e-6) if line.startswith("| DiT-XL/2"))
    hours = subject.passes() * 50 * 2 * subject.macs() / 1e6 / 3600
    assert float(line.split("|")[-2]) == pytest.approx(hours, rel=1e-3)


@pytest.mark.parametrize("name", ["DiT-XL/2", "PixArt-alpha", "FLUX.1-dev"])
def test_the_commands_are_ones_that_forecache_takes(models, name):
    words = shlex.split(models.MODELS[name].command)
    assert ("torchrun" in words) == (name == "FLUX.1-dev")
    with COMMANDS["tune"].make_context("tune", words[words.index("tune") + 1 :]) as context:
        assert context.params["speedup"] == list(models.SPEEDUPS)
        assert context.params["samples"] == models.MODELS[name].samples
        assert context.params["held_out"] == models.MODELS[name].held_out
        assert context.params["steps"] == models.MODELS[name].steps


@pytest.mark.parametrize("kind", ["dit", "pixart"])
@pytest.mark.usefixtures("short_tuning")
def test_a_small_model_in_the_same_format_is_tuned(forecache, pipe_folder, pixart_folder, texts, tmp_path, kind):
    """With budgets of every kind."""
    folder = {"dit": pipe_folder, "pixart": pixart_folder}[kind]
    words = ["--steps", 5, "--samples", 1, "--held-out", 1, "--schedules", 2, "--batch", 1, "--out", tmp_path / "out"]
    words += ["--prompts", texts] if kind == "pixart" else []
    code, out, err = forecache("tune", "--model", folder, *words, "--speedup", 1.5, "--at-least", 1, "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)["plans"]
    assert [Path(row["plan"]).name for row in rows] == ["plan-1.5x.json", "plan-1dB.json"]
    least = 1 if kind == "dit" else rows[1]["pattern"].count("#")  # intervals up to 5
    assert rows[1]["pattern"].count("#") == least <= rows[0]["pattern"].count("#")
    assert fc.Plan.load(tmp_path / "out/plan-1dB.json").num_steps == 5
    code, out, err = forecache("tune", "--model", folder, *words, "--milliseconds", 0.01)
    assert (code, out) == (1, "")
    assert "0.01 ms were asked for" in err


@pytest.mark.usefixtures("short_tuning")
def test_a_small_video_model_is_tuned(video, wan_folder, texts, tmp_path, capsys):
    words = [str(wan_folder), "--prompts", str(texts), "--size", "16", "16", "5", "--steps", "5", "--samples", "2"]
    words += ["--held-out", "1", "--schedules", "3", "--out", str(tmp_path / "out")]
    video.main(words)
    said = capsys.readouterr().out
    plan = fc.Plan.load(tmp_path / "out/plan-2x.json")
    assert plan.num_steps == 5
    assert plan.provenance["psnr"].split(" dB")[0] in said
    video.main(words)
    assert "schedules sampled with" in capsys.readouterr().out.splitlines()[0], "nothing is sampled again"


def test_a_video_is_one_tall_image(video, wan_folder):
    pipe = WanPipeline.from_pretrained(wan_folder)
    pipe.set_progress_bar_config(disable=True)
    source = video.Videos(pipe, (16, 16, 5))
    how = fc.sampling.sources.Sampling(2, 5.0, 0)
    both = source.generate(["a cat", "a red apple"], how)
    assert both.shape == (2, 3, 5 * 16, 16)
    assert torch.allclose(source.generate(["a red apple"], how, 1)[0], both[1], atol=1e-4)
    with pytest.raises(fc.errors.InputError, match="'7' is not a class"):
        source.label("7")


def test_texts_that_are_missing_are_named(video, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(SystemExit):
        video.main(["nowhere", "--prompts", str(tmp_path / "empty.txt")])
    assert "has no prompts" in capsys.readouterr().err
