"""`forecache compare-methods`, and the options of a pipeline that commands share."""

import inspect
import json

import numpy as np
import pytest
from PIL import Image
from support.commands import COMMANDS

import forecache as fc
from forecache.bench.comparison.rounds import Rounds
from forecache.methods import recommended
from forecache.report import html

SHARED = ("height", "width", "frames", "negative_prompt", "device", "dtype", "offload")
FEW = ["--labels", "3,1", "--steps", 4, "--rounds", 1]
VIDEO = ["--height", 16, "--width", 16, "--frames", 5, "--negative-prompt", "a cactus", "--steps", 4]


def test_one_command_compares_and_reports(forecache, tmp_path):
    fc.fora(3).plan(fc.grid(fc.zoo.load_digits().target, 4)).save(tmp_path / "mine.json")
    out = tmp_path / "out"
    words = [*FEW, "--method", "goc eta=1.2", "--plan", tmp_path / "mine.json", "--seeds", "0,7", "--batch", 2]
    code, said, err = forecache("compare-methods", *words, "--errors", "--out", out)
    assert (code, err) == (0, "")
    lines = {line.split("  ")[0].strip(): line for line in said.splitlines()}
    assert "2/4" in lines["goc eta=1.2"]
    assert "Time: 1 round of a batch of 2, in which all columns sample in turn after each has run once" in said
    assert "CLIP is left out: images of classes have no prompts." in said
    document = json.loads((out / "comparison.json").read_text())
    assert document["command"].startswith("forecache compare-methods --labels 3,1")
    assert [column["name"] for column in document["columns"]] == ["no cache", "goc eta=1.2", "mine"]
    assert set(document["errors"]) == {"goc eta=1.2", "mine"}
    assert document["environment"]["torch"]
    assert {path.name for path in (out / "columns").iterdir()} == {"no-cache", "goc-eta-1.2", "mine"}
    assert min(Image.open(out / "grid.png").size) > 300
    assert html.read(out).kind == "methods"
    assert (out / "report.html").stat().st_size < 500_000
    code, said, _ = forecache("compare-methods", *words, "--errors", "--out", out, "--json")
    again = json.loads(said)
    assert (code, again["columns"]) == (0, document["columns"]), "nothing was sampled or timed again"


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(forecache, tmp_path, monkeypatch):
    generate = Rounds._generate
    calls = []

    def interrupted(self, *given):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(given)
        return generate(self, *given)

    monkeypatch.setattr(Rounds, "_generate", interrupted)
    words = ["compare-methods", *FEW, "--batch", 1, "--method", "fora", "--out", tmp_path / "out"]
    code, said, err = forecache(*words)
    assert (code, err) == (130, "")
    assert said == f"3 of 4 images are kept in {tmp_path / 'out'}: the same command continues.\n"
    assert not (tmp_path / "out/comparison.json").exists()


def test_a_recipe_on_record_is_asked_for_by_its_speedup(forecache, tmp_path):
    words = ["--labels", "3", "--steps", 8, "--speedup", 2.5, "--out"]
    code, said, _ = forecache("compare-methods", *words, tmp_path / "both", "--rounds", 0)
    assert (code, "recommended, 2.5x" in said) == (0, True)
    plan = recommended.method(2.5, 8).plan(fc.grid(fc.zoo.load_digits().target, 8))
    column = json.loads((tmp_path / "both/comparison.json").read_text())["columns"][1]
    assert column["picture"] == plan.picture()
    code, said, _ = forecache("sample", *words, tmp_path / "one")
    assert code == 0
    assert fc.Plan.load(tmp_path / "one/plan.json").rows == plan.rows
    for command in ("sample", "compare-methods"):
        code, _, err = forecache(command, "--labels", "3", "--speedup", 9, "--out", tmp_path / "no")
        assert (code, "on record for 1.3 to 5 times fewer MACs; 9 was asked for" in err) == (1, True)


FAILURES = {
    "nothing to compare": ([], "Nothing is to be compared: give methods or plan files"),
    "a method that needs a file": (["--method", "eoc"], "The method 'eoc' cannot be made: eoc needs stats=, stat"),
    "no seed": (["--method", "fora", "--seeds", "a"], "--seeds takes whole numbers"),
    "a metric that is none": (["--method", "fora", "--metrics", "fid"], "no metric 'fid' of pairs and prompts"),
    "a height of digits": (["--method", "fora", "--height", 8], "A Digits has no height: leave it out"),
    "offload on a CPU": (["--method", "fora", "--offload", "model"], "this run is on the CPU: leave it out"),
}


@pytest.mark.parametrize(("words", "sentence"), FAILURES.values(), ids=FAILURES)
def test_what_cannot_be_compared_is_refused_before_any_work(forecache, tmp_path, words, sentence):
    code, _, err = forecache("compare-methods", "--labels", "3", "--steps", 4, *words, "--out", tmp_path / "out")
    assert (code, err.count("\n")) == (1, 1)
    assert sentence in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["sample", "tune", "calibrate", "compare-methods"])
def test_the_options_of_a_pipeline_are_shared(name):
    options = {option.name: option for option in COMMANDS[name].params}
    reference = {option.name: option for option in COMMANDS["sample"].params}
    assert set(SHARED) <= set(options)
    assert [options[option].help for option in SHARED] == [reference[option].help for option in SHARED]
    assert "pipeline" not in options
    assert inspect.getdoc(COMMANDS[name].callback)


@pytest.mark.parametrize("name", ["sample", "tune", "calibrate", "compare-methods"])
def test_an_option_that_a_pipeline_does_not_have_is_refused(forecache, tmp_path, pixart_folder, name):
    words = {"sample": ["--prompt", "a red cat"], "compare-methods": ["--prompt", "a red cat", "--method", "fora"]}
    (tmp_path / "texts.txt").write_text("a red cat\n")
    given = words.get(name, ["--prompts", tmp_path / "texts.txt"])
    out = tmp_path / ("out.safetensors" if name == "calibrate" else "out")
    code, _, err = forecache(name, "--model", pixart_folder, *given, "--frames", 5, "--out", out)
    assert (code, err.count("\n")) == (1, 1)
    assert "The call of a PixArtAlphaPipeline has no frames: leave it out. It has prompt," in err


def test_rounds_belong_to_a_comparison(forecache, tmp_path):
    code, _, err = forecache("sample", "--labels", "3", "--rounds", 2, "--out", tmp_path / "out")
    assert (code, "--rounds times a run beside one without a cache: give --compare, too" in err) == (1, True)
    code, _, err = forecache("sample", "--labels", "3", "--errors", "--out", tmp_path / "out")
    assert (code, "--errors are those of a plan's estimates" in err) == (1, True)


def test_without_rounds_no_speed_is_printed(forecache, tmp_path):
    words = ["--labels", "3,1", "--steps", 4, "--method", "fora", "--compare", "--out", tmp_path]
    code, said, _ = forecache("sample", *words, "--rounds", 0)
    assert (code, "No time was measured." in said, "as fast" in said) == (0, True, False)
    assert not {"timing", "time_ratio"} & json.loads((tmp_path / "run.json").read_text()).keys()
    code, said, _ = forecache("sample", *words, "--rounds", 2, "--errors")
    assert (code, "in 2 rounds of 2, in turn" in said) == (0, True)
    record = json.loads((tmp_path / "run.json").read_text())
    assert np.array(record["errors"]["relative_l2"]).shape == (24, 4)


def test_a_video_pipeline_is_sampled_and_compared(forecache, tmp_path, wan_folder):
    """From the command line, and what is written is what the pipeline gives."""
    text, out = ["--prompt", "a red cat"], tmp_path / "one"
    code, said, _ = forecache("sample", "--model", wan_folder, *text, *VIDEO, "--method", "fora", "--out", out)
    assert (code, f"Wrote 1 videos and run.json to {out}." in said) == (0, True)
    record = json.loads((out / "run.json").read_text())
    assert record["pipeline"]["options"] == {"height": 16, "width": 16, "frames": 5, "negative_prompt": "a cactus"}
    both = tmp_path / "both"
    words = [*text, *VIDEO, "--method", "fora", "--rounds", 0, "--out", both]
    code, said, _ = forecache("compare-methods", "--model", wan_folder, *words)
    assert code == 0
    column = json.loads((both / "comparison.json").read_text())["columns"][1]
    assert (column["frames"], column["images"][0]["file"]) == (5, "fora/seed-0/00000")
    for number in range(5):
        ours, alone = both / "columns/fora/seed-0/00000" / f"{number:03d}.png", out / "00000" / f"{number:03d}.png"
        assert ours.read_bytes() == alone.read_bytes()
    page = (both / "report.html").read_text(encoding="utf-8")
    assert page.count('class="film') == 3
    assert page.count('class="player"') == 1


@pytest.mark.slow
@pytest.mark.usefixtures("short_tuning")
def test_a_video_pipeline_is_tuned_and_calibrated(forecache, tmp_path, wan_folder):
    (tmp_path / "texts.txt").write_text("a red cat\na green apple\n")
    words = ["--model", wan_folder, "--prompts", tmp_path / "texts.txt", "--samples", 2, *VIDEO]
    few = ["--held-out", 1, "--schedules", 2, "--speedup", 1.5]
    code, _, err = forecache("tune", *words, *few, "--out", tmp_path / "tune")
    assert code == 0, err
    assert json.loads((tmp_path / "tune/tune.json").read_text())["settings"]["options"]["frames"] == 5
    longer = [9 if word == 5 else word for word in words]
    code, _, err = forecache("tune", *longer, *few, "--out", tmp_path / "tune")
    assert (code, "options differ" in err) == (1, True)
    code, _, err = forecache("calibrate", *words, "--out", tmp_path / "s.safetensors")
    assert code == 0, err
    assert fc.Statistics.load(tmp_path / "s.safetensors").origin.options["height"] == 16
