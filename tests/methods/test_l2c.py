"""l2c: plans of routers; the published one gives the table of its paper."""

import pytest
import torch
from support.costs import ATTENTION, CALL, EMBEDDERS, MLP, D, L, meta_dit
from support.routers import PUBLISHED, published
from support.small import generate

import forecache as fc
from forecache.methods.ingredients import digest

SITES = tuple(fc.parts.Site(f"blocks.{i}.{kind}", i, kind) for i in range(2) for kind in ("attn", "mlp"))
LOGITS = torch.tensor([[0.0, 0, 0, 0], [-5, -4, -3, 1], [0, 0, 0, 0], [-5, 2, 3, 4]])
ROUTER = fc.Router(LOGITS, tuple(site.name for site in SITES), (1, 3))


def rows(method, grid):
    """{site name: line of signs} of a plan."""
    plan = method.plan(grid)
    return {site.name: "".join(cell.sign for cell in row) for site, row in zip(plan.grid.sites, plan.rows, strict=True)}


def test_a_router_draws_as():
    assert rows(fc.l2c(ROUTER), fc.Grid(4, SITES)) == {
        "blocks.0.attn": "#.#.",
        "blocks.0.mlp": "#.##",
        "blocks.1.attn": "#.##",
        "blocks.1.mlp": "####",
    }
    assert rows(fc.l2c(ROUTER, 0.8), fc.Grid(4, SITES))["blocks.1.mlp"] == "#.##"


def test_a_skipped_cell_reads_the_call_before():
    plan = fc.l2c(ROUTER).plan(fc.Grid(4, SITES))
    assert [cell.reads for cell in plan.rows[0]] == [(), ((0, 1.0),), (), ((2, 1.0),)]


def test_a_plan_remembers_the_router(tmp_path):
    ROUTER.save(tmp_path / "router.safetensors")
    grid = fc.Grid(4, SITES)
    assert fc.l2c(tmp_path / "router.safetensors").plan(grid).provenance["method"] == (
        "l2c(router='router.safetensors', threshold=0.1)"
    )
    assert fc.l2c(ROUTER, 0.25).plan(grid).provenance["method"] == f"l2c(router={digest(ROUTER)[:8]!r}, threshold=0.25)"


def test_a_path_of_either_form_gives_the_same_plan(tmp_path):
    torch.save(published(), tmp_path / "router.pt")
    fc.Router.from_published(tmp_path / "router.pt").save(tmp_path / "router.safetensors")
    grid = fc.Grid(4, SITES)
    plans = [fc.l2c(str(tmp_path / name)).plan(grid) for name in ("router.pt", "router.safetensors")]
    assert plans[0].rows == plans[1].rows


def test_goc_corrects_a_router_where_whole_blocks_are_skipped():
    """The second time that a block reuses both branches is corrected; a branch that is skipped alone is reused."""
    logits = torch.tensor([[0.0, 0, 0, 0], [-5, -5, -5, -5], [0, 0, 0, 0], [-5, -5, -5, 4]])
    router = fc.Router(logits, ROUTER.sites, ROUTER.skippable)
    plan = fc.goc(fc.l2c(router), 1.0).plan(fc.Grid(4, SITES))
    assert plan.provenance["method"] == f"goc(l2c(router={digest(router)[:8]!r}, threshold=0.1), eta=1)"
    assert [dict(row[3].reads) for row in plan.rows] == [{2: 2, 0: -1}, {2: 2, 0: -1}, {2: 1}, {}]


def test_sites_of_other_kinds_are_always_computed():
    cross = tuple(fc.parts.Site(f"blocks.{i}.cross", i, "cross") for i in range(2))
    drawn = rows(fc.l2c(ROUTER), fc.Grid(4, tuple(sorted(SITES + cross))))
    assert drawn["blocks.0.cross"] == drawn["blocks.1.cross"] == "####"
    assert drawn["blocks.0.attn"] == "#.#."


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (fc.Grid(5, SITES), "trained for 4 steps, the run has 5: sample with 4 steps, or train a router for 5"),
        (fc.Grid(4, SITES[:2]), r"trained for 4 sites \(blocks\.0\.attn to blocks\.1\.mlp\), the grid has 2"),
        (
            fc.Grid(4, (*SITES, fc.parts.Site("blocks.2.attn", 2, "attn"))),
            "the grid has 5 .* train a router for this one",
        ),
    ],
)
def test_a_run_of_other_steps_or_blocks_is_refused(grid, words):
    with pytest.raises(fc.errors.PlanError, match=words):
        fc.l2c(ROUTER).plan(grid)


def test_a_threshold_that_is_no_probability_is_refused():
    with pytest.raises(fc.errors.PlanError, match="a probability from 0 to below 1; 2 was asked for"):
        fc.l2c(ROUTER, 2)


def test_a_router_runs_on_both_layouts_of_a_dit(dit, facebook):
    """A published router fits diffusers' DiT and the layout it was trained in."""
    for model in (dit, facebook):
        grid = fc.grid(model, 4)
        logits = torch.zeros(4, 6)
        logits[1] = -5
        plan = fc.l2c(fc.Router(logits, tuple(site.name for site in grid.sites), (1, 3))).plan(grid)
        assert plan.picture() == "#.##"
    with fc.apply(dit, fc.l2c(fc.Router(logits, tuple(s.name for s in grid.sites), (1,))).plan(fc.grid(dit, 4))) as s:
        generate(dit, 4)
    assert (s.stats.computed, s.stats.skipped) == (18, 6)


# ---- the published router of DiT-XL/2, DDIM-20 ----------------------------------------------------------------------

ATTENTIONS = (28, 28, 26, 25, 11, 2, 1, 1, 1, 0)
MLPS = (28, 28, 26, 23, 19, 1, 0, 0, 0, 0)
"""Modules skipped by calls 1, 3, ..., 19."""

needs_the_file = pytest.mark.skipif(
    not PUBLISHED.exists(), reason=f"the published router is not at {PUBLISHED}; it is not part of the project"
)


@needs_the_file
def test_the_published_router_skips_what_its_paper_says():
    router = fc.Router.from_published(PUBLISHED)
    counts = router.skipped_by_kind(0.1)
    assert counts["attn"][1::2] == ATTENTIONS
    assert counts["mlp"][1::2] == MLPS
    assert not any(counts["attn"][::2] + counts["mlp"][::2])
    assert (sum(ATTENTIONS), sum(MLPS)) == (123, 125)
    assert router.level() == 248 / 1120


@needs_the_file
def test_the_published_router_on_dit_xl_costs_what_the_formula_says():
    model = meta_dit(L)
    plan = fc.l2c(PUBLISHED).plan(fc.grid(model, 20))
    attentions, mlps = fc.Router.from_published(PUBLISHED).skips(0.1).unflatten(1, (-1, 2)).unbind(2)
    blocks = (attentions & mlps).sum(1)  # skipped as a whole: the two gates alone, and one timestep for both samples
    saved = 123 * ATTENTION + 125 * MLP + int(blocks.sum()) * (4 * D * D + EMBEDDERS // 2)
    cost = plan.cost(model)
    assert blocks[1] == 28
    assert cost.macs == 2 * (20 * CALL - saved)
    assert cost.speedup == pytest.approx(1.2821, abs=0.005)  # the papers' figure for 22 %
    assert plan.computed_share == 1 - 248 / 1120
    for call, (attention, mlp) in enumerate(zip(ATTENTIONS, MLPS, strict=True)):
        gates = int(blocks[2 * call + 1]) * (4 * D * D + EMBEDDERS // 2)
        assert cost.step_macs[2 * call + 1] == 2 * (CALL - attention * ATTENTION - mlp * MLP - gates)


@needs_the_file
def test_the_published_router_is_refused_by_other_runs():
    model = meta_dit(2)
    with pytest.raises(fc.errors.PlanError, match=r"56 sites \(blocks\.0\.attn to blocks\.27\.mlp\), the grid has 4"):
        fc.l2c(PUBLISHED).plan(fc.grid(model, 20))
    with pytest.raises(fc.errors.PlanError, match="20 steps, the run has 50"):
        fc.l2c(PUBLISHED).plan(fc.grid(model, 50))
