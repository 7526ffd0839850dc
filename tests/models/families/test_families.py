"""Every family of diffusers, as a tiny random model of its real class: the laws, and sampling written out by hand."""

import functools

import pytest
import torch
from support import reference
from support.by_hand import generate_by_hand
from support.slow import slow_but
from support.tiny import BLOCKS, BRANCHES, SHORT, TIMES, TINY
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import forecache as fc
from forecache.models.find import layout
from forecache.runtime.forwards import Forwards

T = len(TIMES)


@functools.cache
def model_of(name):
    return TINY[name].model()


@functools.cache
def bare(name):
    return TINY[name].generate(model_of(name))


def grid(name):
    return fc.grid(model_of(name), T)


def sampled(name, plan, **how):
    with fc.apply(model_of(name), plan) as session:
        found = TINY[name].generate(model_of(name), **how)
    return found, session.stats


def uneven(grid, seed=0):
    """As Learning-to-Cache makes them: at odd steps every site is skipped or not by a coin, at times all of them."""
    draw = torch.Generator().manual_seed(seed)
    coin = torch.rand(grid.num_steps, len(grid.sites), generator=draw) < 0.7
    number = {site.name: index for index, site in enumerate(grid.sites)}

    def schedule(step, site, grid):
        skipped = step % 2 == 1 and (step % 4 == 3 or coin[step, number[site.name]])
        return fc.parts.Action.SKIP if skipped else fc.parts.Action.COMPUTE

    return fc.Method("uneven", schedule).plan(grid)


# ---- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_but(TINY, *SHORT))
def test_everything_computed_is_the_bare_model_and_nothing_is_left_behind(name):
    model = model_of(name)
    keys, own = list(model.state_dict()), {path: set(vars(module)) for path, module in model.named_modules()}
    found, stats = sampled(name, fc.fora(1).plan(grid(name)))
    assert torch.equal(found, bare(name))
    assert (stats.skipped, stats.generations, stats.calls) == (0, 1, T)
    assert list(model.state_dict()) == keys
    assert {path: set(vars(module)) for path, module in model.named_modules()} == own
    sampled(name, fc.fora(2).plan(grid(name)))
    assert torch.equal(TINY[name].generate(model), bare(name))


VALUES = ["Lumina 2", "Mochi 1", "HunyuanVideo 1.5", "HiDream"]
"""Their forwards read values, such as the lengths of texts, or the experts of tokens."""


@pytest.mark.parametrize("name", VALUES)
def test_a_cost_that_shapes_do_not_tell_is_refused(name):
    inputs = TINY[name].inputs(torch.zeros(TINY[name].shape), TIMES[0])
    with pytest.raises(fc.errors.InputError, match=r"cannot be known from shapes alone: its forward reads values"):
        fc.fora(2).plan(grid(name)).cost(model_of(name), inputs=inputs)


@pytest.mark.parametrize("name", slow_but([name for name in TINY if name not in VALUES], *SHORT))
def test_a_real_run_counts_the_macs_and_holds_the_bytes_that_were_said(name):
    if name == "DiT":
        pytest.skip("its time embeddings are kept on the CPU: tests/plan/test_cost.py")
    model, family = model_of(name), TINY[name]
    inputs = family.inputs(torch.zeros(family.shape), TIMES[0])
    plan = uneven(grid(name))
    cost = plan.cost(model, inputs=inputs)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _, stats = sampled(name, plan)
    assert counter.get_total_flops() == 2 * cost.macs
    assert stats.peak_cache_bytes == cost.cache_bytes
    assert cost.macs < cost.macs_uncached


@pytest.mark.parametrize("name", slow_but(TINY, *SHORT))
def test_a_collapsed_run_equals_block_by_block(name, monkeypatch):
    plans = [uneven(grid(name)), fc.taylorseer(fc.fora(3), 1).plan(grid(name))]
    together = [sampled(name, plan) for plan in plans]
    monkeypatch.setattr(Forwards, "run_block", lambda self, block, x, args, kwargs: None)
    for plan, (found, stats) in zip(plans, together, strict=True):
        apart, others = sampled(name, plan)
        torch.testing.assert_close(found, apart, rtol=1e-5, atol=1e-5)
        assert stats == others
        assert (found - bare(name)).abs().max() > 10 * (found - apart).abs().max()


@pytest.mark.parametrize("name", slow_but(TINY, *SHORT))
def test_two_generations_in_a_row_are_those_of_fresh_sessions(name):
    plan = fc.goc(fc.fora(2), 0.8).plan(grid(name))
    fresh = [sampled(name, plan, seed=seed)[0] for seed in (0, 1)]
    with fc.apply(model_of(name), plan) as session:
        found = [TINY[name].generate(model_of(name), seed=seed) for seed in (0, 1)]
    assert session.stats.generations == 2
    assert all(map(torch.equal, found, fresh))


@pytest.mark.parametrize("name", TINY)
def test_sites_say_their_level(name):
    found = layout(model_of(name))
    assert found.level == ("branches" if name in BRANCHES else "blocks")
    assert ({site.kind for site in found.sites} == {"block"}) == (name in BLOCKS)


# ---- sampling written out by hand -----------------------------------------------------------------------------------

METHODS = {
    "nothing": (fc.fora(1), reference.everything),
    "fora": (fc.fora(3), reference.fora(reference.front(T, 3))),
    "goc": (fc.goc(fc.fora(2), 0.8), reference.goc_emitted(reference.front(T, 2), 0.8)),
}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(name, method, marks=[] if name in SHORT or method == "fora" else pytest.mark.slow)
        for name in TINY
        for method in METHODS
        if name not in ("DiT", "PixArt") and (method != "nothing" or name in SHORT)
    ],
)
def test_sampling_equals_the_one_by_hand(name, method):
    """DiT and PixArt have tests/runtime/test_executor.py and tests/models/families/test_pixart.py."""
    ours, rule = METHODS[method]
    found, _ = sampled(name, ours.plan(grid(name)))
    expected = generate_by_hand(TINY[name], model_of(name), rule)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if method != "nothing":
        assert (found - bare(name)).abs().max() > 10 * (found - expected).abs().max()
    assert torch.equal(TINY[name].generate(model_of(name)), bare(name))


# ---- some tokens ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SD3", "FLUX.1", "Wan 2.1"])
def test_chosen_tokens_of_the_image_are_computed(name):
    """Tokens are ranked by the image's part of the joint attention; all of them chosen is the MLP computed."""
    at, kind, every = fc.parts.schedules.at, fc.parts.schedules.kind, fc.parts.schedules.every
    base = fc.fora(2)
    everything = fc.selective(base, 0, tokens=fc.parts.tokens.top(1.0), every=1, kinds=("mlp",)).plan(grid(name))
    others = fc.Method("the others", at(kind("mlp"), every(1), every(2))).plan(grid(name))
    torch.testing.assert_close(sampled(name, everything)[0], sampled(name, others)[0], rtol=1e-5, atol=1e-5)
    some = fc.selective(base, 0, 0.5, every=1, kinds=("mlp",)).plan(grid(name))
    errors = [
        (sampled(name, plan)[0] - sampled(name, others)[0]).square().mean() for plan in (some, base.plan(grid(name)))
    ]
    assert 0 < errors[0] < errors[1]


def test_tokens_with_timesteps_of_their_own_cannot_be_chosen():
    plan = fc.selective(fc.fora(2), 0, 0.5, every=1).plan(grid("Wan 2.2 5B"))
    with pytest.raises(fc.errors.RunError, match=r"every token has a timestep of its own.*without partial cells"):
        sampled("Wan 2.2 5B", plan)
