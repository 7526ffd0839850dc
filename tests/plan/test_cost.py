"""Cost: what a plan is said to cost is what a closed formula and torch's own counter find."""

import copy

import pytest
import torch
from support.costs import ATTENTION, CALL, EMBEDDERS, MLP, SKIPPED, D, L, N, meta_dit
from support.small import generate, labels, noise, small_pixart
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import forecache as fc


@pytest.fixture(scope="module")
def xl():
    return meta_dit(L)


@pytest.fixture(scope="module")
def short():
    """Two blocks of it."""
    return meta_dit(2)


def plan(model, method, num_steps=20):
    return method.plan(fc.grid(model, num_steps))


def test_one_call_of_dit_xl_costs_what_the_formula_says(xl):
    cost = plan(xl, fc.fora(1), 1).cost(xl)
    assert cost.macs == cost.macs_uncached == 2 * CALL
    assert cost.macs == pytest.approx(0.2374e12, rel=1e-3)
    assert (cost.speedup, cost.cache_bytes) == (1.0, 0)


def test_fora_50_percent_of_dit_xl_is_nearly_twice_as_fast(xl):
    cost = plan(xl, fc.methods.fora_paper(50)).cost(xl)
    assert cost.step_macs == (2 * CALL, SKIPPED) * 10
    assert cost.macs == 10 * (2 * CALL + SKIPPED)
    assert cost.macs_uncached == 20 * 2 * CALL
    assert cost.speedup == pytest.approx(4 * CALL / (2 * CALL + SKIPPED))
    assert 1.98 < cost.speedup < 2


def test_a_block_with_a_computed_branch_makes_its_whole_modulation(xl):
    """Of every block the attention is skipped in step 1, and in the first two the MLP as well."""
    at, kind, depth, every = (
        fc.parts.schedules.at,
        fc.parts.schedules.kind,
        fc.parts.schedules.depth,
        fc.parts.schedules.every,
    )
    schedule = at(kind("attn"), every(2), at(depth(0, 2), every(2), every(1)))
    cost = plan(xl, fc.Method("mixed", schedule), 2).cost(xl)
    assert cost.step_macs == (2 * CALL, 2 * (CALL - L * ATTENTION - 2 * (MLP + 4 * D * D)) - 2 * EMBEDDERS)


@pytest.mark.parametrize(
    ("method", "kept"), [(fc.fora(2), 1), (fc.goc(fc.fora(2), 1.0), 1), (fc.taylorseer(fc.fora(3), 2), 3)]
)
def test_the_cache_is_so_many_features_a_branch(short, method, kept):
    branches, feature = 2 * 2, N * D * 4  # float32
    assert plan(short, method).cost(short, batch_size=3).cache_bytes == kept * branches * 2 * 3 * feature
    assert plan(short, method).cost(short, guidance=False).cache_bytes == kept * branches * feature


def test_a_model_in_bfloat16_has_half_the_cache(short):
    half = copy.deepcopy(short).to(torch.bfloat16)
    full, halved = (plan(model, fc.fora(2)).cost(model) for model in (short, half))
    assert halved.cache_bytes * 2 == full.cache_bytes > 0
    assert halved.macs == full.macs


def test_cost_grows_with_the_batch(short):
    made = plan(short, fc.fora(2))
    pair = made.cost(short).macs
    shared = 10 * 2 * EMBEDDERS  # the timestep of ten skipped steps, in two blocks: once a call, not once a sample
    assert made.cost(short, batch_size=4).macs == 4 * pair - 3 * shared
    assert made.cost(short, batch_size=2, guidance=False).macs == pair


def test_fora_25_percent_holds_nothing_after_step_9(short):
    held = plan(short, fc.methods.fora_paper(25)).cost(short).step_cache_bytes
    assert all(held[:10])
    assert held[10:] == (0,) * 10


def test_cost_reads_as_a_sentence():
    cost = fc.Cost(3 * 10**12, 6 * 10**12, 5 * 2**20, (), ())
    assert str(cost) == "3 T MACs of 6 T uncached (2.00x fewer), 5.0 MiB of cache at the peak"


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1])
def test_a_partial_cross_attention_costs_what_the_formula_says(share):
    """Queries, scores, values and projection of the chosen tokens; if there are any, keys and values of the text."""
    blocks, rows, tokens, text, width = 2, 2, 16, 5, 16
    model = small_pixart(blocks)
    call = {
        "hidden_states": torch.zeros(rows, 4, 8, 8),
        "encoder_hidden_states": torch.zeros(rows, text, 12),
        "timestep": torch.zeros(rows),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    chosen = fc.parts.tokens.top(share, "random")
    made = fc.selective(fc.fora(2), 0, tokens=chosen, every=1, kinds=("cross",)).plan(fc.grid(model, 2))
    skipped = fc.fora(2).plan(fc.grid(model, 2)).cost(model, inputs=call).step_macs[1]
    count = int(share * tokens)
    cross = count * (2 * width**2 + 2 * text * width) + (2 * text * width**2 if count else 0)
    assert made.cost(model, inputs=call).step_macs[1] == skipped + blocks * rows * cross


# ---- against a real run ---------------------------------------------------------------------------------------------

METHODS = {
    "all computed": fc.fora(1),
    "fora": fc.fora(2),
    "fora 3, end": fc.fora(3, anchor="end"),
    "fora 25 %": fc.methods.fora_paper(25),
    "goc": fc.goc(fc.fora(2), 0.8),
    "goc computed": fc.goc(fc.fora(3), 0.8, history="computed"),
    "taylor 2": fc.taylorseer(fc.fora(3), 2),
    "attention alone": fc.Method(
        "attn",
        fc.parts.schedules.at(
            fc.parts.schedules.kind("attn"), fc.parts.schedules.every(2), fc.parts.schedules.every(1)
        ),
    ),
    "by depth": fc.taylorseer(
        fc.Method(
            "depth",
            fc.parts.schedules.at(
                fc.parts.schedules.depth(1, 3), fc.parts.schedules.every(4), fc.parts.schedules.every(3)
            ),
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_real_run_counts_the_macs_and_holds_the_bytes_that_were_said(dit, name):
    made = plan(dit, METHODS[name])
    cost = made.cost(dit, batch_size=2)
    with sdpa_kernel(SDPBackend.MATH), fc.apply(dit, made) as session, FlopCounterMode(display=False) as counter:
        generate(dit, 20, count=2)
    assert counter.get_total_flops() == 2 * cost.macs
    assert session.stats.peak_cache_bytes == cost.cache_bytes == max(cost.step_cache_bytes)


def test_a_real_run_without_a_plan_counts_the_macs_uncached(dit):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        generate(dit, 20, count=2)
    assert counter.get_total_flops() == 2 * plan(dit, fc.fora(2)).cost(dit, batch_size=2).macs_uncached


def test_a_pipeline_is_costed_by_its_transformer(pipe):
    made = plan(pipe, fc.fora(2))
    assert made.cost(pipe) == made.cost(pipe.transformer)


# ---- what cost leaves alone, and what it needs ----------------------------------------------------------------------


def test_cost_leaves_the_model_as_it_was(dit):
    dit.train()
    before = {name: dict(vars(module)) for name, module in dit.named_modules()}
    state = {name: tensor.clone() for name, tensor in dit.state_dict().items()}
    plan(dit, fc.fora(2)).cost(dit)
    assert {name: dict(vars(module)) for name, module in dit.named_modules()} == before
    assert dit.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in dit.state_dict().items())


def test_cost_works_in_the_middle_of_a_session(dit, facebook):
    made = plan(dit, fc.fora(2), 4)
    outside = made.cost(dit)
    alone = generate(dit, 4)
    with fc.apply(dit, plan(dit, fc.fora(1), 4)) as session:
        assert made.cost(dit) == outside
        assert torch.equal(generate(dit, 4), alone)
        assert made.cost(dit) == outside
    assert session.stats.calls == 4
    inputs = (noise(), torch.ones(2), labels(1))
    made = plan(facebook, fc.fora(2), 4)
    outside = made.cost(facebook, inputs=inputs)
    with fc.apply(facebook, made):
        assert made.cost(facebook, inputs=inputs) == outside


def test_a_model_without_a_family_is_costed_by_the_inputs_of_a_call(facebook):
    made = plan(facebook, fc.fora(2), 4)
    x, t, y = torch.cat([noise()] * 2), torch.full((4,), 500), labels()
    by_position = made.cost(facebook, inputs=(x, t, y))
    assert by_position == made.cost(facebook, inputs={"x": x, "t": t, "y": y})
    assert by_position == made.cost(facebook, inputs=(x.to("meta"), t, y))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), fc.apply(facebook, made) as session, counter:
        for time in (900, 600, 300, 1):
            facebook(x, torch.full((4,), time), y)
    assert counter.get_total_flops() == 2 * by_position.macs
    assert session.stats.peak_cache_bytes == by_position.cache_bytes


def test_a_model_without_a_family_and_without_inputs_is_refused(facebook):
    with pytest.raises(fc.errors.InputError, match=r"the arguments of DiT: pass the arguments.*cost\(model, inputs="):
        plan(facebook, fc.fora(2), 4).cost(facebook)


def test_the_cost_of_a_plan_for_another_model_is_refused(dit, xl):
    with pytest.raises(fc.errors.PlanMismatchError, match=r"6 sites.*DiTTransformer2DModel has 56 .*make a plan"):
        plan(dit, fc.fora(2)).cost(xl)
