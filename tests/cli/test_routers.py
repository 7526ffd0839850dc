"""`import-router` and `train-router` as a user runs them."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.documents import blocks
from support.routers import PUBLISHED, checkpoint, published

import forecache as fc

PAGE = Path(__file__).parent.parent.parent / "docs/methods/l2c.md"
TINY = ["--steps", 4, "--batch", 1, "--iterations", 2, "--lr", 0.5]


def test_import_router_prints_what_is_skipped_and_writes_it(forecache, tmp_path):
    torch.save(published(blocks=3), tmp_path / "in.pt")
    code, out, err = forecache("import-router", tmp_path / "in.pt", "--out", tmp_path / "deep" / "out.safetensors")
    assert (code, err) == (0, "")
    router = fc.Router.load(tmp_path / "deep" / "out.safetensors")
    assert router == fc.Router.from_published(tmp_path / "in.pt")
    counts = router.skipped_by_kind()
    for call in (1, 3):
        attn, mlp = counts["attn"][call], counts["mlp"][call]
        assert re.search(rf"^ +{call} +{attn} +{mlp} +{attn + mlp} *$", out, re.MULTILINE)
    total = sum(map(sum, counts.values()))
    assert f"{total} of 24 cells are skipped at threshold 0.1: caching level {total / 24:.2%}" in out


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"the published router is not at {PUBLISHED}")
def test_the_documented_import_prints_what_the_page_shows(forecache, tmp_path, monkeypatch):
    """The page shows the published file, which is not part of the project, so its command is not in an `sh` block."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ddim20_router.pt").write_bytes(PUBLISHED.read_bytes())
    (console,) = blocks(PAGE, "console")
    command, *expected = console.splitlines()
    code, out, err = forecache(*shlex.split(command.removeprefix("$ forecache ")))
    assert (code, err) == (0, "")
    assert [line.rstrip() for line in out.splitlines()] == [line.rstrip() for line in expected]


def test_train_router_prints_the_picture_and_goes_on(forecache, tmp_path):
    words = ["train-router", "--model", "digits", *TINY, "--out", tmp_path / "router.safetensors"]
    code, out, err = forecache(*words)
    assert (code, err) == (0, "")  # no progress bar where there is no terminal
    router = fc.Router.load(tmp_path / "router.safetensors")
    assert router.show() in out
    assert re.search(r"2 iterations in \d+ s, loss 0\.\d+", out)
    assert router.num_steps == 4
    assert checkpoint(tmp_path / "router.training.safetensors")["iteration"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["router.safetensors", "router.training.safetensors"]
    words[words.index("--iterations") + 1] = 3
    assert forecache(*words)[0] == 0
    longer = fc.Router.load(tmp_path / "router.safetensors")
    assert longer.provenance["iterations"] == "3"
    assert not torch.equal(longer.logits, router.logits)
    code, _, err = forecache(*words, "--lam", 1)
    assert code == 1
    assert "checkpoint of another training: its lam is" in err
    assert err.count("\n") == 1


PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a background job ignores it
    "from forecache.fit import routers; routers.SAVE_SECONDS = 0; from forecache.cli import main; main()"
)


def test_an_interrupted_training_goes_on_as_if_never_stopped(forecache, tmp_path):
    words = ["train-router", "--steps", "2", "--batch", "1", "--lr", "0.5", "--threads", "1", "--out"]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words, tmp_path / "a.safetensors", "--iterations", "9999"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    state = tmp_path / "a.training.safetensors"
    until = time.monotonic() + 60
    while not state.exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in out
    assert b"a.training.safetensors: the same command continues." in out
    assert not (tmp_path / "a.safetensors").exists()
    more = checkpoint(state)["iteration"] + 1
    for name in ("a", "b"):
        assert forecache(*words, tmp_path / f"{name}.safetensors", "--iterations", more)[0] == 0
    resumed, through = (fc.Router.load(tmp_path / f"{name}.safetensors") for name in ("a", "b"))
    assert torch.equal(resumed.logits, through.logits)


FAILURES = {
    "no such file": (["import-router", "nowhere.pt", "--out", "x"], "There is no published router at nowhere.pt"),
    "not a router": (["import-router", __file__, "--out", "x"], "is not a readable published router"),
    "unknown model": (["train-router", "--model", "nowhere"], "no model 'nowhere'"),
    "no learning rate": (["train-router", "--lr", "0"], "lr > 0"),
    "unusable device": (["train-router", "--device", "nonsense"], "device 'nonsense'"),
}


@pytest.mark.parametrize(("words", "sentence"), FAILURES.values(), ids=FAILURES)
def test_bad_input_is_answered_with_a_sentence(forecache, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    code, _, err = forecache(*words)
    assert code == 1
    assert err.startswith("Error: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["import-router", "train-router"])
def test_every_command_explains_itself(forecache, command):
    code, out, _ = forecache(command, "--help")
    assert code == 0
    assert "Usage" in out
    assert "Example" in out


def test_the_list_of_commands_has_them(forecache):
    _, out, _ = forecache("--help")
    assert "import-router" in out
    assert "train-router" in out
