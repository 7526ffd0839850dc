"""Every script of benchmarks/ starts, and the pages that they write have their markers."""

import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.fixture(autouse=True)
def _modules_of_scripts(monkeypatch):
    """Scripts import one another by name, and leave nothing behind in other tests."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name in SCRIPTS:
            del sys.modules[name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_starts(name, monkeypatch, capsys):
    """With --help, which prints its docstring; a module without a command is imported."""
    path = ROOT / "benchmarks" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    if "__main__" not in path.read_text(encoding="utf-8"):
        runpy.run_path(str(path), run_name="__main__")
        return
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(path), run_name="__main__")
    assert stop.value.code == 0
    assert f"python benchmarks/{name}.py" in capsys.readouterr().out


def test_a_marker_is_in_one_page_once():
    """So that scripts find the page by the marker alone; docs/models.md is filled by another generator."""
    pages = [path for path in (ROOT / "docs").rglob("*.md") if path.name != "models.md"]
    markers = [marker for path in pages for marker in re.findall(r"<!-- /([^>]+) -->", path.read_text("utf-8"))]
    assert "table least" in markers
    assert sorted(set(markers)) == sorted(markers)


def test_text_between_markers_is_replaced(tmp_path):
    common = importlib.import_module("common")
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- /x -->\nb\n")
    common.fill(page, "x", ["new", r"\1"])
    assert page.read_text() == "a\n<!-- x -->\nnew\n\\1\n<!-- /x -->\nb\n"
    with pytest.raises(SystemExit, match="needs the markers <!-- y -->"):
        common.fill(page, "y", [])
    with pytest.raises(SystemExit, match="0 have"):
        common.page_with("no such marker")
    assert common.page_with("table least").name == "speed.md"
    assert common.picture("table least", "a.png", "A") == "![A](../images/a.png)"
