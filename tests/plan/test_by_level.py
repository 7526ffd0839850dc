"""A method at every level: bytes and MACs by hand from the shapes of a DiT, and a reason where there are none."""

import pytest
import torch
from diffusers import DiTTransformer2DModel

import forecache as fc
from forecache.plan.by_level import costs_by_level, plan_within

STEPS, BLOCKS, WIDTH, TOKENS, BATCH = 6, 8, 16, 16, 2


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        return DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=BLOCKS, sample_size=8,
            patch_size=2, num_embeds_ada_norm=10, norm_num_groups=4,
        )  # fmt: skip


def rows(method, model):
    return {
        row.level: row for row in costs_by_level(lambda _: method, model, STEPS, lambda plan: plan.cost(model, BATCH))
    }


@pytest.mark.parametrize("order", [0, 1])
def test_bytes_are_one_tensor_a_site_and_order(model, order):
    method = fc.fora(interval=3) if order == 0 else fc.taylorseer(fc.fora(interval=3), order=order)
    found = rows(method, model)
    feature = 2 * BATCH * TOKENS * WIDTH * 4  # a guidance pair, in float32
    sites = {"branches": 2 * BLOCKS, "blocks": BLOCKS, "groups": 4, "stack": 1}
    assert {name: row.sites for name, row in found.items()} == sites
    assert found["groups"].group == 2
    for name, row in found.items():
        assert row.cache_bytes == sites[name] * feature * (order + 1), name


def test_a_skipped_step_costs_less_the_coarser_the_level_and_a_full_one_the_same(model):
    found = rows(fc.fora(interval=3), model)
    steps = [found[name].cheapest_step_macs for name in ("branches", "blocks", "groups", "stack")]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] < found["stack"].full_step_macs
    assert len({row.full_step_macs for row in found.values()}) == 1
    for row in found.values():
        assert row.macs == 2 * row.full_step_macs + 4 * row.cheapest_step_macs


def test_a_method_that_has_not_a_level_says_why(model):
    found = rows(fc.procache(fc.fora(3)), model)
    assert found["branches"].reason is None
    assert found["stack"].reason
    assert found["stack"].cache_bytes is None


@pytest.mark.parametrize(
    ("tensors", "sites", "says"),
    [
        (16, 16, "level finest"),
        (15, 8, "level blocks (8 sites) keeps 0.03 MiB of the 0.06 MiB allowed, where level finest (16 sites) would"),
        (7, 4, "level groups of 2"),
        (3, 2, "level groups of 4"),
        (1, 1, "level stack (1 site)"),
    ],
)
def test_the_finest_level_that_fits_is_taken_and_said(model, tensors, sites, says, tmp_path):
    """FORA keeps one tensor a site; a budget in these tensors."""
    feature = 2 * BATCH * TOKENS * WIDTH * 4
    how = {"cost": lambda plan: plan.cost(model, BATCH)}
    plan = plan_within(fc.fora(interval=3), model, STEPS, tensors * feature, **how)
    assert len(plan.grid.sites) == sites
    assert plan.cost(model, BATCH).cache_bytes <= tensors * feature
    assert says in plan.provenance["level"]
    plan.save(tmp_path / "plan.json")
    assert fc.Plan.load(tmp_path / "plan.json") == plan
    with pytest.raises(
        fc.errors.CacheBudgetError, match=rf"the least is 0.01 MiB \({2 * feature:,} bytes\) with .*stack"
    ):
        plan_within(fc.taylorseer(fc.fora(3), 1), model, STEPS, 2 * feature - 1, **how)


def test_a_method_without_a_plan_at_any_level_says_why(model):
    with pytest.raises(fc.errors.PlanError, match="before it was ever computed"):
        plan_within(lambda _: fc.explicit(compute=[1, 2]), model, STEPS, 10**9)
    with pytest.raises(fc.errors.PlanError, match="whole number of bytes"):
        plan_within(fc.fora(2), model, STEPS, -1)
