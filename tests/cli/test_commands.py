"""The commands as a user runs them: what they write, what they print, how they fail and how they stop."""

import gc
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from PIL import Image
from support.pipelines import PIPELINES, pipeline
from support.tiny import TINY

import forecache as fc
from forecache import cli, zoo
from forecache.bench import demo, speed
from forecache.cli import terminal
from forecache.cli.terminal import resumable
from forecache.sampling.loop import sample
from forecache.zoo import load_digits

COMMANDS = [
    "demo",
    "plan",
    "sample",
    "calibrate",
    "show",
    "export",
    "import-router",
    "train-router",
    "search",
    "bench",
    "evaluate",
    "tabulate",
    "compare",
    "compare-methods",
    "models",
    "methods",
    "reproduce",
    "report",
]


def pictures(folder):
    return {path.name: Image.open(path).copy() for path in sorted(folder.glob("0*.png"))}


@pytest.mark.slow
def test_demo_prints_a_table_and_writes_pictures(forecache, tmp_path):
    code, out, err = forecache("demo", "--samples", 12, "--repeats", 1, "--out", tmp_path)
    assert code == 0
    assert err == ""  # no progress bar where there is no terminal
    assert "#.#~#~#~#~#~#~#~#~#~" in out
    assert "The tuned plan is +" in out
    record = json.loads((tmp_path / "demo.json").read_text())
    rows = {row["name"]: row for row in record["rows"]}
    assert list(rows) == ["no cache", "FORA", "Taylor 1", "GOC 0.8", "tuned, 10 of 20", "tuned, 7 of 20"]
    assert rows["FORA"]["macs_ratio"] == pytest.approx(1.98, abs=0.005)
    assert rows["tuned, 10 of 20"]["psnr"] > max(rows[name]["psnr"] for name in ("FORA", "Taylor 1", "GOC 0.8"))
    assert rows["tuned, 7 of 20"]["macs_ratio"] > 2.7
    assert rows["no cache"]["psnr"] is None
    assert record["environment"]["torch"] == torch.__version__
    width, height = Image.open(tmp_path / "samples.png").size
    assert 1000 < width <= 1400
    assert 400 < height <= 700  # fits a screen


@pytest.mark.slow
def test_the_demo_stops_without_a_traceback(tmp_path):
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # not so in a background job
    command = [sys.executable, "-c", f"{heard}; from forecache.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "demo", "--samples", "600", "--out", tmp_path / "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    while not (tmp_path / "demo").exists():  # what it makes before it samples
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(2)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in out
    assert out.splitlines() == [b"Nothing was written: the first of 2 rounds was not finished."]
    assert not list((tmp_path / "demo").iterdir())


def after(count, function):
    """A function that a user stops after so many calls of it."""
    calls = []

    def stopped(*args, **kwargs):
        if len(calls) == count:
            raise KeyboardInterrupt
        calls.append(None)
        return function(*args, **kwargs)

    return stopped


def test_a_stopped_benchmark_keeps_its_whole_rounds(forecache, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "one_run", after(7, speed.one_run))  # a round has two plans of two generations
    words = ["bench", "--preset", "fora-50", "--steps", 4, "--rounds", 5, "--out", tmp_path]
    code, out, _ = forecache(*words)
    assert code == 130
    assert "bench.json has the results of 1 of 5 rounds" in " ".join(out.split())
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["settings"]["rounds"] == 1
    assert [len(row["run_seconds"]) for row in record["rows"]] == [1, 1]


def test_a_stopped_demo_keeps_its_whole_rounds(forecache, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "timed", after(8, demo.timed))  # a round has six plans
    code, out, _ = forecache("demo", "--samples", 2, "--repeats", 3, "--out", tmp_path)
    assert code == 130
    assert "demo.json has the results of 1 of 3 rounds" in " ".join(out.split())
    record = json.loads((tmp_path / "demo.json").read_text())
    assert [row["time_rounds"] for row in record["rows"]] == [1] * 6
    assert (tmp_path / "samples.png").exists()


def test_sample_digits_compares_and_repeats(forecache, tmp_path):
    words = ["sample", "--labels", "3,one,4", "--method", "goc", "--steps", 8, "--seed", 5]
    code, out, _ = forecache(*words, "--compare", "--out", tmp_path / "a")
    assert code == 0
    assert "goc(fora(interval=2), eta=0.8)" in out
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert [each["label"] for each in record["images"]] == [3, 1, 4]
    assert all(each["psnr"] > 20 for each in record["images"])
    assert record["stats"]["computed"] == record["stats"]["skipped"] == 4 * 24
    assert record["stats"]["peak_cache_bytes"] == record["cost_per_batch"]["cache_bytes"]
    again, _, _ = forecache(
        "sample", "--labels", "3,1,4", "--seed", 5, "--plan", tmp_path / "a" / "plan.json", "--out", tmp_path / "b"
    )
    assert again == 0
    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")
    other, _, _ = forecache(*words[:-1], 6, "--out", tmp_path / "c")
    assert other == 0
    assert pictures(tmp_path / "a") != pictures(tmp_path / "c")


def test_an_earlier_run_in_the_folder_is_replaced(forecache, tmp_path):
    """Not mixed with: pictures, plan and uncached samples go, and what others put there stays."""
    code, _, _ = forecache(
        "sample", "--labels", "3,1,4", "--steps", 3, "--method", "fora", "--compare", "--out", tmp_path
    )
    assert code == 0
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "7.png").write_text("mine, too")
    assert forecache("sample", "--labels", "7", "--steps", 2, "--out", tmp_path)[0] == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["00000.png", "7.png", "notes.txt", "run.json"]
    code, _, err = forecache("sample", "--num-samples", 2, "--steps", 2, "--out", tmp_path)
    assert (code, "holds another run, not in shards" in err) == (1, True)
    shards = tmp_path / "shards"
    assert forecache("sample", "--num-samples", 2, "--steps", 2, "--out", shards)[0] == 0
    code, _, err = forecache("sample", "--labels", "7", "--steps", 2, "--out", shards)
    assert (code, "samples in shards" in err) == (1, True)


def test_what_can_go_on_says_so_when_it_is_stopped(capsys, tmp_path):
    def stopped(path):
        with pytest.raises(KeyboardInterrupt), resumable(path):
            raise KeyboardInterrupt
        return capsys.readouterr().out

    assert stopped(tmp_path / "tune.json") == ""
    (tmp_path / "tune.json").write_text("{}")
    assert "the same command continues" in stopped(tmp_path / "tune.json")


def test_quiet_keeps_the_warning_about_a_session_that_did_nothing(dit):
    with warnings.catch_warnings(record=True) as heard, terminal._silent_libraries():
        warnings.warn("of a library", UserWarning, stacklevel=1)
        warnings.warn("a socket was not closed", ResourceWarning, stacklevel=1)
        fc.apply(dit, fc.fora(2))
        gc.collect()
    sentences = [str(warning.message) for warning in heard]
    assert len(sentences) == 1
    assert sentences[0].startswith("A session on DiTTransformer2DModel was never entered")


def test_a_plan_file_takes_no_method_options(forecache, tmp_path):
    forecache("plan", "fora", "--steps", 3, "--model", "digits", "--out", tmp_path / "p.json")
    code, _, err = forecache("sample", "--labels", "7", "--plan", tmp_path / "p.json", "--eta", 0.5, "--out", tmp_path)
    assert (code, "leave --eta out" in err) == (1, True)


def test_more_steps_than_a_scheduler_has_are_refused(forecache, tmp_path):
    code, _, err = forecache("sample", "--labels", "7", "--steps", 1001, "--out", tmp_path)
    assert (code, "1000" in err) == (2, True)
    digits = load_digits()
    with pytest.raises(fc.errors.InputError, match="DDIMScheduler has no 1001 steps"):
        sample(digits.transformer, digits.scheduler, [1], num_steps=1001)


def test_sample_runs_a_real_pipeline(forecache, tmp_path, pipe, pipe_folder):
    """The folder's images are those of the pipeline under the same plan, called by hand."""
    from forecache.sampling.loop import generators

    words = ["--labels", "207,360", "--steps", 6, "--interval", 3, "--eta", 1.2, "--out", tmp_path]
    code, out, _ = forecache("sample", "--model", pipe_folder, "--method", "goc", "--base", "fora", *words)
    assert code == 0
    assert "#.~" not in out
    assert "#..#~~" in out
    plan = fc.goc(fc.fora(3), 1.2).plan(fc.grid(pipe, 6))
    with fc.apply(pipe, plan):
        expected = pipe(
            [207, 360], num_inference_steps=6, guidance_scale=1.5, generator=generators(0, [0, 1]), output_type="np"
        ).images
    for image, name in zip(expected, ("00000.png", "00001.png"), strict=True):
        got = torch.tensor(list(Image.open(tmp_path / name).tobytes()))
        assert (got - torch.tensor(image * 255).round().flatten()).abs().max() <= 1
    assert fc.Plan.load(tmp_path / "plan.json") == plan


FAILURES = {
    "unknown label": (["--labels", "3,11"], "classes 0 to 9; 11 is not"),
    "unknown class name": (["--labels", "cat"], "no class 'cat'"),
    "a label with two signs": (["--labels", "--5"], "no class '--5'"),
    "a digit that is no number": (["--labels", "3,²"], "no class '²'"),
    "no label": (["--labels", ","], "No label was given; this model has the classes 0 to 9"),
    "an empty label": (["--labels", ""], "No label was given"),
    "unknown labels": (["--labels", "3,11,12"], "classes 0 to 9; 11, 12 are not among them"),
    "unknown model": (["--labels", "1", "--model", "nowhere"], "no model 'nowhere'"),
    "plan and method": (["--labels", "1", "--plan", "p.json", "--method", "goc"], "one of them"),
    "guidance that is no number": (["--labels", "1", "--guidance", "nan"], "a finite number, at least 0; nan was"),
    "negative guidance": (["--labels", "1", "--guidance", "-2"], "a finite number, at least 0; -2 was"),
    "missing plan": (["--labels", "1", "--plan", "nowhere.json"], "no plan file at nowhere.json"),
    "level without its method": (
        ["--labels", "1", "--method", "fora", "--caching-level", "50"],
        "belongs to --base fora_paper",
    ),
    "interval under a level": (
        ["--labels", "1", "--method", "fora_paper", "--caching-level", "50", "--interval", "2"],
        "--interval belongs to --base fora",
    ),
    "level of other steps": (
        ["--labels", "1", "--method", "fora_paper", "--caching-level", "50", "--steps", "10"],
        "the run has 10",
    ),
    "unknown level": (["--labels", "1", "--method", "fora_paper", "--caching-level", "33"], "one of 25, 50, 75"),
    "computed step": (["--labels", "1", "--method", "goc", "--correct", "4"], "list skipped steps"),
    "steps not numbers": (["--labels", "1", "--method", "goc", "--correct", "a,b"], "whole numbers"),
    "correct without goc": (
        ["--labels", "1", "--method", "fora", "--correct", "3"],
        "--correct belongs to --method goc",
    ),
    "skip without base": (["--labels", "1", "--method", "fora", "--skip", "3"], "--base explicit"),
    "eta without goc": (["--labels", "1", "--method", "fora", "--eta", "1"], "--eta belongs to --method goc"),
    "an option without a method": (["--labels", "1", "--order", "2"], "--order belongs to --method taylorseer"),
    "two bases": (["--labels", "1", "--method", "l2c", "--base", "fora"], "is a base itself"),
    "l2c without a router": (["--labels", "1", "--method", "l2c"], "needs --router"),
    "a bundled router that is not": (["--labels", "1", "--method", "l2c", "--router", "digits-30"], "22 and 40 %"),
    "eoc without statistics": (["--labels", "1", "--method", "eoc"], "needs --stats, statistics"),
    "statistics of other steps": (
        ["--labels", "1", "--method", "eoc", "--stats", "digits", "--steps", "8"],
        "for 20 and 50 steps, not for 8",
    ),
    "smoothcache without statistics": (["--labels", "1", "--method", "smoothcache"], "needs --stats, statistics"),
    "base without skip": (["--labels", "1", "--method", "explicit"], "one of the three"),
    "a pattern of other steps": (["--labels", "1", "--method", "procache", "--pattern", "published"], "50 entries"),
    "pattern and skip": (
        ["--labels", "1", "--pattern", "##", "--skip", "1", "--method", "explicit"],
        "one of the three",
    ),
    "a pattern in words": (["--labels", "1", "--method", "explicit", "--pattern", "abc"], "is written with '#'"),
    "share without procache": (["--labels", "1", "--method", "fora", "--share", "0.2"], "--share belongs to"),
    "a share over 1": (["--labels", "1", "--method", "toca", "--interval", "3", "--share", "2"], "between 0 and 1"),
    "a gate without statistics": (
        ["--labels", "1", "--method", "goc", "--gamma", "0.4", "--stats", "none"],
        "--gamma of goc needs --stats",
    ),
    "a gate without statistics of so many steps": (
        ["--labels", "1", "--method", "goc", "--gamma", "0.4", "--steps", "8"],
        "--gamma of goc needs --stats",
    ),
    "a method whose statistics cannot be left out": (
        ["--labels", "1", "--method", "smoothcache", "--stats", "none"],
        "There is no statistics",
    ),
    "an ingredient that is no file": (
        ["--labels", "1", "--method", "goc", "--stats", "nowhere"],
        "There is no statistics",
    ),
    "a base that takes one": (["--labels", "1", "--warmup", "3"], "give a --method"),
    "no gap for tokens": (["--labels", "1", "--method", "procache", "--interval", "2"], "no partial cell"),
    "depth for toca": (["--labels", "1", "--method", "toca", "--from-depth", "3"], "--from-depth belongs to"),
    "unknown dtype": (["--labels", "1", "--dtype", "int3"], "dtype must be"),
    "unusable device": (["--labels", "1", "--device", "nonsense"], "device 'nonsense'"),
}


@pytest.mark.parametrize(("words", "sentence"), FAILURES.values(), ids=FAILURES)
def test_bad_input_is_answered_with_a_sentence(forecache, tmp_path, words, sentence):
    code, _, err = forecache("sample", *words, "--out", tmp_path / "out")
    assert code == 1
    assert err.startswith("Error: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_plan_for_another_model_or_number_of_steps_is_refused(forecache, tmp_path, dit):
    fc.fora(2).plan(fc.grid(dit, 5)).save(tmp_path / "other.json")
    code, _, err = forecache("sample", "--labels", "1", "--plan", tmp_path / "other.json")
    assert code == 1
    assert "made for 6 sites" in err
    fc.fora(2).plan(fc.grid(load_digits().transformer, 5)).save(tmp_path / "short.json")
    code, _, err = forecache("sample", "--labels", "1", "--plan", tmp_path / "short.json", "--steps", 6)
    assert code == 1
    assert "a plan for 5 steps, --steps 6" in err


def test_a_folder_that_is_no_pipeline_is_refused(forecache, tmp_path):
    code, _, err = forecache("sample", "--labels", "1", "--model", tmp_path)
    assert code == 1
    assert "cannot be loaded as a diffusers pipeline from the folder" in err


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    """Statistics of digits over 8 steps, from one sample a class."""
    path = tmp_path_factory.mktemp("statistics") / "digits-8.safetensors"
    fc.calibrate(load_digits(), range(10), num_steps=8, seed=1000, path=path)
    return path


def test_calibrate_writes_what_python_measures_and_continues(forecache, tmp_path, statistics):
    words = ["calibrate", "--steps", 8, "--samples", 10, "--out", tmp_path / "made.safetensors"]
    code, out, err = forecache(*words)
    assert (code, err) == (0, "")
    assert "8 steps x 24 sites, 10 samples. Memory: 3.8 MiB of means" in out  # 9 x 24 x 36 x 128 float32
    made, ours = fc.Statistics.load(tmp_path / "made.safetensors"), fc.Statistics.load(statistics)
    assert all(torch.equal(a, b) for a, b in zip(made.means, ours.means, strict=True))
    code, out, _ = forecache(*words, "--keep", "channel")  # finished: nothing is sampled again
    assert code == 0
    assert fc.Statistics.load(tmp_path / "made.safetensors").resolution == "channel"
    code, _, err = forecache(*words)
    assert code == 1
    assert "holds compact statistics of this run" in err
    code, _, err = forecache(*words, "--guidance", 3)
    assert code == 1
    assert "guidance differ" in err


STOPPING = """
import os, signal, sys, torch
from forecache import cli, zoo
from forecache.bench import demo, speed
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
torch.set_num_threads(1)
generate = zoo.Digits.generate

def stopping(self, labels, how, first_index=0, on_step=None):
    def step(number):
        on_step(number)
        if first_index == 8 and number == 2:
            os.kill(os.getpid(), signal.SIGINT)
    return generate(self, labels, how, first_index, step)

if sys.argv.pop(1) == "stop":
    zoo.Digits.generate = stopping
cli.main()
"""
"""The command line, interrupted by a signal in the middle of its third batch if the first word says so."""


@pytest.mark.slow
def test_an_interrupted_calibration_goes_on(tmp_path):
    """The same command then ends with the same numbers to the last bit."""
    words = ["calibrate", "--steps", "4", "--samples", "16", "--batch", "4", "--out"]
    command = [sys.executable, "-c", STOPPING]
    done = subprocess.run([*command, "stop", *words, tmp_path / "a"], capture_output=True, timeout=300)  # noqa: PLW1510
    assert done.returncode == 130
    assert b"8 samples are kept" in done.stdout
    assert b"the same command continues" in done.stdout
    assert b"Traceback" not in done.stderr
    assert fc.Statistics.load(tmp_path / "a").is_partial
    for name in "ab":
        subprocess.run([*command, "go", *words, tmp_path / name], check=True, capture_output=True, timeout=300)
    a, b = (fc.Statistics.load(tmp_path / name) for name in "ab")
    assert a.count == b.count == 16
    assert all(torch.equal(x, y) for x, y in zip((*a.means, a.changes), (*b.means, b.changes), strict=True))


def test_show_draws_statistics_and_prints_plans(forecache, tmp_path, statistics):
    code, out, _ = forecache("show", statistics, "--threshold", 0.3, "--out", tmp_path / "drawn.png")
    assert code == 0
    assert "8 steps x 24 sites, guidance 1.5, 10 of 10 samples, one mean per token" in out
    assert "gate god(gamma=0.5, threshold=0.3)" in out
    assert min(Image.open(tmp_path / "drawn.png").size) > 600
    plan = fc.goc(fc.fora(2), 0.8).plan(fc.grid(load_digits(), 8))
    plan.save(tmp_path / "plan.json")
    code, out, _ = forecache("show", tmp_path / "plan.json")
    assert code == 0
    assert out.rstrip("\n") == plan.show()
    code, out, _ = forecache("show", zoo.record("digits").router_path(22))
    assert code == 0
    assert out.rstrip("\n") == fc.Router.load(zoo.record("digits").router_path(22)).show()
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    code, _, err = forecache("show", tmp_path / "other.safetensors")
    assert code == 1
    assert "is not a readable statistics file" in err


METHODS = {
    "eoc": (["--method", "eoc", "--theta", 0.3, "--form", "additive", "--per", "channel"], "eoc(fora(interval=2)"),
    "gate": (["--method", "goc", "--threshold", 0.3], "threshold=0.3)"),
    "smoothcache": (
        ["--method", "smoothcache", "--change", 0.3],
        "smoothcache(stats='digits-8.safetensors', threshold=0.3)",
    ),
    "goc on smoothcache": (["--method", "goc", "--base", "smoothcache", "--change", 0.3], "goc(smoothcache("),
}


@pytest.mark.parametrize("name", METHODS)
def test_sample_uses_statistics(forecache, tmp_path, statistics, name):
    words, described = METHODS[name]
    common = ["sample", "--labels", "4", "--steps", 8, "--out", tmp_path]
    code, out, err = forecache(*common, *words, "--stats", statistics)
    assert (code, err) == (0, "")
    assert described in out
    made = fc.Plan.load(tmp_path / "plan.json")
    assert bool(made.constants) == (name == "eoc")
    assert ("gate" in made.provenance) == (name == "gate")
    code, _, _ = forecache(*common[:-1], tmp_path / "again", "--plan", tmp_path / "plan.json")
    assert code == 0
    assert pictures(tmp_path / "again") == pictures(tmp_path)


def test_sample_reuses_by_a_router_and_by_a_published_schedule(forecache, tmp_path):
    common = ["sample", "--labels", "4", "--out", tmp_path]
    code, out, _ = forecache(*common, "--method", "goc", "--base", "l2c", "--router", "digits-22", "--eta", 1)
    assert code == 0
    assert "goc(l2c(router='router-22.safetensors', threshold=0.1), eta=1" in out
    (tmp_path / "schedule.json").write_text(json.dumps({"attn1": [1, 0, 0, 1], "ff": [1, 1, 0, 1]}))
    words = ["--method", "smoothcache_file", "--schedule", tmp_path / "schedule.json"]
    code, out, _ = forecache(*common, *words, "--steps", 4)
    assert code == 0
    assert fc.Plan.load(tmp_path / "plan.json").picture() == "#..#\n##.#"


GATED = {
    "by default": ([], {}, True),
    "of other steps": (["--steps", 19], {}, False),
    "left out": (["--stats", "none"], {}, False),
    "of listed steps": (["--correct", "3,5"], {"steps": [3, 5]}, False),
    "with a gamma of its own": (["--gamma", 0.4], {"gamma": 0.4}, True),
    "after a warm-up": (["--warmup", 4], {}, True),
}


@pytest.mark.parametrize("name", GATED)
def test_goc_takes_the_statistics_of_a_bundled_model(forecache, tmp_path, name):
    """And says so; not where other steps are listed, for another number of steps, or where they are declined."""
    words, more, gated = GATED[name]
    path = tmp_path / "plan.json"
    code, out, err = forecache("plan", "goc", *words, "-o", path)
    assert (code, err) == (0, "")
    plan = fc.Plan.load(path)
    stats = {"stats": zoo.record("digits").statistics_path(20)} if gated else {}
    base = fc.warmup(fc.fora(2), 4) if "--warmup" in words else fc.fora(2)
    assert plan == fc.goc(base, 0.8, **stats, **more).plan(fc.grid(load_digits(), plan.num_steps))
    assert ("The gate is by the statistics that digits comes with; --stats none" in out) == gated
    if gated:  # asked for by name, and read from the file: nothing was taken unasked
        assert "comes with" not in forecache("plan", "goc", *words, "--stats", "digits", "-o", path)[1]
        sampled = ("sample", "--labels", "1", "--plan", path, "--out", tmp_path / "out")
        assert name != "by default" or "comes with" not in forecache(*sampled)[1]


def test_statistics_of_branches_are_taken_for_branches_alone(forecache, tmp_path):
    path = tmp_path / "plan.json"
    for level, gated in (("stack", False), ("branches", True)):
        code, out, _ = forecache("plan", "goc", "--level", level, "--json", "-o", path)
        assert code == 0
        assert ("stats" in fc.Plan.load(path).recipe) == gated
        levels = json.loads(out)["levels"]
        assert [row["reason"] for row in levels] == [None] * 4
        assert [row["sites"] for row in levels] == [24, 12, 4, 1]


SELECTIVE = {
    "procache": (["--method", "procache", "--pattern", "#...#...", "--share", 0.5], "#.o.#.o.", 0.5),
    "on fora": (["--method", "procache", "--interval", 4, "--from-depth", 6], "#.o.#.o.", 0.25),
    "on a pattern": (["--method", "procache", "--base", "explicit", "--pattern", "#...#..."], "#.o.#.o.", 0.25),
    "random": (["--method", "procache", "--interval", 4, "--importance", "random"], "#.o.#.o.", 0.25),
    "toca": (["--method", "toca", "--interval", 4], "#ooo#ooo", 0.25),
    "released": (["--method", "toca", "--interval", 4, "--importance", "released", "--share", 0.1], "#ooo#ooo", None),
}


@pytest.mark.parametrize("name", SELECTIVE)
def test_sample_computes_some_tokens(forecache, tmp_path, name):
    words, drawn, share = SELECTIVE[name]
    code, _, err = forecache("sample", "--labels", "4,2", "--steps", 8, "--out", tmp_path, *words)
    assert (code, err) == (0, "")
    plan = fc.Plan.load(tmp_path / "plan.json")
    assert drawn in plan.picture().split()
    chosen = {cell.tokens.share for row in plan.rows for cell in row if cell.tokens}
    assert chosen == {share} or share is None
    depths = {site.depth for site, row in zip(plan.grid.sites, plan.rows, strict=True) if any(c.tokens for c in row)}
    assert min(depths) == (0 if "toca" in words else 6 if "--from-depth" in words else 9)


@pytest.mark.parametrize("missing", ["typer", "diffusers"])
def test_a_missing_extra_is_named(missing, tmp_path):
    program = f"import sys; sys.modules[{missing!r}] = None; from forecache.cli import main; main()"
    done = subprocess.run(  # noqa: PLW1510 - it fails on purpose
        [sys.executable, "-c", program, "sample", "--labels", "1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    extra = {"typer": "cli", "diffusers": "diffusers"}[missing]
    assert done.returncode == 1
    assert re.search(rf"pip install .*\[{extra}\]'", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [[], *[[name] for name in COMMANDS]])
def test_every_command_explains_itself(forecache, command):
    code, out, _ = forecache(*command, "--help")
    assert code == 0
    assert "Usage" in out
    assert not command or "Example" in out


# ---- plan -----------------------------------------------------------------------------------------------------------


def test_plan_writes_what_the_library_makes_and_says_its_cost(forecache, tmp_path):
    path = tmp_path / "plan.json"
    words = ["plan", "goc", "--base", "fora", "--interval", 2, "--eta", 1.2, "--steps", 20, "--model", "digits"]
    code, out, err = forecache(*words, "-o", path)
    assert (code, err) == (0, "")
    digits = load_digits()
    expected = fc.goc(fc.fora(2), 1.2, stats=zoo.record("digits").statistics_path(20)).plan(fc.grid(digits, 20))
    assert fc.Plan.load(path) == expected
    cost = expected.cost(digits, batch_size=1)
    assert str(cost) in out
    assert "12 attn, 12 mlp  #.#~#~#~" in out
    code, out, err = forecache(*words, "-o", path, "--batch", 4, "--json")
    found = json.loads(out)
    assert (found["plan"], found["picture"]) == (str(path), expected.picture())
    assert found["cost"]["macs"] == expected.cost(digits, batch_size=4).macs
    rows = {row["level"]: row for row in found["levels"]}
    assert list(rows) == ["branches", "blocks", "groups", "stack"]
    assert rows["branches"]["cache_bytes"] == found["cost"]["cache_bytes"]


def test_plan_of_a_model_by_its_shape_needs_no_weights(forecache, tmp_path):
    path = tmp_path / "plan.json"
    code, out, err = forecache("plan", "fora", "--interval", 2, "--model", "dit-xl-2", "-o", path)
    assert (code, err) == (0, "")
    assert len(fc.Plan.load(path).grid.sites) == 56
    assert "T MACs" in out


def test_plan_of_digits_text_and_of_a_pipeline_folder(forecache, tmp_path, pixart_folder):
    for model in ("digits-text", str(pixart_folder)):
        code, out, err = forecache("plan", "fora", "--model", model, "-o", tmp_path / "plan.json", "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["cost"]["macs_uncached"] > 0


def test_plan_of_a_pipeline_that_cannot_be_sampled_here_prints_its_cost(forecache, tmp_path):
    kind, _ = PIPELINES["Wan 2.1"]
    pipeline(kind, TINY["Wan 2.1"].model()).save_pretrained(tmp_path / "wan")
    words = ["plan", "fora", "--model", tmp_path / "wan", "--steps", 4, "-o", tmp_path / "plan.json"]
    size = {"height": 64, "width": 64, "frames": 9}
    more = [word for name, value in size.items() for word in (f"--{name}", value)]
    code, out, err = forecache(*words, *more)
    assert (code, err) == (0, "")
    plan = fc.Plan.load(tmp_path / "plan.json")
    assert str(plan.cost(TINY["Wan 2.1"].model(), **size)) in out
    code, _, err = forecache(*words, "--height", 60, "--width", 64)
    assert (code, "multiples of 8" in err) == (1, True)


def test_plan_refuses_what_is_no_plan(forecache, tmp_path):
    path = tmp_path / "plan.json"
    for words, message in [
        (["none"], "A plan needs a method"),
        (["fora", "--eta", 1.2], "--eta belongs to --method goc"),
        (["fora", "--model", "nowhere"], "There is no model 'nowhere'"),
    ]:
        code, _, err = forecache("plan", *words, "-o", path)
        assert code == 1
        assert message in err
    assert not path.exists()


def test_a_command_does_not_write_over_what_it_reads(forecache, tmp_path):
    folder = tmp_path / "run"
    assert forecache("sample", "--num-samples", 2, "--steps", 2, "--out", folder, "--quiet")[0] == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    samples = folder / "samples.npz"
    evaluate = ["evaluate", folder, "--extractor", "digits", "--metrics", "accuracy"]
    for words in (
        [*evaluate, "--save-features", samples],
        [*evaluate, "--out", samples],
        [*evaluate, "--out", folder / "shards.json"],
        ["report", folder, "--out", folder / "shards.json"],
    ):
        code, _, err = forecache(*words)
        assert code != 0
        assert "name another file" in err or "is an HTML page" in err
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_warmup_without_a_method_is_refused(forecache, tmp_path):
    code, _, err = forecache("sample", "--labels", 1, "--warmup", 3, "--out", tmp_path / "w")
    assert code == 1
    assert "give a --method" in err


def test_a_terminal_that_knows_ascii_only_gets_question_marks(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["forecache", "--version"])
    monkeypatch.setattr(terminal.console, "quiet", False)
    with pytest.raises(SystemExit):
        cli.main()
    terminal.say("Fréchet")
    stream.flush()
    assert stream.buffer.getvalue().splitlines() == [f"forecache {fc.__version__}".encode(), b"Fr?chet"]


def test_a_piped_table_is_not_cut(forecache):
    _, out, _ = forecache("models")
    assert "HunyuanVideoTransformer3DModel" in out


@pytest.mark.parametrize("threshold", ["5", "0"])
def test_sample_says_what_a_plan_decided(forecache, tmp_path, threshold):
    asked = ("--labels", "3", "--steps", "8", "--method", "easycache", "--online-threshold", threshold)
    code, out, err = forecache("sample", *asked, "--out", tmp_path)
    assert (code, err) == (0, "")
    record = json.loads((tmp_path / "run.json").read_text())
    decided, counts = record["decided"], record["stats"]
    assert (set(decided), len(decided)) == ({"#", "."} if threshold == "5" else {"#"}, 8)
    assert counts["computed"] / (counts["computed"] + counts["skipped"]) == decided.count("#") / 8
    assert f"Decided while it ran: {decided.count('#') / 8:.1%} of features computed, {decided}" in out
    assert ("Nothing was skipped: a higher threshold" in out) == (threshold == "0")
