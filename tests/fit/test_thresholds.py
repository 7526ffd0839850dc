"""Signals of a calibration, beside diffusers' calibration and numbers taken by hand; and thresholds from them."""

import ast
from itertools import combinations

import numpy as np
import pytest
import torch
from diffusers.hooks import MagCacheConfig, mag_cache

import forecache as fc
from forecache.fit import replayed
from forecache.fit.replayed import computed_steps
from forecache.parts import decide
from forecache.parts.bounds import Bounds, Decision
from forecache.parts.signals import polynomial
from forecache.runtime.pipelines import noise_at
from forecache.sampling.sources import Sampling
from forecache.zoo import load_digits

STEPS = 8
LABELS = [3, 7]


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def stats(digits):
    return fc.calibrate(digits, LABELS, num_steps=STEPS, batch=2)


@pytest.fixture(scope="module")
def shown(digits):
    """Tensors of the same run, step by step, by diffusers' calibration and hooks of our own; and its printed ratios."""
    seen = {name: [] for name in ("x", "v", "modulated", "before", "after")}
    model = digits.transformer
    first, second = model.transformer_blocks[:2]
    handles = [
        model.register_forward_pre_hook(lambda _, args, kw: seen["x"].append(args[0].clone()), with_kwargs=True),
        model.register_forward_hook(lambda _, args, out: seen["v"].append(out[0].clone())),
        first.norm1.register_forward_hook(lambda _, args, out: seen["modulated"].append(out[0].clone())),
        first.register_forward_pre_hook(lambda _, args, kw: seen["before"].append(args[0].clone()), with_kwargs=True),
        second.register_forward_pre_hook(lambda _, args, kw: seen["after"].append(args[0].clone()), with_kwargs=True),
    ]
    digits.generate(LABELS, Sampling(STEPS, 1.5, 0))
    for handle in handles:
        handle.remove()
    return seen


def of_sample(values, sample):
    """The rows of both halves of a guidance pair of one sample, (2, ...) each step."""
    return [value[[sample, sample + 2]] for value in values]


def changes_of(values):
    """mean|v_t - v_s| / mean|v_t| of all pairs of steps."""
    return [((b - a).abs().mean() / b.abs().mean()).item() for a, b in combinations(values, 2)]


def test_ratios_are_those_of_diffusers_calibration(digits, stats, capsys):
    model = digits.transformer
    mag_cache.apply_mag_cache(model, MagCacheConfig(calibrate=True, num_inference_steps=STEPS))
    try:
        digits.generate(LABELS, Sampling(STEPS, 1.5, 0))
    finally:
        for block in model.transformer_blocks:
            for name in ("mag_cache_leader_block_hook", "mag_cache_block_hook"):
                block._diffusers_hook.remove_hook(name, recurse=False)
            del block._diffusers_hook
        del model._diffusers_hook
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("[1.0"))
    assert stats.signals.magnitude_ratios() == pytest.approx(ast.literal_eval(printed), rel=1e-4)
    by_numbers = fc.magcache(stats.signals.magnitude_ratios(), 0.3)
    assert fc.magcache(stats=stats, threshold=0.3).recipe == by_numbers.recipe


def test_the_polynomial_and_the_squares_are_those_of_the_run(stats, shown):
    x, y, squares = [], [], []
    for sample in range(2):
        m, v = of_sample(shown["modulated"], sample), of_sample(shown["v"], sample)
        for values, changes in ((m, x), (v, y)):
            pairs = zip(values[1:], values, strict=False)
            changes += [((now - before).abs().mean() / before.abs().mean()).item() for now, before in pairs]
        squares.append(
            [((v[t] - v[s]) if t > s else v[t]).square().mean().item() for s in range(STEPS) for t in range(s, STEPS)]
        )
    coefficients, r2 = stats.signals.polynomial()
    np.testing.assert_allclose(np.polyval(coefficients, x), np.polyval(np.polyfit(x, y, 4), x), rtol=1e-3)
    assert r2 == pytest.approx(1 - np.var(y - np.polyval(coefficients, x)) / np.var(y), abs=1e-4)
    own = np.asarray(stats.signals.mean_squares())
    by_hand = np.mean(squares, axis=0)
    np.testing.assert_allclose(own / own[0], by_hand / by_hand[0], rtol=1e-4)
    changes = np.mean([changes_of(of_sample(shown["v"], sample)) for sample in range(2)], axis=0)
    np.testing.assert_allclose(stats.signals.output_changes(), changes, rtol=1e-4)
    assert fc.teacache(0.1, stats=stats).recipe == fc.teacache(0.1, coefficients).recipe
    assert fc.adaptive("#.##.#.#", stats).recipe == fc.adaptive("#.##.#.#", squares=own.tolist()).recipe


def test_a_polynomial_of_least_squares_is_found_again():
    x = np.linspace(0.1, 1.3, 30)
    own = (2.0, -3.0, 0.5, 1.5, 0.25)
    coefficients, r2 = polynomial(x, np.polyval(own, x))
    assert coefficients == pytest.approx(own, abs=1e-6)
    assert r2 == pytest.approx(1.0)


RULES = {
    "first blocks": decide.FirstBlocks,
    "modulated input": lambda threshold: decide.ModulatedInput(threshold, (0.5, 0.7, 0.0)),
    "transformation rate": decide.TransformationRate,
    "filtered input": decide.FilteredInput,
    "probe": decide.Probe,
}


@pytest.mark.parametrize("name", RULES)
def test_a_replay_decides_as_the_rule_does_on_the_same_tensors(name, stats, shown, digits):
    digits.scheduler.set_timesteps(STEPS)
    levels = [noise_at(digits.scheduler, float(time)) for time in digits.scheduler.timesteps]
    pictures = set()
    for threshold in (0.02, 0.08, 0.2, 0.5, 1.5):
        rule = RULES[name](threshold)
        for bounds in (Bounds(), Bounds(first=2, max_gap=3), Bounds(at_least=5, at_most=5)):
            fixed = bounds.ends(STEPS)
            for sample in range(2):
                seen = {key: of_sample(values, sample) for key, values in shown.items()}
                state, computed, output = rule.begin(), [], None
                for step in range(STEPS):
                    forced = bounds.forced(step, computed, STEPS, fixed)
                    now = decide.Now(
                        step, STEPS, computed, forced, sigma=levels[step], sample=seen["x"][step], output=output,
                        modulated=seen["modulated"][step], before=seen["before"][step], after=seen["after"][step],
                    )  # fmt: skip
                    decision, state = rule.decide(state, now)
                    if decision is Decision.COMPUTE:
                        computed, output = [*computed, step], seen["v"][step]
                tables = [table[sample] for table in replayed._tables(rule, stats.signals)]
                assert computed_steps(rule, bounds, tables, fixed) == computed
                pictures.add(tuple(computed))
    assert len(pictures) > 5


def test_statistics_know_the_threshold_for_a_number_of_steps(stats):
    for method in (fc.fbcache(0.1), fc.goc(fc.easycache(0.05, first=2), 0.8), fc.teacache(0.1, stats=stats)):
        found = fc.threshold_for(method, stats, computed=5)
        assert abs(found.computed - 5) <= 0.5
        assert found.spread[0] <= found.computed <= found.spread[1]
        assert fc.threshold_for(method, stats, speedup=STEPS / found.computed).computed == found.computed
        assert found.method.recipe.get("base", found.method.recipe)["threshold"] == found.threshold


@pytest.mark.slow
def test_a_threshold_is_found_by_sampling(digits):
    method = fc.goc(fc.easycache(0.05, first=2), 0.8)
    found = fc.threshold_for(method, digits, LABELS, computed=6, num_steps=8, tries=4)
    with fc.apply(digits, found.method, num_steps=8) as session:
        counts = []
        for number, label in enumerate(LABELS):
            digits.generate([label], Sampling(8, 1.5, 0), number)
            counts.append(session.decided().provenance["decided"].count("#"))
    assert sum(counts) / 2 == found.computed
    near = fc.threshold_for(method, digits, LABELS, psnr=30, num_steps=8, tries=4)
    assert near.psnr >= 30
    assert near.speedup > 1


def test_what_has_no_threshold_is_refused(digits, stats):
    rule = fc.easycache(0.1)
    for method, source, more, error, words in (
        (fc.fora(2), stats, {"computed": 8}, fc.errors.PlanError, "has no threshold to look for"),
        (rule, stats, {"computed": 13}, fc.errors.PlanError, "a mean number of steps from 1 to 8"),
        (rule, stats, {}, fc.errors.PlanError, "one of three"),
        (rule, stats, {"psnr": 30}, fc.errors.InputError, "psnr= needs new ones"),
        (rule, digits, {"computed": 4}, fc.errors.InputError, "0 conditions"),
        (fc.dicache(0.1, depth=2), stats, {"computed": 4}, fc.errors.StatisticsError, "one first block"),
    ):
        with pytest.raises(error, match=words):
            fc.threshold_for(method, source, **more)


def test_signals_are_kept_in_the_file_unless_none_are_asked_for(stats, digits, tmp_path):
    path = tmp_path / "statistics.safetensors"
    stats.save(path)
    signals = fc.Statistics.load(path).signals
    assert signals.tables.keys() == stats.signals.tables.keys()
    assert all(torch.equal(table, stats.signals.tables[name]) for name, table in signals.tables.items())
    without = fc.calibrate(digits, LABELS[:1], num_steps=2, signals=0)
    assert without.signals is None
    with pytest.raises(fc.errors.StatisticsError, match="have no signals"):
        fc.magcache(stats=without)
