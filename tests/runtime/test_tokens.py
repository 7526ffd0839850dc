"""Partial cells: some tokens are computed, the others estimated."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import reference
from support.small import generate, labels, noise, small_facebook_dit
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import forecache as fc
from forecache.methods.procache import PROCACHE_PATTERN
from forecache.models.arguments import Arguments
from forecache.parts import tokens
from forecache.parts.schedules import at, by_step, depth, kind
from forecache.runtime import tokens as tokens_module

XL = tuple(fc.parts.Site(f"blocks.{d}.{k}", d, k) for d in range(28) for k in ("attn", "mlp"))
STEPS = 10
PATTERN = "#....#...."
"""Two gaps of four: partial at 2, 4 and 7, 9; attentions and early blocks reuse."""
COMPUTED, PARTIAL = {0, 5}, {2, 4, 7, 9}


def absmax(feature):
    return feature.abs().amax(-1)


# ---- as published ---------------------------------------------------------------------------------------------------


def test_the_published_lists():
    plan = fc.methods.procache_paper().plan(fc.Grid(50, XL))
    rows = {site.name: row for site, row in zip(plan.grid.sites, plan.rows, strict=True)}
    activations = {0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 38, 40, 42, 44, 46, 48}
    partial = {2, 6, 10, 14, 18, 22, 26, 29, 32, 35}
    for name, row in rows.items():
        assert {step for step, cell in enumerate(row) if cell.computed} == activations
        deep = name.endswith("mlp") and int(name.split(".")[1]) >= 21
        assert {step for step, cell in enumerate(row) if cell.tokens} == (partial if deep else set())


def test_the_published_numbers_of_tokens():
    plan = fc.methods.procache_paper().plan(fc.Grid(50, XL))
    counts = [
        [row[step].tokens.count(256) for step in (2, 6, 10, 14, 18, 22, 26, 29, 32, 35)]
        for site, row in zip(plan.grid.sites, plan.rows, strict=True)
        if site.kind == "mlp" and site.depth in (21, 27)
    ]
    shallow, deep = [0, 0, 0, 9, 25, 41, 57, 69, 81, 93], [0, 0, 0, 10, 27, 45, 62, 75, 88, 101]
    assert counts == [shallow, deep]


def test_the_published_accounting():
    """2 FLOPs a MAC, one image with its guidance pair: 23.735 T, and 2.94, 2.89 and 2.842 times fewer, as docs say."""
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        model = DiTTransformer2DModel(out_channels=8)
    grid = fc.grid(model, 50)
    alone = fc.methods.procache_paper(partial=False).plan(grid).cost(model)
    chosen = {"by norm": tokens.top(tokens.rising(0.07)), "as released": tokens.released()}
    both = {
        name: fc.selective(fc.explicit(compute=[i for i, sign in enumerate(PROCACHE_PATTERN) if sign == "#"]),
                           tokens=selector).plan(grid).cost(model)
        for name, selector in chosen.items()
    }  # fmt: skip
    assert alone.macs_uncached * 2 / 1e12 == pytest.approx(23.735, rel=1e-4)
    assert alone.macs * 2 / 1e12 == pytest.approx(8.085, rel=5e-4)
    assert alone.speedup == pytest.approx(23.735 / 8.085, rel=5e-4)
    assert both["by norm"].macs * 2 / 1e12 == pytest.approx(8.20, rel=1e-3)
    assert round(both["by norm"].speedup, 2) == 2.89
    # the same tokens, and the attention maps that rank them
    assert both["as released"].speedup == fc.methods.procache_paper().plan(grid).cost(model).speedup
    pages = [
        (Path(__file__).parents[2] / "docs" / page).read_text("utf-8") for page in ("methods/procache.md", "faq.md")
    ]
    for cost in both.values():
        assert all(f"{cost.speedup:.3f}" in page for page in pages)
    assert f"The pattern alone has {alone.speedup:.3f}" in pages[0]
    assert both["by norm"].macs < both["as released"].macs < 1.02 * both["by norm"].macs


def test_injection_vectors():
    grid = fc.Grid(8, XL)
    plan = fc.procache([1, 0, 0, 0, 1, 0, 0, 1]).plan(grid)
    drawn = {site.name: "".join(cell.sign for cell in row) for site, row in zip(grid.sites, plan.rows, strict=True)}
    assert drawn["blocks.21.mlp"] == "#.o.#.o#"
    assert drawn["blocks.21.attn"] == drawn["blocks.20.mlp"] == "#...#..#"
    assert plan.provenance["method"] == (
        "procache(explicit(pattern='#...#..#'), from_depth=0.75, importance='attn_norm')"
    )


# ---- against sampling written out by hand ---------------------------------------------------------------------------

CASES = {
    "norm": (tokens.top(0.3), {"score": lambda a: a.norm(dim=-1)}),
    "function": (tokens.top(0.3, absmax), {"score": absmax}),
    "attention": (tokens.top(0.3, "attention"), {"score": "received"}),
    "norm, age": (tokens.top(0.3, age=0.1), {"score": lambda a: a.norm(dim=-1), "age": 0.1}),
    "attention, age, bonus": (
        tokens.top(0.3, "attention", age=0.0625, bonus=1.6),
        {"score": "received", "age": 0.0625, "bonus": (1.6, 4, 4)},
    ),
}


@pytest.mark.parametrize("order", [0, 1], ids=["reuse", "Taylor"])
@pytest.mark.parametrize("name", CASES)
def test_sampling_equals_the_one_by_hand(dit, name, order):
    selector, how = CASES[name]
    base = fc.explicit(compute=sorted(COMPUTED))
    base = fc.taylorseer(base, 1) if order else base
    method = fc.selective(base, 1, tokens=selector)
    with fc.apply(dit, method.plan(fc.grid(dit, STEPS))):
        found = generate(dit, STEPS)
    partial = PARTIAL.__and__
    rule = reference.selective(
        COMPUTED, lambda d: partial(set(range(STEPS))) if d >= 1 else set(), 0.3, order=order, **how
    )
    expected = by_hand(dit, rule)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    without = by_hand(dit, reference.selective(COMPUTED, lambda d: set(), 0.3, order=order, **how))
    assert (found - without).abs().max() > 100 * (found - expected).abs().max()


def by_hand(dit, rule):
    predict = reference.cached(reference.diffusers_dit, dit, labels(), rule)
    return reference.ddim(predict, noise(), STEPS)


def test_modules_by_name_pattern_too():
    model = small_facebook_dit()
    grid = fc.grid(model, STEPS)
    method = fc.selective(fc.explicit(compute=sorted(COMPUTED)), 1, 0.3)

    def predict(x, t, step):
        return model(x, t, labels())

    with fc.apply(model, method.plan(grid)):
        found = reference.ddim(predict, noise(), STEPS)
    rule = reference.selective(COMPUTED, lambda d: PARTIAL if d >= 1 else set(), 0.3, lambda a: a.norm(dim=-1))
    by_rule = reference.ddim(reference.cached(reference.facebook_dit, model, labels(), rule), noise(), STEPS)
    torch.testing.assert_close(found, by_rule, rtol=1e-4, atol=1e-5)


# ---- laws -----------------------------------------------------------------------------------------------------------


def sampled(model, method, num_steps=STEPS, **how):
    plan = method.plan(fc.grid(model, num_steps))
    with fc.apply(model, plan) as session:
        images = generate(model, num_steps, **how)
    return images, session.stats, plan


@pytest.mark.parametrize("importance", ["attn_norm", "attention", "random", absmax])
def test_no_tokens_is_reuse_and_all_tokens_is_compute_bit_for_bit(dit, importance):
    base = fc.explicit(compute=sorted(COMPUTED))
    reused, *_ = sampled(dit, base)
    none, *_ = sampled(dit, fc.selective(base, 1, 0.0, importance))
    assert torch.equal(none, reused)
    rounded_down, stats, _ = sampled(dit, fc.selective(base, 1, 0.05, importance))  # of 16 tokens
    assert stats.partial == 2 * len(PARTIAL)
    torch.testing.assert_close(rounded_down, reused, rtol=1e-5, atol=1e-5)  # its blocks do not collapse
    every, stats, _ = sampled(dit, fc.selective(base, 1, 1.0, importance))
    pattern = "".join("#" if step in COMPUTED | PARTIAL else "." for step in range(STEPS))
    mlps = at(depth(1, 99), by_step(pattern), base.schedule)
    computed, *_ = sampled(dit, fc.Method("MLPs computed", at(kind("mlp"), mlps, base.schedule)))
    assert torch.equal(every, computed)
    assert not torch.equal(every, reused)
    assert stats.partial == 2 * len(PARTIAL)


@given(st.integers(1, 4), st.integers(1, 30), st.integers(1, 5), st.integers(0, 99))
def test_tokens_that_are_not_chosen_carry_the_estimate(batch, count, width, seed):
    generator = torch.Generator().manual_seed(seed)
    estimate, x = (torch.randn(batch, count, width, generator=generator) for _ in range(2))
    chosen = tokens.Tokens(0.4, "random")
    index = tokens_module.choose(chosen, torch.rand(batch, count, generator=generator), None, None)
    before = estimate.clone()
    out = tokens_module.with_computed(estimate, index, lambda part, factor: part * factor, Arguments((x, 3), {}))
    for b in range(batch):
        for token in range(count):
            expected = 3 * x[b, token] if token in index[b] else estimate[b, token]
            assert torch.equal(out[b, token], expected)
    assert torch.equal(estimate, before)
    assert index.shape == (batch, int(0.4 * count + 1e-9))


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
def test_the_best_of_each_patch_counts_more_on_any_grid(rows, columns, seed):
    scores = torch.rand(2, rows * columns, generator=torch.Generator().manual_seed(seed))
    spread = tokens_module.with_bonus(scores, (rows, columns), 1.6)
    for before, after in zip(scores, spread, strict=True):
        for token in range(rows * columns):
            y, x = divmod(token, columns)
            patch = [
                before[r * columns + c]
                for r in (y // 2 * 2, y // 2 * 2 + 1)
                for c in (x // 2 * 2, x // 2 * 2 + 1)
                if r < rows and c < columns
            ]
            factor = 1.6 if before[token] == max(patch) else 1.0
            assert after[token] == before[token] * factor


@pytest.mark.parametrize(
    ("image", "count", "grid"),
    [((2, 4, 32, 64), 128, (8, 16)), ((2, 4, 24, 8), 12, (6, 2)), ((1, 3, 28, 28), 49, (7, 7))],
)
def test_the_token_grid_has_the_proportions_of_the_image(image, count, grid):
    assert tokens_module.token_grid(tokens.Tokens(0.5, bonus=2), count, image) == grid


@pytest.mark.parametrize("image", [None, (2, 64, 16), (2, 4, 32, 48)])
def test_a_token_grid_that_is_not_known_has_to_be_given(image):
    with pytest.raises(fc.errors.RunError, match=r"pass token_grid=\(rows, columns\)"):
        tokens_module.token_grid(tokens.Tokens(0.5, bonus=2), 64, image)
    assert tokens_module.token_grid(tokens.Tokens(0.5, bonus=2, token_grid=(4, 16)), 64, image) == (4, 16)


def test_halves_choose_their_own_tokens_or_share():
    scores = torch.tensor([[4.5, 1, 0, 0], [0, 0, 1, 2], [0, 4, 0, 0], [0, 0, 9, 0]])  # [cond; uncond] of two images
    own = tokens_module.choose(tokens.Tokens(0.25), scores, None, None)
    assert own.flatten().tolist() == [0, 3, 1, 2]
    shared = tokens_module.choose(tokens.Tokens(0.25, halves="shared"), scores, None, None)
    assert shared.flatten().tolist() == [1, 2, 1, 2]
    with pytest.raises(fc.errors.RunError, match="guidance pairs; this one has 3 rows"):
        tokens_module.choose(tokens.Tokens(0.25, halves="shared"), scores[:3], None, None)


def test_halves_share_in_a_run(dit):
    base = fc.explicit(compute=sorted(COMPUTED))
    own, *_ = sampled(dit, fc.selective(base, 1, 0.3))
    shared, *_ = sampled(dit, fc.selective(base, 1, tokens=tokens.top(0.3, halves="shared")))
    assert not torch.equal(own, shared)


@pytest.mark.parametrize("importance", ["attn_norm", "attention", "random"])
def test_a_sample_does_not_depend_on_its_batch(dit, importance):
    method = fc.selective(fc.explicit(compute=sorted(COMPUTED)), 1, 0.3, importance)
    two, *_ = sampled(dit, method)
    one, *_ = sampled(dit, method, count=1)
    torch.testing.assert_close(two[:1], one, rtol=1e-4, atol=1e-5)


def test_random_tokens_are_those_of_their_seed(dit):
    base = fc.explicit(compute=sorted(COMPUTED))
    one, again, other = (
        sampled(dit, fc.selective(base, 1, tokens=tokens.top(0.3, "random", seed=seed)))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


METHODS = {
    "procache": fc.procache(PATTERN, 1, 0.3),
    "released": fc.selective(fc.explicit(compute=sorted(COMPUTED)), 1, tokens=tokens.released(0.2)),
    "toca": fc.toca(fc.fora(5), 0.3),
    "toca, norm": fc.toca(fc.fora(3), 0.3, "attn_norm"),
    "random": fc.selective(fc.fora(5), 0, 0.5, "random", every=1),
    "on goc": fc.selective(fc.goc(fc.fora(4), 0.8), 1, 0.3),
    "on taylor": fc.selective(fc.taylorseer(fc.fora(4), 2), 1, 0.3, "attention"),
}


@pytest.mark.parametrize("name", METHODS)
def test_what_cost_predicts_is_what_is_counted(dit, name):
    plan = METHODS[name].plan(fc.grid(dit, STEPS))
    cost = plan.cost(dit, 2)
    with sdpa_kernel(SDPBackend.MATH), fc.apply(dit, plan) as session, FlopCounterMode(display=False) as counter:
        generate(dit, STEPS)
    assert counter.get_total_flops() // 2 == cost.macs
    assert session.stats.peak_cache_bytes == cost.cache_bytes
    cells = [cell for row in plan.rows for cell in row]
    assert session.stats.partial == sum(cell.tokens is not None for cell in cells) > 0
    assert session.stats.computed == sum(cell.computed for cell in cells)


@pytest.mark.parametrize("name", METHODS)
def test_generations_share_nothing(dit, name):
    plan = METHODS[name].plan(fc.grid(dit, STEPS))
    fresh = [sampled(dit, METHODS[name], seed=seed)[0] for seed in (0, 1)]
    with fc.apply(dit, plan) as session:
        first = generate(dit, STEPS, seed=0)
        with pytest.raises(KeyboardInterrupt):
            interrupted(dit, 7)
        session.new_run()
        held = [state.meter.held for model in session._models for state in model.runs.threads]
        second = generate(dit, STEPS, seed=1)
    assert torch.equal(first, fresh[0])
    assert torch.equal(second, fresh[1])
    assert held == [0]


def interrupted(model, steps):
    def predict(x, t, step):
        if step == steps:
            raise KeyboardInterrupt
        return model(x, timestep=t, class_labels=labels()).sample

    reference.ddim(predict, noise(), STEPS)


@pytest.mark.parametrize("name", METHODS)
def test_a_plan_with_partial_cells_is_kept_in_a_file(dit, name, tmp_path):
    plan = METHODS[name].plan(fc.grid(dit, STEPS))
    plan.save(tmp_path / "plan.json")
    assert fc.Plan.load(tmp_path / "plan.json") == plan


def test_any_base_takes_selective_computation(dit):
    grid = fc.grid(dit, STEPS)
    for base in (fc.fora(5), fc.fora(4, anchor="end"), fc.explicit(skip=[1, 2, 3, 7, 8]), fc.warmup(fc.fora(4), 3)):
        picture = fc.selective(base, 0).plan(grid).picture()
        assert "o" in picture
        assert base.plan(grid).picture() in picture.split("\n")


def test_warmup_keeps_the_partial_cells(dit):
    plan = fc.warmup(fc.selective(fc.fora(4), 0), 2).plan(fc.grid(dit, 8))
    assert sorted(plan.picture().split("\n")) == ["##..#...", "##o.#.o."]


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_a_schedule_with_partial_cells_needs_to_know_which_tokens(dit):
    with pytest.raises(fc.errors.PlanError, match="does not say which: give Method"):
        fc.Method("mine", at(kind("mlp"), by_step("#.o."), by_step("#..."))).plan(fc.grid(dit, 4))


@pytest.mark.parametrize(
    "method", [fc.selective(fc.fora(2)), fc.selective(fc.fora(4), kinds=("ff",)), fc.procache("##########")]
)
def test_selective_computation_that_computes_nothing_is_refused(dit, method):
    with pytest.raises(fc.errors.PlanError, match="has no partial cell"):
        method.plan(fc.grid(dit, STEPS))


@pytest.mark.parametrize("from_depth", [3, -1, 1.0, 7.5, -0.5])
def test_a_depth_that_the_model_does_not_have_is_refused(dit, from_depth):
    with pytest.raises(fc.errors.PlanError, match="the blocks are 0 to 2"):
        fc.selective(fc.fora(4), from_depth).plan(fc.grid(dit, STEPS))


def test_attention_cannot_be_computed_for_some_tokens(dit):
    plan = fc.selective(fc.fora(4), tokens=tokens.top(0.5, "random"), kinds=("attn",)).plan(fc.grid(dit, STEPS))
    for use in (lambda: plan.cost(dit), lambda: fc.apply(dit, plan)):
        with pytest.raises(fc.errors.PlanMismatchError, match="partial cells are for sites of the kinds mlp"):
            use()


def test_attention_that_cannot_be_seen_is_refused():
    model = small_facebook_dit()
    plan = fc.selective(fc.fora(4), 1, importance="attention").plan(fc.grid(model, STEPS))
    with pytest.raises(fc.errors.PlanMismatchError, match="use importance='attn_norm'"):
        fc.apply(model, plan)


def test_tokens_are_chosen_by_a_site_that_runs_before():
    sites = (fc.parts.Site("blocks.0.mlp", 0, "mlp"),)
    with pytest.raises(fc.errors.PlanError, match="no site of the block runs before it"):
        fc.selective(fc.fora(4), 0).plan(fc.Grid(8, sites))
    cells = (fc.parts.Cell(), fc.parts.Cell(((0, 1.0),), tokens=fc.parts.Tokens(0.5, site="blocks.1.attn")))
    with pytest.raises(fc.errors.PlanError, match="which is no site before it"):
        fc.Plan(fc.Grid(2, sites), (cells,))


def test_a_computed_cell_chooses_no_tokens():
    cells = (fc.parts.Cell(tokens=fc.parts.Tokens(0.5, "random")),)
    with pytest.raises(fc.errors.PlanError, match="computed, so it cannot have"):
        fc.Plan(fc.Grid(1, (fc.parts.Site("a", 0, "mlp"),)), (cells,))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"share": 1.5}, "between 0 and 1"),
        ({"share": float("nan")}, "between 0 and 1"),
        ({"importance": "norm"}, "importance must be attn_norm"),
        ({"halves": "both"}, "'own' or 'shared'"),
        ({"age": -1.0}, "age is at least 0"),
        ({"bonus": 0.0}, "bonus over 0"),
        ({"token_grid": (0, 3)}, "token_grid is"),
        ({"token_grid": (3,)}, "token_grid is"),
    ],
)
def test_tokens_that_make_no_sense_are_refused(how, message):
    with pytest.raises(fc.errors.PlanError, match=message):
        fc.parts.Tokens(**({"share": 0.5} | how))


def test_a_function_cannot_be_saved(dit, tmp_path):
    plan = fc.selective(fc.fora(4), 1, 0.3, absmax).plan(fc.grid(dit, STEPS))
    with pytest.raises(fc.errors.PlanError, match="by a function, .*absmax.*, and a plan file holds names only"):
        plan.save(tmp_path / "plan.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("made", [lambda a: a.norm(dim=-1)[:, :3], lambda a: 1.0])
def test_a_function_that_gives_no_scores_is_refused(dit, made):
    plan = fc.selective(fc.fora(4), 1, 0.3, made).plan(fc.grid(dit, STEPS))
    with fc.apply(dit, plan), pytest.raises(fc.errors.RunError, match="one score a token"):
        generate(dit, STEPS)


def test_half_precision(dit):
    model = copy.deepcopy(dit).to(torch.bfloat16)
    for name in ("released", "on goc"):
        images, *_ = sampled(model, METHODS[name])
        assert images.isfinite().all()
        assert images.dtype == torch.bfloat16


# ---- ages -----------------------------------------------------------------------------------------------------------


def ages_seen(model, row, monkeypatch):
    """The highest age that each choice of an MLP was told, for a row of cells for all MLPs."""
    grid = fc.grid(model, len(row))
    rows = tuple(row if site.kind == "mlp" else (fc.parts.Cell(),) * len(row) for site in grid.sites)
    told, choose = [], tokens_module.choose

    def watch(tokens_, scores_BN, age_BN, image):
        told.append(None if age_BN is None else age_BN.max().item())
        return choose(tokens_, scores_BN, age_BN, image)

    monkeypatch.setattr(tokens_module, "choose", watch)
    with fc.apply(model, fc.Plan(grid, rows)):
        generate(model, len(row))
    monkeypatch.undo()
    return told[:: model.config.num_layers]


@pytest.mark.parametrize(
    ("shares", "ages", "told"),
    [
        ((0.25, 0.25, 0.25), (1.0, 1.0, 1.0), [None, 1, 2]),
        ((0.25, 0.25, 0.25), (0, 0, 1.0), [None, 1, 2]),  # all calls before count, whoever asks
        ((0.0, 0.25, 0.25), (0, 0, 1.0), [1, 2]),  # nothing is chosen in the first, and every token ages
        ((0.25, 0.25, 0.25), (1.0, 0, 0), [None, None, None]),  # nobody asks later
    ],
)
def test_tokens_age_with_every_partial_call(dit, monkeypatch, shares, ages, told):
    cells = [
        fc.parts.Cell(((0, 1.0),), tokens=tokens.Tokens(share, "random", age=age))
        for share, age in zip(shares, ages, strict=True)
    ]
    assert ages_seen(dit, (fc.parts.Cell(), *cells), monkeypatch) == told
    plan_of_two_gaps = (
        fc.parts.Cell(),
        *cells,
        fc.parts.Cell(),
        fc.parts.Cell(((4, 1.0),), tokens=tokens.Tokens(0.25, "random", age=1)),
    )
    assert ages_seen(dit, plan_of_two_gaps, monkeypatch) == [*told, None]


def test_float64_models_choose_tokens(dit):
    """The same tokens as in float32, so the same samples to rounding."""
    method = fc.procache("#..#..#...", 1, 0.3)
    single, _, plan = sampled(dit, method)
    assert any(cell.tokens is not None and cell.tokens.importance == "attn_norm" for row in plan.rows for cell in row)
    double, _, _ = sampled(copy.deepcopy(dit).double(), method)
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-4)
