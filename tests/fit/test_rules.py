"""Fits of rules that decide while a plan runs, beside diffusers' calibration and numbers taken by hand."""

import ast

import numpy as np
import pytest
import torch
from diffusers.hooks import MagCacheConfig, mag_cache

import forecache as fc
from forecache.fit.rules import _polynomial
from forecache.sampling.sources import Sampling
from forecache.zoo import load_digits

STEPS = 6
LABELS = [3, 7]


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_ratios_are_those_of_diffusers_calibration_and_pairs_those_of_a_run(digits, capsys):
    rules = fc.fit.measure_rules(digits, LABELS, num_steps=STEPS, batch=2)
    seen = {"m": [], "v": []}
    model = digits.transformer
    handles = [
        model.transformer_blocks[0].norm1.register_forward_hook(lambda _, args, out: seen["m"].append(out[0].clone())),
        model.register_forward_hook(lambda _, args, out: seen["v"].append(out[0].clone())),
    ]
    mag_cache.apply_mag_cache(model, MagCacheConfig(calibrate=True, num_inference_steps=STEPS))
    try:
        digits.generate(LABELS, Sampling(STEPS, 1.5, 0))
    finally:
        for handle in handles:
            handle.remove()
        for block in model.transformer_blocks:
            for name in ("mag_cache_leader_block_hook", "mag_cache_block_hook"):
                block._diffusers_hook.remove_hook(name, recurse=False)
            del block._diffusers_hook
        del model._diffusers_hook
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("[1.0"))
    assert rules.ratios == pytest.approx(ast.literal_eval(printed), rel=1e-5)

    def changes(values):
        pairs = zip(values[1:], values, strict=False)
        return [((now - before).abs().mean() / before.abs().mean()).item() for now, before in pairs]

    x, y = changes(seen["m"]), changes(seen["v"])
    assert rules.coefficients == pytest.approx(np.polyfit(x, y, 4), rel=1e-3)
    assert rules.r2 == pytest.approx(1 - np.var(y - np.polyval(rules.coefficients, x)) / np.var(y), abs=1e-4)
    outputs = seen["v"]
    pairs = [((b - a).abs().mean() / b.abs().mean()).item() for n, a in enumerate(outputs) for b in outputs[n + 1 :]]
    assert rules.changes == pytest.approx(pairs, rel=1e-5)
    assert rules.samples == 2
    fc.teacache(0.1, rules.coefficients).plan(fc.grid(digits, STEPS))
    assert fc.magcache(rules.ratios).plan(fc.grid(digits, STEPS)).picture().startswith("#")


def test_a_polynomial_of_least_squares_is_found_again():
    x = torch.linspace(0.1, 1.3, 30).tolist()
    own = (2.0, -3.0, 0.5, 1.5, 0.25)
    coefficients, r2 = _polynomial([(value, float(np.polyval(own, value))) for value in x])
    assert coefficients == pytest.approx(own, abs=1e-6)
    assert r2 == pytest.approx(1.0)


@pytest.mark.slow
def test_a_threshold_gives_the_wanted_number_of_computed_steps(digits):
    method = fc.goc(fc.easycache(0.05, first=2), 0.8)
    found = fc.fit.threshold_for(method, digits, LABELS, computed=6, num_steps=8, tries=5)
    assert abs(found.computed - 6) <= 1
    assert found.spread[0] <= found.computed <= found.spread[1]
    with fc.apply(digits, found.method, num_steps=8) as session:
        counts = []
        for number, label in enumerate(LABELS):
            digits.generate([label], Sampling(8, 1.5, 0), number)
            counts.append(session.decided().provenance["decided"].count("#"))
    assert sum(counts) / 2 == found.computed
    assert found.method.recipe["base"]["threshold"] == found.threshold


def test_what_has_no_threshold_is_refused(digits):
    with pytest.raises(fc.errors.PlanError, match="has no threshold to look for"):
        fc.fit.threshold_for(fc.fora(2), digits, LABELS, computed=8, num_steps=12)
    with pytest.raises(fc.errors.PlanError, match="a mean number of steps from 1 to 12"):
        fc.fit.threshold_for(fc.easycache(0.1), digits, LABELS, computed=13, num_steps=12)
    with pytest.raises(fc.errors.InputError, match="there are 0"):
        fc.fit.measure_rules(digits, [], num_steps=4)
