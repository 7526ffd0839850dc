"""docs/extending.md: every file on the page is saved and tested, and its forecast works wherever a method is named."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.small import generate

import forecache as fc
from forecache.compare.selection import Selection
from forecache.methods import registry
from forecache.reproduce import open_table

PAGE = Path(__file__).parent.parent.parent / "docs" / "extending.md"
SOURCE = Path(fc.__file__).parent.parent
ENTRY_POINT = "[forecache.methods]\ndamped = damped\n"
TABLE = """
format = "forecache-table"
version = 1
title = "Damped lines"
paper = "2503.06923"
model = "digits"
sampler = "DDIM"
steps = 20
guidance = 1.5
samples = 10
batch = 10
conditions = "classes in turn"
metrics = ["psnr"]

[[rows]]
name = "no cache"

[[rows]]
name = "damped"
plan = { method = "damped", damping = 0.7, base = { method = "fora", interval = 2 } }
"""


def files():
    """Name -> text of every file on the page."""
    text = PAGE.read_text(encoding="utf-8")
    return dict(re.findall(r'^```python title="([^"]+)"\n(.*?)^```', text, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the page side by side, as a package that names its method as an entry point."""
    folder = tmp_path_factory.mktemp("extending")
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")
    installed = folder / "damped-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: damped\nVersion: 1.0\n", encoding="utf-8")
    (installed / "entry_points.txt").write_text(ENTRY_POINT, encoding="utf-8")
    return folder


def python(folder, *words):
    """A fresh interpreter that finds the files, (exit code, stdout, stderr)."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), str(folder)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def damped(folder, monkeypatch):
    """The method of the page, registered for one test."""
    monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module("damped")
    yield module
    registry.unregister("damped")
    del sys.modules["damped"]


def test_every_part_has_a_file_and_its_test():
    names = list(files())
    assert len(names) == 14
    assert all(f"test_{name}" in names for name in names if not name.startswith("test_"))


@pytest.mark.slow
def test_the_tests_of_the_page_pass(folder):
    code, out, err = python(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder))
    assert code == 0, out + err


def test_the_files_are_as_short_as_the_page_says():
    lines = {name: len([line for line in text.splitlines() if line.strip()]) for name, text in files().items()}
    said = dict(re.findall(r"^\| \[[^\]]+\]\(#an?-([a-z-]+)\) \|[^|]+\| (\d+) lines", PAGE.read_text(), re.MULTILINE))
    of = {"forecast": "damped", "schedule": "dense_ends", "gate": "first_part", "importance": "spread",
          "model-family": "mixer", "metric": "sharpness", "command": "density"}  # fmt: skip
    assert said.keys() == of.keys()
    for part, name in of.items():
        assert lines[f"{name}.py"] <= int(said[part]), (name, lines[f"{name}.py"])


@pytest.mark.slow
def test_the_forecast_is_on_the_command_line(folder, tmp_path):
    out = tmp_path / "plan.json"
    words = ["plan", "damped", "--damping", "0.7", "--interval", "2", "--steps", "6", "-o", str(out), "--json"]
    code, stdout, err = python(folder, "-m", "forecache", *words)
    assert code == 0, err
    assert json.loads(stdout)["picture"] == "#.#~#~"
    recipe = json.loads(out.read_text(encoding="utf-8"))["recipe"]
    assert recipe["method"] == "damped"
    assert recipe["damping"] == 0.7


def test_the_forecast_is_in_tables(damped, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TABLE, encoding="utf-8")
    table = open_table(str(path))
    assert [row.name for row in table.rows] == ["no cache", "damped"]


def test_the_forecast_is_on_the_page(damped):
    selection = Selection(correction="damped", values={"interval": 3, "damping": 0.7})
    assert selection.method().name == "damped(fora(interval=3), damping=0.7)"


def test_the_forecast_is_tuned_with(damped, pipe, short_tuning):
    tuned = fc.tune(
        pipe, [1], num_steps=5, budget=0.6, number=2, forecasts=["damped 0.8"], correcting=False, refining=False
    )
    assert all(trial.forecast.rule == "damped" for trial in tuned.trials)


def test_the_forecast_compiles(damped, dit):
    plan = damped.damped(fc.fora(2), 0.7).plan(fc.grid(dit, 6))
    with fc.apply(dit, plan):
        eager = generate(dit, 6)
    compiled = torch.compile(dit, backend="eager", fullgraph=True)
    with fc.apply(compiled, plan):
        torch.testing.assert_close(generate(compiled, 6), eager, rtol=1e-5, atol=1e-5)


def test_a_plan_of_the_forecast_is_planned_anew_for_another_length(damped, dit):
    method = damped.damped(fc.fora(2), 0.7)
    plan = method.plan(fc.grid(dit, 6))
    assert fc.methods.resampled(plan, 9).rows == method.plan(fc.grid(dit, 9)).rows
