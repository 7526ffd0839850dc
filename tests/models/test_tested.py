"""What was tested of diffusers' transformer classes: every class has a row, and the record is that of the script."""

import json
from pathlib import Path

import pytest

from forecache.models import tested

RESULTS = Path(__file__).parents[2] / "benchmarks/results"


def test_every_transformer_class_has_a_row_and_a_new_one_is_untested(monkeypatch):
    names = tested.classes()
    assert {"DiTTransformer2DModel", "FluxTransformer2DModel", "WanTransformer3DModel"} <= set(names)
    monkeypatch.setattr(tested, "classes", lambda: [*names, "BrandNewTransformer2DModel"])
    rows = {row["class"]: row for row in tested.rows()}
    assert list(rows) == [*names, "BrandNewTransformer2DModel"]
    assert rows["BrandNewTransformer2DModel"] == {
        "class": "BrandNewTransformer2DModel", "level": tested.FOUND, "finest": "untested", "stack": "untested",
    }  # fmt: skip
    assert rows["DiTTransformer2DModel"]["level"] == "branches"
    assert rows["LatteTransformer3DModel"]["level"] == "blocks"
    assert rows["DiTTransformer2DModel"]["stack"] == "right"


def test_the_record_that_ships_is_what_the_script_measured():
    measured = {row["transformer"]: row["verdict"] for row in json.loads((RESULTS / "stacks.json").read_text())["rows"]}
    shipped = json.loads(tested.PATH.read_text())["classes"]
    assert {name: row["stack"] for name, row in shipped.items()} == {
        name: "untested" if verdict == "not built" else verdict for name, verdict in measured.items()
    }
    assert "WRONG" not in measured.values()


@pytest.mark.slow
def test_the_command_lists_them(forecache):
    code, out, _ = forecache("models", "--all", "--json")
    assert code == 0
    assert [row["class"] for row in json.loads(out)] == tested.classes()
