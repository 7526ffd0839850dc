"""The recipes of the package are those that the committed measurements give."""

import importlib
import json
import sys
from pathlib import Path

import pytest

import forecache as fc
from forecache.methods import recommended as shipped

ROOT = Path(__file__).parents[2]
RESULT = json.loads((ROOT / "benchmarks/results/recipes.json").read_text())


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("recommended", "recipes", "common"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("recommended")


def test_the_file_of_the_package_is_what_the_script_derives(script):
    assert json.loads(shipped.PATH.read_text()) == shipped.DOCUMENT.wrap(script.derived(RESULT))


def test_each_recipe_has_the_smallest_worst_loss_of_all_that_were_measured():
    """The rule by itself, from the rows of the result; what is below plain reuse in a setting is none of them."""
    for level in (level for length in shipped.classes() for level in length):
        speedup = f"{level.speedup:g}"
        tables = [
            {(base, name): row[0] for base, rows in setting["rows"][speedup].items() for name, row in rows.items()}
            for name, setting in RESULT["settings"].items()
            if int(name.split("-")[-1]) in level.steps
        ]
        assert level.settings == len(tables) > 1
        safe = [key for key in tables[0] if all(table[key] >= table["even", "reuse"] for table in tables)]
        worst = {key: max(max(table.values()) - table[key] for table in tables) for key in safe}
        best = min(worst, key=worst.get)
        assert worst[best] == pytest.approx(level.worst_loss, abs=0.006)
        gains = [table[best] - table["even", "reuse"] for table in tables]
        assert sum(gains) / len(gains) == pytest.approx(level.gain, abs=0.006)
        assert min(gains) == pytest.approx(level.worst_gain, abs=0.006)
        assert level.worst_gain >= 0


def test_both_models_are_on_record_in_every_length_class(script):
    assert [length[0].steps for length in shipped.classes()] == list(script.CLASSES)
    for steps in script.CLASSES:
        names = script.settings_of(RESULT, steps)
        assert {name.rsplit("-", 2)[0] for name in names} == {"digits", "digits-text"}
    assert sum(length[0].settings for length in shipped.classes()) == len(RESULT["settings"])


@pytest.mark.parametrize(
    ("calls", "steps"), [(1, 8), (6, 8), (9, 8), (10, 12), (15, 12), (16, 20), (28, 20), (100, 20)]
)
def test_a_run_takes_the_recipes_of_the_nearest_measured_length(calls, steps):
    assert steps in shipped.entry(2.0, calls).steps
    assert shipped.method(2.0, calls).name == shipped.entry(2.0, calls).method(2.0).name


@pytest.mark.parametrize("steps", [8, 12, 20, 28, 50])
@pytest.mark.parametrize("speedup", [1.3, 1.7, 2, 2.5, 3.3, 5])
def test_a_recipe_has_a_plan_of_the_asked_share_for_any_number_of_steps(speedup, steps):
    sites = tuple(
        fc.parts.Site(f"blocks.{block}.{kind}", block, kind) for block in range(2) for kind in ("attn", "mlp")
    )
    plan = shipped.method(speedup, steps).plan(fc.Grid(steps, sites))
    (row,) = set(plan.rows)
    computed = [step for step, cell in enumerate(row) if cell.computed]
    assert len(computed) == -(-steps * 10 // round(speedup * 10))  # rounded up
    assert computed[0] == 0
    gaps = [later - earlier for earlier, later in zip(computed, [*computed[1:], steps], strict=True)]
    assert max(gaps) <= 2.2 * speedup + 1
    weights = [sum(weight for _, weight in cell.reads) for cell in row if not cell.computed]
    assert all(abs(total - 1) < 1e-9 for total in weights)


def test_a_damaged_table_is_refused_with_its_name(monkeypatch, tmp_path):
    path = tmp_path / "recommended.json"
    document = json.loads(shipped.PATH.read_text())
    length = document["classes"][0]
    for change in (
        {"version": 9},
        {"classes": [{**length, "levels": [{"speedup": 2.0}]}]},
        {"classes": [{**length, "levels": [{**length["levels"][0], "gain": "2"}]}]},
        {"classes": [{**length, "steps": []}]},
    ):
        path.write_text(json.dumps(document | change))
        monkeypatch.setattr(shipped, "PATH", path)
        shipped.classes.cache_clear()
        with pytest.raises(fc.errors.PlanFileError, match=r"recommended.json is not a readable table"):
            shipped.classes()
    shipped.classes.cache_clear()
