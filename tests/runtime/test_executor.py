"""The library against cached sampling written out by hand: the same samples, to 1e-5 in float32."""

import itertools
import sys

import pytest
import torch
from support import reference
from support.small import generate, labels, noise
from support.tiny import TINY, normal

import forecache as fc

T = 20
GOC_50 = (3, 5, 7, 9, 11, 13, 15, 19)
UNEVEN = (0, 1, 4, 5, 9, 11, 12, 16)
LAYERS = [(depth, kind) for depth in range(3) for kind in ("attn", "mlp")]
"""The branches of the small model."""

# Learning-to-Cache computes all even steps; here the odd ones skip different branches of different blocks
ODD = [
    {1, 3, 5, 7, 9, 11, 13, 15},
    {1, 3, 5, 9, 13, 17},
    {3, 7, 9, 11},
    {3, 5, 7, 9, 19},
    {5, 7},
    set(range(1, 20, 2)),
]
TABLE = {key: set(range(T)) - skipped for key, skipped in zip(LAYERS, ODD, strict=True)}


def by_table(step, site, grid):
    return fc.parts.Action.COMPUTE if step in TABLE[site.depth, site.kind] else fc.parts.Action.SKIP


class Measured:
    """What `god` asks of statistics: the share of inverse gradients at each step."""

    inverse_shares = (0.0, 0.0, 0.5, 0.25, 1.0, 0.75, 0.0, 1.0, 0.5, 0.25, 0.0, 0.0, 0.0, 0.6, 0.9, 0.3, *[0.2] * 4)

    def check(self, grid):
        pass


MEASURED = Measured()
BELOW = {c for c in range(T) if 0.5 * c / 19 + 0.5 * MEASURED.inverse_shares[c] < 0.6}
"""The steps at which `god` is open: of the odd ones 1, 3, 5, 9, 11, 15, 17 and not 7, 13, 19."""
WARM = {0, 1, 2, 4, 8, 12, 16}  # every(4) with the first three steps computed

CASES = {
    **{f"fora start {n}": (fc.fora(n), reference.fora(reference.front(T, n))) for n in (2, 3, 4)},
    **{f"fora end {n}": (fc.fora(n, anchor="end"), reference.fora(reference.end(T, n))) for n in (2, 3, 4)},
    "fora 25 %": (fc.methods.fora_paper(25), reference.fora(set(range(T)) - {1, 3, 5, 7, 9})),
    **{
        f"goc emitted {eta}": (fc.goc(fc.fora(2), eta), reference.goc_emitted(reference.front(T, 2), eta))
        for eta in (0.8, 1.2)
    },
    "goc emitted, listed steps": (
        fc.goc(fc.fora(2), 1.2, steps=GOC_50),
        reference.goc_emitted(reference.front(T, 2), 1.2, corrected=set(GOC_50)),
    ),
    "goc emitted, FORA 25 %, listed steps": (
        fc.goc(fc.methods.fora_paper(25), 1.9, steps=fc.methods.goc_paper_steps(25)),
        reference.goc_emitted(set(range(T)) - {1, 3, 5, 7, 9}, 1.9, corrected={3, 5, 7, 9}),
    ),
    "goc emitted 3, frozen in a gap and divided by it": (
        fc.goc(fc.fora(3), 0.7),
        reference.goc_emitted_frozen(reference.front(T, 3), 0.7),
    ),
    **{
        f"goc computed {n}": (
            fc.goc(fc.fora(n), 0.9, history="computed"),
            reference.goc_computed(reference.front(T, n), 0.9),
        )
        for n in (2, 3, 4)
    },
    "goc computed, listed steps": (
        fc.goc(fc.fora(3), 0.9, steps=(4, 8, 13), history="computed"),
        reference.goc_computed(reference.front(T, 3), 0.9, corrected={4, 8, 13}),
    ),
    **{
        f"taylor {order}, {n}": (
            fc.taylorseer(fc.fora(n), order),
            reference.taylorseer(reference.front(T, n), order),
        )
        for order in (1, 2)
        for n in (2, 3)
    },
    **{
        f"taylor {order}, uneven": (
            fc.taylorseer(fc.explicit(compute=UNEVEN), order),
            reference.taylorseer(set(UNEVEN), order),
        )
        for order in (1, 2)
    },
    "goc on a base that skips branches one by one": (
        fc.goc(fc.Method("l2c", by_table), 0.9),
        reference.goc_on_l2c(TABLE, 0.9),
    ),
    "goc on such a base, every branch by itself": (
        fc.goc(fc.Method("l2c", by_table), 0.9, whole_blocks=False),
        reference.by_branch({key: reference.goc_emitted(steps, 0.9) for key, steps in TABLE.items()}),
    ),
    "goc with god": (
        fc.goc(fc.fora(2), 0.9, gate=fc.parts.gates.god(MEASURED, gamma=0.5, threshold=0.6)),
        reference.goc_emitted(reference.front(T, 2), 0.9, corrected=BELOW),
    ),
    "taylor 2, warmup": (fc.taylorseer(fc.warmup(fc.fora(4), 3), 2), reference.taylorseer(WARM, 2)),
}


def by_hand(model, rule):
    return reference.ddim(reference.cached(reference.diffusers_dit, model, labels(), rule), noise(), T)


def facebook_predict(model):
    return lambda x, t, step: model(x, t, labels())


def test_the_reference_without_a_cache_is_the_model(dit, facebook):
    torch.testing.assert_close(by_hand(dit, reference.everything), generate(dit, T), rtol=0, atol=1e-5)
    hand = reference.cached(reference.facebook_dit, facebook, labels(), reference.everything)
    bare = reference.ddim(facebook_predict(facebook), noise(), T)
    torch.testing.assert_close(reference.ddim(hand, noise(), T), bare, rtol=0, atol=1e-5)


def test_the_small_model_tells_the_rules_apart(dit):
    """What the others compare to 1e-5 differs by far more than that from rule to rule."""
    samples = {name: by_hand(dit, rule) for name, (_, rule) in CASES.items()}
    samples["no cache"] = generate(dit, T)
    for (a, first), (b, second) in itertools.combinations(samples.items(), 2):
        assert (first - second).abs().max() > 1e-3, f"{a} and {b} cannot be told apart"


@pytest.mark.parametrize("name", CASES)
def test_samples_equal_the_reference(dit, name):
    method, rule = CASES[name]
    with fc.apply(dit, method.plan(fc.grid(dit, T))):
        ours = generate(dit, T)
    torch.testing.assert_close(ours, by_hand(dit, rule), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["fora start 2", "fora start 3", "fora end 4", "goc emitted 0.8", "goc computed 3", "taylor 2, uneven"]
)
def test_samples_of_the_facebook_layout_equal_the_reference(facebook, name):
    method, rule = CASES[name]
    with fc.apply(facebook, method.plan(fc.grid(facebook, T))):
        ours = reference.ddim(facebook_predict(facebook), noise(), T)
    hand = reference.ddim(reference.cached(reference.facebook_dit, facebook, labels(), rule), noise(), T)
    torch.testing.assert_close(ours, hand, rtol=0, atol=1e-5)


def test_sites_named_by_pattern_equal_the_reference(facebook):
    """Only the MLPs are cached; attention always runs."""
    rule = reference.fora(reference.front(T, 2))

    def mlp_only(model, x, t, y, emit):
        return reference.facebook_dit(model, x, t, y, lambda key, f: emit(key, f) if key[1] == "mlp" else f())

    with fc.apply(facebook, fc.fora(2).plan(fc.grid(facebook, T, sites=["blocks.*.mlp"]))):
        ours = reference.ddim(facebook_predict(facebook), noise(), T)
    hand = reference.ddim(reference.cached(mlp_only, facebook, labels(), rule), noise(), T)
    torch.testing.assert_close(ours, hand, rtol=0, atol=1e-5)


def test_guidance_inside_the_model_is_one_call_a_step(facebook):
    """forward_with_cfg goes through the model's forward, so that one step of the plan is one guided call."""
    x, y = noise(), labels()

    def run(with_emit):
        return [with_emit(step, torch.full((4,), time)) for step, time in enumerate(reference.timesteps(6))]

    with torch.no_grad(), fc.apply(facebook, fc.fora(2).plan(fc.grid(facebook, 6))) as session:
        ours = run(lambda step, t: facebook.forward_with_cfg(torch.cat([x, x]), t, y, 4.0))
    hand = reference.cached(reference.facebook_dit, facebook, y, reference.fora({0, 2, 4}))

    @torch.no_grad()
    def guided(step, t):
        noise_pred, sigma = hand(torch.cat([x, x]), t, step).split(4, dim=1)
        cond, uncond = noise_pred.chunk(2)
        mixed = uncond + 4.0 * (cond - uncond)
        return torch.cat([torch.cat([mixed, mixed]), sigma], dim=1)

    assert session.stats.calls == 6
    for a, b in zip(ours, run(guided), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@torch.no_grad()
def test_one_text_for_two_images_is_skipped_as_one_for_each():
    """FLUX broadcasts it in its first block; a skipped span begins with streams of different batches."""
    flux = TINY["FLUX.1"]
    model, x = flux.model(), normal(*flux.shape, seed=3)
    plan = fc.fora(2).plan(fc.grid(model, num_steps=4))
    results = []
    for batch in (1, 2):
        with fc.apply(model, plan) as session:
            for time in (900, 600, 300, 100):
                inputs = flux.inputs(x, time)
                text = inputs["encoder_hidden_states"][:1].expand(batch, -1, -1)
                results.append(model(**{**inputs, "encoder_hidden_states": text}, return_dict=False)[0])
        assert session.stats.skipped == 2 * len(plan.grid.sites)
    for one, two in zip(results[:4], results[4:], strict=True):
        torch.testing.assert_close(one, two)


def python_calls(run):
    """The number of Python functions that a call runs."""
    count = 0

    def called(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(called)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("method", [fc.fora(2), fc.taylorseer(fc.fora(2), 1)], ids=["fora", "taylor"])
def test_keeping_the_output_of_a_site_runs_few_python_functions(dit, method):
    def calls_of_step_4(method):
        with torch.no_grad(), fc.apply(dit, method.plan(fc.grid(dit, 6))) as session:
            for step in range(4):
                dit(noise(4), timestep=torch.full((4,), 900 - step), class_labels=labels())
            calls = python_calls(lambda: dit(noise(4), timestep=torch.full((4,), 896), class_labels=labels()))
            session.new_run()  # the last step is not of interest
        return calls

    more = calls_of_step_4(method) - calls_of_step_4(fc.explicit(compute=range(6)))
    # the forward, the gate and the sum of a branch, which the model writes in line, are among them
    assert more <= 16 * len(fc.grid(dit, 6).sites)
