"""Methods that decide while they run make the very decisions of the caches that users have, step by step.

diffusers' hooks run on the same tiny model; where diffusers has none, the rule is written out here from its formula.
"""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig, mag_cache, sea_cache
from diffusers.hooks import first_block_cache as theirs
from support.small import small_dit
from support.tiny import TINY

import forecache as fc
from forecache.methods import flags, registry
from forecache.parts.bounds import Decision
from forecache.parts.decide import FilteredInput, Now, filtered_by_noise

TIMES = tuple(range(990, 0, -66))
ONLINE = ("fbcache", "dbcache", "teacache", "easycache", "seacache", "dicache")


def decided(session):
    """What was decided, one sign a step."""
    return session.decided().provenance["decided"]


def signs(skips):
    return "".join("." if skipped else "#" for skipped in skips)


# ---- beside the hooks of diffusers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "threshold"), [("FLUX.1", 0.3), ("CogVideoX", 0.3)])
def test_fbcache_decides_as_diffusers_does(kind, threshold, monkeypatch):
    made, own = [], theirs.FBCHeadBlockHook._should_compute_remaining_blocks

    def noted(hook, residual):
        made.append(own(hook, residual))
        return made[-1]

    monkeypatch.setattr(theirs.FBCHeadBlockHook, "_should_compute_remaining_blocks", noted)
    tiny = TINY[kind]
    model = tiny.model()
    model.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    with model.cache_context("one"):
        expected = tiny.generate(model, TIMES)
    model.disable_cache()
    for how, near in (({"level": "stack"}, 1e-6), ({"level": "blocks"}, 1e-5)):
        with fc.apply(model, fc.fbcache(threshold), num_steps=len(TIMES), **how) as session:
            sample = tiny.generate(model, TIMES)
        assert decided(session) == signs(not computed for computed in made)
        torch.testing.assert_close(sample, expected, atol=near, rtol=0)
    assert {True, False} == set(made)  # a test of nothing else would pass by computing


def test_magcache_skips_what_diffusers_skips(monkeypatch):
    """Its plan is static: the same steps as the hook's, with ratios stretched as the hook does."""
    ratios = [1.0, 1.2, 1.1, 1.06, 1.02, 0.99, 0.97, 0.95, 0.9]
    config = MagCacheConfig(threshold=0.15, max_skip_steps=2, num_inference_steps=len(TIMES), mag_ratios=ratios)
    tiny = TINY["CogVideoX"]
    model = tiny.model()
    ran, calls = [], []
    model.register_forward_pre_hook(lambda *_: calls.append(None))
    mag_cache.apply_mag_cache(model, config)
    model.transformer_blocks[-1].norm1.register_forward_hook(lambda *_: ran.append(len(calls) - 1))
    tiny.generate(model, TIMES)
    method = fc.magcache(ratios, 0.15, max_gap=2)
    model = tiny.model()
    with fc.apply(model, method, num_steps=len(TIMES), level="stack") as session:
        tiny.generate(model, TIMES)
    assert session.stats.last.picture == signs(step not in ran for step in range(len(TIMES)))
    assert 3 < len(ran) < len(TIMES) - 3


def test_seacache_decides_as_diffusers_gate_does():
    """The gate of diffusers' hook on the latents of a run, and its filter on one of them."""
    tiny = TINY["Wan 2.1"]
    model = tiny.model()
    inputs = []
    model.register_forward_pre_hook(lambda module, args, kwargs: inputs.append(kwargs["hidden_states"].clone()),
                                    with_kwargs=True)  # fmt: skip
    target = type("Loop", (), {"transformer": model, "scheduler": FlowMatchEulerDiscreteScheduler()})()
    target.scheduler.set_timesteps(len(TIMES))
    with fc.apply(target, fc.seacache(0.6, power=3.0, max_gap=3), level="stack") as session:
        target.scheduler.set_timesteps(len(TIMES))
        tiny.generate(model, target.scheduler.timesteps.tolist())
    sigmas = [float(time) / 1000 for time in target.scheduler.timesteps]
    config = sea_cache.SeaCacheConfig(threshold=0.6, max_consecutive_cached=3, raw_vision_callback=lambda *_: None)
    state, shared = sea_cache.SeaCacheContextState(), sea_cache.SeaCacheSharedState()
    computed = []
    for step, (sample, sigma) in enumerate(zip(inputs, sigmas, strict=True)):
        now = sea_cache._SeaCacheForwardMetadata(step, sigma, len(TIMES), list(sample.unbind(0)))
        computed.append(shared.resolve_gate(state, now, sea_cache._build_indicator(config, now), config))
        state.consecutive_cached = 0 if computed[-1] else state.consecutive_cached + 1
    assert decided(session) == signs(not one for one in computed)
    assert {True, False} == set(computed)
    own = filtered_by_noise(inputs[3], sigmas[3], 3.0)[0].movedim(0, -1)
    torch.testing.assert_close(own, sea_cache._apply_sea_filter(inputs[3][0].movedim(0, -1), sigmas[3], 3.0))


# ---- beside rules that are written out -------------------------------------------------------------------------------


@torch.no_grad()
def by_hand(rule, times=TIMES):
    """A run of a small DiT that reuses the stack's residual where ``rule`` says so, and what it said.

    rule(step, x, v of the last computed step, modulated input, stream before and behind the first block) -> computed.
    """
    model = small_dit(3)
    blocks, labels = model.transformer_blocks, torch.tensor([1, 2])
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    residual = output = None
    made = []
    for step, time in enumerate(times):
        t = torch.full((2,), time)
        hidden = model.pos_embed(x)
        arguments = {"timestep": t, "class_labels": labels}
        modulated = blocks[0].norm1(hidden, t, labels, hidden_dtype=hidden.dtype)[0]
        first = blocks[0](hidden, **arguments)
        made.append(rule(step, x, output, modulated, hidden, first))
        if made[-1]:
            after = first
            for block in blocks[1:]:
                after = block(after, **arguments)
            residual = after - hidden
        v = last_layer(model, hidden + residual, t, labels)
        output = v if made[-1] else output
        x = x - 0.1 * v[:, :4]
    return signs(not computed for computed in made), x


def last_layer(model, hidden, t, labels):
    """What diffusers' DiT does after its blocks."""
    condition = model.transformer_blocks[0].norm1.emb(t, labels, hidden_dtype=hidden.dtype)
    shift, scale = model.proj_out_1(torch.nn.functional.silu(condition)).chunk(2, dim=1)
    hidden = model.proj_out_2(model.norm_out(hidden) * (1 + scale[:, None]) + shift[:, None])
    side, patch = int(hidden.shape[1] ** 0.5), model.config.patch_size
    hidden = hidden.reshape(-1, side, side, patch, patch, model.out_channels)
    return torch.einsum("nhwpqc->nchpwq", hidden).reshape(-1, model.out_channels, side * patch, side * patch)


@torch.no_grad()
def by_plan(method, level="stack", **how):
    model, labels = small_dit(3), torch.tensor([1, 2])
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with fc.apply(model, method, num_steps=len(TIMES), level=level, **how) as session:
        for time in TIMES:
            x = x - 0.1 * model(x, timestep=torch.full((2,), time), class_labels=labels).sample[:, :4]
    return session, x


def change(now, before):
    return ((now - before).abs().mean() / before.abs().mean()).item()


class TeaCache:
    def __init__(self, threshold, coefficients):
        self.threshold, self.polynomial, self.last = threshold, np.poly1d(coefficients), len(TIMES) - 1

    def __call__(self, step, x, output, modulated, hidden, first):
        if step in (0, self.last):
            computed, self.total = True, 0.0
        else:
            self.total += self.polynomial(change(modulated, self.before))
            computed = self.total >= self.threshold
            self.total = 0.0 if computed else self.total
        self.before = modulated
        return computed


class EasyCache:
    """By the authors' released code: x, v of the last computed step, and the rate k between the last two."""

    def __init__(self, threshold, first):
        self.threshold, self.first = threshold, first
        self.rate = self.output = self.anchor = self.before = None
        self.total = 0.0
        self.was_computed = False

    def __call__(self, step, x, output, modulated, hidden, first):
        if self.was_computed:
            if self.output is not None:
                self.rate = (output - self.output).abs().mean() / (self.before - self.anchor).abs().mean()
            self.anchor, self.output = self.before, output
        computed = True
        if self.first <= step < len(TIMES) - 1:
            self.total += self.rate * ((x - self.before).abs().mean() / self.output.abs().mean())
            computed = not self.total < self.threshold
        self.total = 0.0 if computed else self.total
        self.before, self.was_computed = x, computed
        return computed


class DiCache:
    def __init__(self, threshold, first):
        self.threshold, self.first, self.total = threshold, first, 0.0

    def __call__(self, step, x, output, modulated, hidden, first):
        computed = step < self.first or step == len(TIMES) - 1
        if not computed:
            self.total += abs(change(first, self.probe) - change(hidden, self.input))
            computed = self.total >= self.threshold
        self.total = 0.0 if computed else self.total
        self.input, self.probe = hidden, first
        return computed


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        (fc.teacache(0.2, (2.0, -0.5, 1.1, 0.0)), TeaCache(0.2, (2.0, -0.5, 1.1, 0.0))),
        (fc.easycache(0.12, first=3), EasyCache(0.12, 3)),
    ],
    ids=["teacache", "easycache"],
)
def test_a_rule_decides_as_its_formula_written_out(method, rule):
    expected, sample = by_hand(rule)
    assert {"#", "."} == set(expected[1:-1])
    session, own = by_plan(method)
    assert decided(session) == expected
    torch.testing.assert_close(own, sample, atol=2e-6, rtol=0)
    assert decided(by_plan(method, "blocks")[0]) == expected


def test_dicache_decides_as_its_formula_written_out():
    """On the streams of its own run: what is reused differs, as its residual is that of all blocks."""
    seen = []

    class Noted(DiCache):
        def __call__(self, *given):
            seen.append(super().__call__(*given))
            return seen[-1]

    session, _ = by_plan(fc.dicache(0.012, first=3))
    streams = []
    model = small_dit(3)
    model.transformer_blocks[0].register_forward_hook(
        lambda module, args, output: streams.append((args[0].clone(), output.clone()))
    )
    labels, x = torch.tensor([1, 2]), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with fc.apply(model, session.decided()), torch.no_grad():
        for time in TIMES:
            x = x - 0.1 * model(x, timestep=torch.full((2,), time), class_labels=labels).sample[:, :4]
    rule = Noted(0.012, 3)
    for step, (before, after) in enumerate(streams):
        rule(step, None, None, None, before, after)
    assert decided(session) == signs(not computed for computed in seen)
    assert {True, False} == set(seen)


def test_dbcache_decides_as_cache_dits_rule_written_out():
    """mean|r - r_c| / mean|r_c| below the threshold skips, behind two blocks, after a warm-up of three steps."""
    method = fc.dbcache(0.25, head=2, first=3, max_gap=2)
    session, _ = by_plan(method, "blocks")
    streams = []
    model = small_dit(3)
    model.transformer_blocks[0].register_forward_pre_hook(lambda module, args: streams.append([args[0].clone()]))
    model.transformer_blocks[1].register_forward_hook(lambda module, args, output: streams[-1].append(output.clone()))
    labels, x = torch.tensor([1, 2]), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with fc.apply(model, session.decided()), torch.no_grad():
        for time in TIMES:
            x = x - 0.1 * model(x, timestep=torch.full((2,), time), class_labels=labels).sample[:, :4]
    made, kept = [], None
    for step, (before, after) in enumerate(streams):
        residual = after - before
        cached = made[-2:] == [False, False]
        made.append(step < 3 or cached or not change(residual, kept) < 0.25)
        kept = residual if made[-1] else kept
    assert decided(session) == signs(not computed for computed in made)
    assert {True, False} == set(made)


# ---- as methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ONLINE)
def test_every_rule_is_a_base_with_any_forecast_and_is_on_the_command_line(name):
    assert name in flags.bases()
    entry = registry.registered(name)
    grid = fc.grid(small_dit(3), 12)
    base = entry.function(0.1, budget=9)
    for method in (base, fc.goc(base, 0.8), fc.taylorseer(base, 2), fc.feedback(fc.warmup(base, 2), 1)):
        plan = method.plan(grid)
        assert "?" in plan.picture()
        assert registry.build(plan.recipe).plan(grid) == plan
    option = flags.flags()["online_threshold"]
    assert set(option.owners) == set(ONLINE)
    assert flags.Expression("goc", name, {"eta": 0.8, "online_threshold": 0.1, "budget": 9}).build().recipe == (
        fc.goc(base, 0.8).recipe
    )


def test_a_calibrated_correction_and_chosen_tokens_are_refused_with_the_reason():
    grid = fc.grid(small_dit(3), 12)
    with pytest.raises(fc.errors.PlanError, match="leave at_least and at_most out"):
        fc.easycache(0.1, budget=5, at_most=6)
    with pytest.raises(fc.errors.PlanError, match="At most 3 of 12 steps .* alone compute 6"):
        fc.easycache(0.1, budget=3).plan(grid)
    with pytest.raises(fc.errors.PlanError, match=r"level=\"stack\", ends=\(1, 0\)"):
        fc.fbcache(0.1).plan(fc.grid(small_dit(3), 12, level="stack"))
    with pytest.raises(fc.errors.PlanError, match="Partial tokens need to know beforehand"):
        fc.selective(fc.easycache(0.1), share=0.5).plan(grid)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [*((name, {}) for name in ONLINE if name != "seacache"), ("teacache", {"coefficients": (-1.0, 0.0)})],
)
def test_a_threshold_of_zero_computes_every_step_bit_for_bit(name, arguments):
    """Of a polynomial that is below zero as well."""
    method = registry.registered(name).function(0.0, first=1, last=0, **arguments)
    model, labels = small_dit(3), torch.tensor([1, 2])
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for time in TIMES:
            x = x - 0.1 * model(x, timestep=torch.full((2,), time), class_labels=labels).sample[:, :4]
    session, own = by_plan(method, "branches")
    assert torch.equal(own, x)
    assert Decision.SKIP.value not in decided(session)


def test_seacache_computes_every_step_at_a_threshold_of_zero():
    rule, decisions = FilteredInput(0.0), []
    state = rule.begin()
    for step in range(6):
        now = Now(step, 6, list(range(step)), sigma=1 - step / 6, sample=torch.ones(1, 4, 8, 8))
        decision, state = rule.decide(state, now)
        decisions.append(decision)
    assert decisions == [Decision.COMPUTE] * 6


# ---- a pattern that a run corrects -----------------------------------------------------------------------------------

PATTERN = "##..#..#..#..#."


def outputs_of(scale):
    """The model's output at every step of a run without a cache, which moves by ``scale``."""
    model, labels, values = small_dit(3), torch.tensor([1, 2]), []
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for time in TIMES:
            values.append(model(x, timestep=torch.full((2,), time), class_labels=labels).sample)
            x = x - scale * values[-1][:, :4]
    return values


def squares_of(values):
    """Mean squares of differences of outputs, of all pairs of steps, as `Signals.mean_squares` has them."""
    pairs = [(s, t) for s in range(len(values)) for t in range(s, len(values))]
    return [(values[t] - (values[s] if s < t else 0)).square().mean().item() for s, t in pairs]


FORECASTS = {
    "reuse": (lambda base: base, lambda v, c, step: v[c[-1]]),
    "taylor": (
        lambda base: fc.taylorseer(base, 1),
        lambda v, c, step: (
            v[c[-1]] if len(c) == 1 else torch.lerp(v[c[-2]], v[c[-1]], (step - c[-2]) / (c[-1] - c[-2]))
        ),
    ),
}


@pytest.mark.parametrize("name", FORECASTS)
def test_adaptive_follows_its_pattern_where_the_run_is_as_calibrated(name):
    wrap, _ = FORECASTS[name]
    for more in ({}, {"budget": PATTERN.count("#")}, {"at_most": 12}):
        session, sample = by_plan(wrap(fc.adaptive(PATTERN, squares=squares_of(outputs_of(0.1)), **more)), "blocks")
        assert decided(session) == PATTERN
    _, static = by_plan(wrap(fc.explicit(pattern=PATTERN)), "blocks")
    assert torch.equal(sample, static)


@pytest.mark.parametrize("name", FORECASTS)
def test_adaptive_computes_earlier_where_the_forecast_errs_more_than_calibrated(name):
    """The rule written out, on the outputs of the run itself. Its calibration is of a run that is nearer to a line."""
    wrap, forecast = FORECASTS[name]
    own, last = outputs_of(0.1), len(TIMES) - 1
    slow = [torch.lerp(torch.lerp(own[0], own[last], step / last), value, 0.4) for step, value in enumerate(own)]

    def error(v, computed, step):
        return ((v[step] - forecast(v, computed, step)).norm() / v[step].norm()).item()

    def tolerance(step):
        gap = range(PATTERN.rfind("#", 0, step) + 1, (PATTERN + "#").index("#", PATTERN.rfind("#", 0, step) + 1))
        planned = [s for s in range(gap.start) if PATTERN[s] == "#"]
        return max((error(slow, planned, skipped) for skipped in gap), default=0.0)

    for budget in (None, PATTERN.count("#")):
        seen = []
        model = small_dit(3)
        handle = model.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.sample.clone()))
        labels, x = torch.tensor([1, 2]), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        method = wrap(fc.adaptive(PATTERN, squares=squares_of(slow), factor=1.2, budget=budget))
        with fc.apply(model, method, num_steps=len(TIMES)) as session, torch.no_grad():
            for time in TIMES:
                x = x - 0.1 * model(x, timestep=torch.full((2,), time), class_labels=labels).sample[:, :4]
        handle.remove()
        computed, made = [0], "#"
        for step in range(1, len(TIMES)):
            ratio = 1.0
            if len(computed) > 1:
                ratio = error(seen, computed[:-1], computed[-1]) / error(slow, computed[:-1], computed[-1])
            drifts = ratio * error(slow, computed, step) > 1.2 * tolerance(step)
            ahead = budget is not None and len(computed) > PATTERN.count("#", 0, step)
            computes = drifts if PATTERN[step] == "." or ahead else True
            if budget is not None:
                computes = (computes and len(computed) < budget) or len(computed) + len(TIMES) - step <= budget
            made += "#" if computes else "."
            computed += [step] if computes else []
        assert decided(session) == made
        assert made != PATTERN
        assert made.count("#") == budget if budget else made.count("#") > PATTERN.count("#")


def test_adaptive_is_for_the_length_that_was_calibrated():
    with pytest.raises(fc.errors.PlanError, match="Calibrated squares of 15 steps are 120 numbers"):
        fc.adaptive(PATTERN, squares=[0.1] * 10)
    with pytest.raises(fc.errors.PlanError, match=r"give stats= \(--stats\), the statistics"):
        fc.adaptive(PATTERN)
    with pytest.raises(fc.errors.PlanError, match="The pattern has 15 entries, the run 12 steps"):
        fc.adaptive(PATTERN, squares=[0.1] * 120).plan(fc.grid(small_dit(3), 12))
