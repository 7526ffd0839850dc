"""Plans that are corrected in hindsight: what they look back at, files, ingredients, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from support.statistics import GRID as MEASURED
from support.statistics import measured

import forecache as fc
from forecache.errors import PlanError, PlanFileError
from forecache.methods import build
from forecache.parts.grid import Grid, Site
from forecache.plan.looks import Columns

SITES = tuple(Site(f"blocks.{number}.{kind}", number, kind) for number in range(2) for kind in ("attn", "mlp"))
GRID = Grid(10, SITES)


def test_the_estimate_of_a_computed_step_is_that_of_a_longer_gap():
    base, longer = (
        fc.taylorseer(fc.explicit(pattern="##..#.#..."), 1),
        fc.taylorseer(fc.explicit(pattern="##....#..."), 1),
    )
    plan = fc.hindsight(base, 0.5).plan(GRID)
    assert plan.rows == base.plan(GRID).rows
    assert [look.step for look in plan.looks] == [4, 6]
    assert plan.looks[0].cells == tuple(row[4] for row in longer.plan(GRID).rows)
    assert plan.looks[0].shares == (
        (2, pytest.approx(0.5 * 2 * 1 / (4 * 3))),
        (3, pytest.approx(0.5 * 3 * 2 / (4 * 3))),
    )
    assert fc.hindsight(fc.fora(2), 0.5).plan(GRID).looks[1].shares == ((3, 0.25),)


def test_nothing_is_looked_at_where_nothing_is_paid_back():
    base = fc.fora(3)
    assert replace(fc.hindsight(base, 0).plan(GRID), provenance={}) == replace(base.plan(GRID), provenance={})
    plan = fc.hindsight(base, thetas=[0, 0.5, 0]).plan(GRID)
    assert [look.step for look in plan.looks] == [6]
    with pytest.raises(PlanError, match="has 3 gaps with a computed step after them, which are at the steps"):
        fc.hindsight(base, thetas=[0.5]).plan(GRID)


def test_a_file_gives_back_the_plan(tmp_path):
    plan = fc.hindsight(fc.goc(fc.fora(3), 0.8), 0.5, thetas=[0.5, 0.25, 1]).plan(GRID)
    plan.save(tmp_path / "plan.json")
    loaded = fc.Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.recipe == plan.recipe == {**plan.recipe, "method": "hindsight", "thetas": [0.5, 0.25, 1.0]}
    assert build(plan.recipe).plan(GRID) == plan
    document = json.loads((tmp_path / "plan.json").read_text())
    for change in (
        {"step": 1}, {"step": "3"}, {"shares": [[1, 0.5]]}, {"shares": [[1, "a"], [2, 0.1]]}, {"shares": []},
        {"cells": []}, {"cells": [{"sites": [0], "cell": "#"}]}, {"more": 1},
    ):  # fmt: skip
        broken = document | {"looks": [document["looks"][0] | change]}
        (tmp_path / "broken.json").write_text(json.dumps(broken))
        with pytest.raises(PlanFileError):
            fc.Plan.load(tmp_path / "broken.json")


def test_what_does_not_go_together_is_refused():
    with pytest.raises(PlanError, match="does not compute all sites at the same steps"):
        fc.hindsight(fc.easycache(0.1)).plan(GRID)
    by_site = replace(fc.fora(2), schedule=lambda step, site, grid: fc.fora(2 + site.depth).schedule(step, site, grid))
    with pytest.raises(PlanError, match="does not compute all sites at the same steps"):
        fc.hindsight(by_site).plan(GRID)
    with pytest.raises(PlanError, match="follows a skipped one"):
        fc.hindsight(fc.explicit(pattern="##........")).plan(GRID)
    with pytest.raises(PlanError, match="already"):
        fc.hindsight(fc.hindsight(fc.fora(2)))
    plan = fc.hindsight(fc.fora(2)).plan(GRID)
    with pytest.raises(PlanError, match="has to be computed"):
        replace(plan, looks=(replace(plan.looks[0], step=3),))
    with pytest.raises(PlanError, match="for the skipped steps just before it"):
        replace(plan, looks=(replace(plan.looks[0], shares=((0, 0.5), (1, 0.5))),))
    for what in ("steps", "cache-dit"):
        from forecache.plan.export import exported

        with pytest.raises(PlanError, match="which no other engine does: make"):
            exported(plan, what)


def test_another_length_is_planned_anew_and_a_part_is_refused():
    from forecache.methods.replan import part_of, resampled

    plan = fc.hindsight(fc.fora(2), 0.5).plan(GRID)
    assert resampled(plan, 20).looks == fc.hindsight(fc.fora(2), 0.5).plan(replace(GRID, num_steps=20)).looks
    with pytest.raises(PlanError, match="made in parts: make"):
        part_of(plan, range(4))
    with pytest.raises(PlanError, match="is for 10 steps and not for 20"):
        resampled(plan.with_recipe(None), 20)


def test_a_correction_is_looked_at_as_well(tmp_path):
    """EOC's shift at the computed step is theta times what the forecast misses on the averages."""
    stats = measured()
    base = fc.eoc(fc.explicit(pattern="#.#.#."), stats, 0.7, form="additive", judge="all")
    plan = fc.hindsight(base, 0.5).plan(MEASURED)
    assert plan.rows == base.plan(MEASURED).rows
    for look in plan.looks:
        for site, cell in zip(MEASURED.sites, look.cells, strict=True):
            expected = 0.7 * (stats.mean(look.step, site) - stats.mean(look.step - 2, site))
            assert torch.allclose(plan.constants[cell.shift], expected, atol=1e-6)
    plan.save(tmp_path / "plan.json")
    assert fc.Plan.load(tmp_path / "plan.json") == plan


def test_columns():
    plan = fc.hindsight(fc.fora(4), 0.5).plan(GRID)
    columns = Columns.of(10, plan.looks)
    assert columns.steps == (0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9)
    assert columns.looks == {4, 9}
    assert columns.merged(list(range(12)), sum) == (0, 1, 2, 3, 9, 6, 7, 8, 19, 11)
    assert columns.with_outputs([0] * 12, 5) == [0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 5, 0]
