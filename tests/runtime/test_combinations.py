"""What users combine, at every level of sites: the cells of docs/combining.md, each against a FORA written by hand."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
from support.slow import slow_but

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "benchmarks/results/combinations.json").read_text())
CELLS = {(cell["combination"], cell["level"]): cell for cell in RECORD["cells"]}
FAST = ("LoRA, loaded", "blocks"), ("several images a prompt", "stack")


@pytest.fixture(scope="module")
def combined():
    """The module of benchmarks/ with the cases."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("pipelines.combined")
    sys.path.remove(str(ROOT / "benchmarks"))
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "pipelines":
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "level"), slow_but((key for key, cell in CELLS.items() if cell["verdict"] != "untested"), *FAST)
)
def test_a_cell_is_as_the_table_says(combined, name, level):
    verdict, reason = combined.cell(combined.COMBINATIONS[name], level)
    assert verdict in ("works", "refused"), reason
    assert (verdict, reason) == (CELLS[name, level]["verdict"], CELLS[name, level]["reason"])


def test_every_combination_is_in_the_table_at_every_level(combined):
    assert list(CELLS) == [(name, level) for name in combined.COMBINATIONS for level in combined.LEVELS]
    assert {cell["verdict"] for cell in CELLS.values()} <= {"works", "refused", "untested"}
    assert all(cell["reason"] for cell in CELLS.values() if cell["verdict"] != "works")
    page = (ROOT / "docs/combining.md").read_text(encoding="utf-8")
    text = page.partition("<!-- table combinations -->")[2].partition("<!-- /table combinations -->")[0]
    rows = {words[0]: words[2:] for line in text.splitlines() if len(words := re.findall(r"[^|]+", line)) == 5}
    shown = {name.strip(): [word.split()[0] for word in words] for name, words in rows.items()}
    for name in combined.COMBINATIONS:
        assert shown[name] == [CELLS[name, level]["verdict"] for level in combined.LEVELS]


def test_a_cell_that_is_wrong_is_seen(combined, monkeypatch):
    """The checks by themselves: a hand-written FORA of another interval is not what the plan does."""
    monkeypatch.setattr(importlib.import_module("pipelines.reference"), "INTERVAL", 4)
    verdict, reason = combined.cell(combined.COMBINATIONS["nothing"], "stack")
    assert verdict == "WRONG"
    assert "(b)" in reason
    assert "(c)" in reason
