"""Tuning: errors of schedules from Gram matrices, the best schedule under gains, plans that a second tuning repeats."""

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

import forecache as fc
from forecache import zoo
from forecache.distributed import World
from forecache.fit.tuning import (
    AtLeast,
    ForecastSpec,
    Milliseconds,
    budgets,
    plan_search,
    proposals,
    refine,
    surrogate,
    trial_runner,
    trials,
)
from forecache.fit.tuning import forecasts as forecasts_module
from forecache.fit.tuning import gram as gram_module
from forecache.fit.tuning.fitted import Fitted
from forecache.fit.tuning.gram import Gram, measure_gram
from forecache.fit.tuning.optimal import OptimalSchedules
from forecache.fit.tuning.settings import Settings
from forecache.methods import registry
from forecache.methods.parameters import Range
from forecache.parts.forecasts import Feedback, Reuse, Taylor
from forecache.plan.method import Method
from forecache.sampling import fine as fine_module

SITES = tuple(fc.parts.Site(f"blocks.{depth}.{kind}", depth, kind) for depth in range(2) for kind in ("attn", "mlp"))
patterns = st.lists(st.integers(1, 4), min_size=2, max_size=6).map(
    lambda intervals: "".join("#" + "." * (interval - 1) for interval in intervals)
)
forecasts = st.one_of(
    st.just(Reuse()), st.builds(Taylor, st.integers(1, 3)), st.builds(Feedback, st.integers(1, 3), st.floats(0, 1))
)


def smooth_features(num_steps, seed=0, rows=5):
    """Random features that change smoothly, [site][step], and their Gram matrices."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(SITES), num_steps, rows, 7, generator=generator, dtype=torch.float64).cumsum(1)
    gram = Gram(SITES, num_steps)
    for site, feature in enumerate(features):
        gram.add(site, list(feature))
        gram.sums.append(feature.sum(1))
        gram.counts.append(torch.full((7,), rows))
    return features, gram


def emitted(features, plan):
    """What a plan gives out, by its weights, in place of the features; (S, T, R, D)."""
    given_out = features.clone()
    for site, row in enumerate(plan.rows):
        for step, cell in enumerate(row):
            if cell.reads:
                given_out[site, step] = sum(weight * given_out[site, source] for source, weight in cell.reads)
    return given_out


def planned(pattern, forecast):
    method = fc.Method("tried", fc.parts.schedules.by_step(pattern), forecast)
    return method.plan(fc.Grid(len(pattern), SITES))


@given(patterns, forecasts, st.integers(0, 20))
@settings(deadline=None, max_examples=50)
def test_errors_from_gram_matrices_are_those_of_the_features(pattern, forecast, seed):
    features, gram = smooth_features(len(pattern), seed)
    missed = (emitted(features, planned(pattern, forecast)) - features).square().sum((0, 2, 3))
    scale = float(features.square().sum())
    assert gram.errors(pattern, forecast) == pytest.approx(missed.numpy(), rel=1e-6, abs=1e-9 * scale)


@given(patterns, st.integers(0, 2), st.integers(0, 20), st.booleans())
@settings(deadline=None, max_examples=50)
def test_fitted_weights_are_least_squares_site_by_site(pattern, order, seed, centred):
    """Against torch's solver on the features themselves: with the sum to one built in, or free about the averages."""
    features, gram = smooth_features(len(pattern), seed, rows=9)
    forecast = Fitted(gram, order, centred=centred)
    plan = planned(pattern, forecast)
    features = features - features.mean(2, keepdim=True) if centred else features
    computed = []
    total = np.zeros(len(pattern))
    for step, sign in enumerate(pattern):
        if sign == "#":
            computed.insert(0, step)
            continue
        newest, *older = computed[: order + 1]
        for site, row in enumerate(plan.rows):
            base = 0 * features[site, newest] if centred else features[site, newest]
            read = [newest, *older] if centred else older
            target = (features[site, step] - base).flatten()
            changes = [(features[site, source] - base).flatten() for source in read]
            wanted = torch.linalg.lstsq(torch.stack(changes, 1), target).solution.tolist() if read else []
            reads = dict(row[step].reads)
            assert [reads.get(source, 0.0) for source in read] == pytest.approx(wanted, abs=1e-3)
            assert centred or sum(reads.values()) == pytest.approx(1)
            left = target - sum((w * change for w, change in zip(wanted, changes, strict=True)), torch.zeros(()))
            total[step] += float(left.square().sum())
    assert gram.errors(pattern, forecast) == pytest.approx(total, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("forecast", [Reuse(), Taylor(1), Taylor(2), "fitted"])
@pytest.mark.parametrize(("num_steps", "count", "longest"), [(9, 4, 4), (10, 3, 5), (8, 5, 8), (7, 1, 8), (6, 6, 3)])
def test_the_optimal_pattern_is_the_best_of_all(forecast, num_steps, count, longest):
    _, gram = smooth_features(num_steps, seed=3)
    rule = Fitted(gram, 2) if forecast == "fitted" else forecast
    gains = np.random.default_rng(1).uniform(0.1, 2, num_steps)

    def cost(pattern):
        return float(gram.errors(pattern, rule) @ gains)

    every = []
    for others in itertools.combinations(range(1, num_steps), count - 1):
        pattern = "".join("#" if step in (0, *others) else "." for step in range(num_steps))
        if max(map(len, pattern.split("#"))) < longest:
            every.append(pattern)
    best = min(every, key=cost)
    optimal = OptimalSchedules(gram, rule, longest).pattern(gains, count)
    assert optimal.count("#") == count
    assert cost(optimal) == pytest.approx(cost(best), rel=1e-9)


def test_the_gains_behind_the_measurements_are_recovered():
    rng = np.random.default_rng(0)
    truth = surrogate.basis(20, 6) @ rng.uniform(0.5, 3, 6)
    errors = [rng.uniform(0, 1, 20) * (rng.uniform(0, 1, 20) < 0.6) for _ in range(200)]
    measured = [float(-10 * np.log10(row @ truth * 1e-4)) for row in errors]
    fitted = surrogate.fit(errors, measured)
    expected = [fitted.decibels(row) for row in errors]
    assert np.abs(np.array(expected) - measured).mean() < 0.25
    assert np.corrcoef(fitted.gains, truth)[0, 1] > 0.9


@given(st.integers(1, 6), st.integers(0, 30))
@settings(deadline=None, max_examples=30)
def test_nonnegative_least_squares_meets_its_conditions(size, seed):
    """At the optimum every entry is zero with an uphill slope, or positive with none."""
    rng = np.random.default_rng(seed)
    system, target = rng.normal(size=(size + 4, size)), rng.normal(size=size + 4)
    solution = surrogate.nonnegative(system, target)
    slope = system.T @ (system @ solution - target)
    assert (solution >= 0).all()
    assert (slope > -1e-4).all()
    assert np.abs(slope[solution > 1e-9]).max(initial=0) < 1e-4


@pytest.mark.parametrize(("num_steps", "count"), [(50, 17), (20, 7), (20, 13), (9, 2), (5, 4), (24, 3)])
def test_a_search_proposes_new_patterns_that_fit_until_its_number_is_used_up(num_steps, count):
    _, gram = smooth_features(num_steps)
    history = proposals.TrialHistory(gram, [ForecastSpec.parse(name) for name in ("taylor 2", "taylor 1")], 8)
    search = proposals.ScheduleSearch(history, count, 30, seed=0)
    seen = set()
    while (proposal := search.propose()) is not None:
        pattern, forecast = proposal
        assert proposal not in seen
        assert (len(pattern), pattern.count("#"), pattern[0]) == (num_steps, count, "#")
        assert max(map(len, pattern.split("#"))) < 8
        seen.add(proposal)
        score = -10 * np.log10(gram.errors(pattern, history.forecast(forecast)).sum() + 1e-9)
        search.tell(trials.Trial(pattern, forecast, float(score), own=float(score)))
    assert len(seen) <= 30 + proposals.LAST
    assert len({pattern for pattern, _ in list(seen)}) <= 30
    finalists = search.finalists(5)
    assert search.best in finalists
    assert len(finalists) == min(5, len(seen))
    assert sum(map(search.is_even, finalists)) >= 2
    best = search.best_by_schedule(3)
    assert best[0] == search.best
    assert len({trial.pattern for trial in best}) == len(best) == min(3, len({pattern for pattern, _ in seen}))
    assert best == sorted(best, key=lambda trial: -trial.psnr)
    assert len(seen) >= 30 or num_steps < 10 or count * 8 == num_steps  # then only one pattern fits


@pytest.mark.parametrize("correcting", [True, False])
def test_feedback_and_correction_are_tried_when_the_schedules_are_used_up(correcting):
    """A stand-in for samples that likes both: feedback of 0.3, and a correction of 0.7."""
    _, gram = smooth_features(9)
    history = proposals.TrialHistory(gram, [ForecastSpec.parse("taylor 1")], 8, correcting)
    search = proposals.ScheduleSearch(history, 3, 1, seed=0)
    while (proposal := search.propose()) is not None:
        pattern, forecast = proposal
        strength, theta = dict(forecast.parameters).get("feedback", 0.0), forecast.theta or 0.0
        search.tell(trials.Trial(pattern, forecast, score := 40 - abs(strength - 0.3) - abs(theta - 0.7), own=score))
    assert str(search.best.forecast) == "taylor 1, feedback 0.3" + (", eoc 0.7" if correcting else "")
    assert len({trial.pattern for trial in history.trials}) == 1
    assert any(trial.forecast.theta for trial in history.trials) == correcting


@given(patterns, st.integers(0, 20), st.data())
@settings(deadline=None, max_examples=30)
def test_a_shift_moves_weight_to_the_newest_feature_and_a_scale_makes_all_larger(pattern, seed, data):
    plan = planned(pattern, Taylor(2))
    skipped = [step for step, sign in enumerate(pattern) if sign == "."]
    by = {(way, step): data.draw(st.floats(-0.3, 0.3)) for way in forecasts_module.WAYS for step in skipped}
    adjusted = planned(pattern, forecasts_module.Adjusted(Taylor(2), by))
    for before, after in zip(plan.rows, adjusted.rows, strict=True):
        for step, (was, now) in enumerate(zip(before, after, strict=True)):
            if was.computed:
                assert now == was
                continue
            newest, *others = [weight for _, weight in was.reads]
            if others:
                newest, others[0] = newest + by["shift", step], others[0] - by["shift", step]
            wanted = [weight * (1 + by["scale", step]) for weight in (newest, *others)]
            assert [weight for _, weight in now.reads] == pytest.approx(wanted)
    adjustable = refine.adjustable(plan)
    assert [step for way, step in adjustable if way == "scale"] == skipped
    several = [step for step in skipped if len(plan.rows[0][step].reads) > 1]
    assert [step for way, step in adjustable if way == "shift"] == several
    before = ForecastSpec.parse("fitted 1, feedback 0.5, eoc 0.6")
    once = before.adjusted(pattern, by)
    assert once.adjustments(pattern) == {place: pytest.approx(value, abs=1e-4) for place, value in by.items()}
    assert once.unrefined == before
    twice = once.adjusted(pattern, by).adjustments(pattern)
    assert twice == {place: pytest.approx(2 * value, abs=2e-4) for place, value in by.items()}


@given(st.integers(1, 5), st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_numbers_change_as_least_squares_says(count, seed):
    """Images that are linear in the numbers: numpy's least squares, every image weighted with one over its error."""
    rng = np.random.default_rng(seed)
    base, missed = rng.normal(size=(3, 2, 4, 4)), rng.normal(size=(3, 2, 4, 4)) * [[[[0.1]]], [[[1]]], [[[5]]]]
    directions = rng.normal(size=(count, 3, 2, 4, 4))
    jacobian = refine.Jacobian(torch.from_numpy(base), torch.from_numpy(base + missed))
    for direction in directions:
        jacobian.add(torch.from_numpy(base + 0.05 * direction), 0.05)
    per_image = 1 / np.sqrt((missed**2).mean((1, 2, 3), keepdims=True))
    system = (directions * per_image).reshape(count, -1).T
    damped = np.diag(np.sqrt(refine.DAMPING * (system**2).sum(0)))
    augmented = np.concatenate([system, damped]), np.concatenate([(missed * per_image).ravel(), np.zeros(count)])
    expected = np.linalg.lstsq(*augmented, rcond=None)[0].clip(-0.7, 0.7)
    changes = refine.gauss_newton_step(jacobian.normal_equations(), [0.7] * count)
    assert changes == pytest.approx(expected, rel=1e-6, abs=1e-9)


class Lenient:
    """A runner that judges every trial to be what it says."""

    def judge(self, trial):
        return trial


def test_the_schedule_that_is_best_after_a_round_is_refined_to_the_end(monkeypatch):
    """Of the best three, the second gains most in its round; the fourth is not looked at."""
    gains = {"#.#.": 0.1, "##..": 1.0, "#..#": 0.2, "#...": 9.0}
    goc = ForecastSpec.parse("goc 1")
    best, *others = [trials.Trial(pattern, goc, 40 - 0.3 * rank) for rank, pattern in enumerate(gains)]
    rounds = []

    def refined(self, trial, count):
        rounds.append((trial.pattern, count))
        return replace(trial, psnr=trial.psnr + gains[trial.pattern] * count)

    monkeypatch.setattr(refine.Refiner, "refine", refined)
    monkeypatch.setattr(refine, "SCHEDULES", 3)
    monkeypatch.setattr(refine, "ROUNDS", 4)
    refined_best = refine.Refiner(Lenient()).best(best, others)
    assert rounds == [("#.#.", 1), ("##..", 1), ("#..#", 1), ("##..", 3)]
    assert (refined_best.pattern, refined_best.psnr) == ("##..", pytest.approx(40 - 0.3 + 4))


# ---- on the bundled model -------------------------------------------------------------------------------------------

LABELS = list(range(4))
HOW = {"num_steps": 6, "budget": [0.55, 0.4], "number": 6, "longest": 4, "reference": "own"}


@pytest.fixture(scope="module", autouse=True)
def _short():
    """One round of refining, and few finalists."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refine, "ROUNDS", 1)
        patch.setattr(refine, "SCHEDULES", 1)
        patch.setattr(plan_search, "FINALISTS", 3)
        yield


@pytest.fixture(scope="module")
def digits():
    return zoo.load_digits()


@pytest.fixture(scope="module")
def tuned(digits):
    return fc.tune(digits, LABELS, **HOW, held_out=LABELS)


def test_gram_matrices_are_those_of_the_features_that_the_model_computes(digits):
    source = fc.sampling.sources.as_source(digits)
    how = fc.sampling.sources.Sampling(4, 1.5, 0)
    gram, images = measure_gram(source, LABELS, how, batch=2)
    assert torch.equal(images, torch.cat([source.generate(LABELS[:2], how), source.generate(LABELS[2:], how, 2)]))
    norms = np.diagonal(gram.matrices, axis1=1, axis2=2)
    assert (norms > 0).all()
    assert (np.abs(gram.matrices) <= np.sqrt(norms[:, :, None] * norms[:, None, :]) * (1 + 1e-6)).all()


def test_centred_gram_matrices_are_those_of_the_features_less_their_channels_means(digits, monkeypatch):
    """All entries of the features, by hand."""
    source, how, seen = fc.sampling.sources.as_source(digits), fc.sampling.sources.Sampling(3, 1.5, 0), {}
    monkeypatch.setattr(gram_module, "COORDINATES", 10**9)
    watched = gram_module._Recorder.record

    def see(self, step, site, feature):
        seen.setdefault((site, step), []).append(feature)
        watched(self, step, site, feature)

    monkeypatch.setattr(gram_module._Recorder, "record", see)
    gram, _ = measure_gram(source, LABELS, how, batch=2)
    for site in range(len(gram.sites)):
        features = [torch.cat(seen[site, step]).double() for step in range(3)]
        about = torch.stack([(feature - feature.mean((0, 1))).flatten() for feature in features])
        assert gram.centred[site] == pytest.approx((about @ about.T).numpy(), rel=1e-5, abs=1e-4)
        assert gram.means[site].numpy() == pytest.approx(torch.stack(features).mean((1, 2)).numpy(), rel=1e-4, abs=1e-5)


def test_a_correction_is_eocs_on_the_averages_of_the_same_samples(digits):
    """As `fc.eoc` makes it of `fc.calibrate`'s averages over both halves of the pair."""
    source, pattern = fc.sampling.sources.as_source(digits), "#..#.#"
    gram, _ = measure_gram(source, LABELS, fc.sampling.sources.Sampling(6, 1.5, 3), batch=2)
    statistics = fc.calibrate(digits, LABELS, num_steps=6, seed=3, batch=4, rows="all")
    base = fc.feedback(fc.explicit(pattern=pattern), 1, 0.5)
    grid = fc.grid(digits, 6)
    expected = fc.eoc(base, statistics, 0.6, form="additive", judge="all", per="channel").plan(grid)
    method = ForecastSpec.parse("taylor 1, feedback 0.5, eoc 0.6").method(pattern, gram)
    plan = method.plan(grid)
    assert plan.rows == expected.rows
    assert {name.split("/")[1] for name in plan.constants} == {"1", "2", "4"}
    for name, shift in expected.constants.items():
        assert torch.allclose(plan.constants[name], shift, rtol=1e-4, atol=1e-5)
    assert ForecastSpec.parse("taylor 1, feedback 0.5").correction(gram) is None
    with pytest.raises(fc.errors.StatisticsError):
        method.plan(fc.grid(digits, 7))


@pytest.mark.parametrize(
    ("name", "by", "expected"),
    [
        ("goc 0.8", 0.3, "goc 0.8, eoc 1"),
        ("fitted 1, feedback 0.5, eoc 0.3", 0.3, "fitted 1, feedback 0.5, eoc 0.6"),
        ("taylor 2, eoc 0.4", -0.3, "taylor 2, eoc 0.1"),
        ("taylor 2, eoc 0.1", -0.3, None),
        ("taylor 2", -0.3, "taylor 2, eoc 0.5"),
        ("reuse, eoc 1.8", 0.3, None),
    ],
)
def test_corrections_are_strengthened_step_by_step(name, by, expected):
    stronger = ForecastSpec.parse(name).corrected(by)
    assert (stronger and str(stronger)) == expected


@pytest.mark.parametrize(
    ("name", "by", "expected"),
    [
        ("goc 0.8, eoc 0.3", 0.15, "goc 0.95, eoc 0.3"),
        ("fitted 1, feedback 0.15, eoc 0.3", -0.15, "fitted 1, eoc 0.3"),
        ("taylor 2", 0.15, "taylor 2, feedback 0.15"),
        ("taylor 2, feedback 0.95", 0.15, None),
        ("reuse, eoc 1", 0.15, "goc 0.15, eoc 1"),
        ("reuse", -0.15, None),
    ],
)
def test_feedback_is_strengthened_step_by_step(name, by, expected):
    stronger = ForecastSpec.parse(name).strengthened(by)
    assert (stronger and str(stronger)) == expected


numbers = {
    "fitted": st.fixed_dictionaries({"order": st.integers(0, 9)}, optional={"feedback": st.floats(0, 1)}),
    "taylor": st.fixed_dictionaries({"order": st.integers(0, 9)}, optional={"feedback": st.floats(0, 1)}),
    "goc": st.fixed_dictionaries({"eta": st.floats(0, 10)}),
    "reuse": st.just({}),
}
thetas = st.none() | st.floats(0, 2, exclude_min=True, exclude_max=True)


@given(st.sampled_from(sorted(numbers)).flatmap(lambda rule: st.tuples(st.just(rule), numbers[rule])), thetas, patterns)
def test_a_forecast_is_read_back_from_its_document(rule, theta, pattern):
    spec = ForecastSpec.of(*rule, theta)
    refined = spec.adjusted(pattern, {(way, 1): 0.12345 for way in forecasts_module.WAYS})
    for forecast in (spec, refined):
        assert ForecastSpec.from_document(json.loads(json.dumps(forecast.as_document()))) == forecast
    assert refined.is_refined == ("." in pattern)


@pytest.mark.parametrize(
    "text", ["fitted 2, feedback 0.5, eoc 0.6", "taylor 1", "goc 0.8", "reuse", "reuse, eoc 1.8", "fitted 0, eoc 1"]
)
def test_a_forecast_is_read_back_from_its_text(text):
    assert str(ForecastSpec.parse(text)) == text


NO_FORECASTS = [
    *("", "magic", "goc", "reuse 1", "taylor", "taylor 1.5", "taylor 12", "taylor -1", "taylor 1, eta 2", "taylor ²"),
    *("goc 0.8, goc 0.8", "goc nan", "goc 1e0", "goc 0.8,eoc 1", "goc 0.8, eoc 0", "goc 0.8, eoc 2", "taylor 1 2"),
    *("goc 0.8, refined", "goc 0.8, shift 0.1", "taylor 1, order 2", "taylor 1, feedback 0.5, feedback 0.5"),
    "taylor 1, feedback 1.2",
]


@pytest.mark.parametrize("text", NO_FORECASTS)
def test_a_text_that_names_no_forecast_is_refused(text):
    with pytest.raises(fc.errors.InputError, match=r"There is no forecast .*; there are: fitted ORDER\[, feedback"):
        ForecastSpec.parse(text)


NO_DOCUMENTS = [
    *(None, [], {}, {"rule": 3}, {"rule": "magic"}, {"rule": "goc"}, {"rule": "goc", "eta": "1"}),
    *({"rule": "goc", "eta": 1e9}, {"rule": "taylor", "order": 1.0}, {"rule": "taylor", "order": True}),
    *({"rule": "reuse", "theta": 1.0}, {"rule": "reuse", "eoc": 2.5}, {"rule": "reuse", "shifts": [0.1]}),
    *({"rule": "reuse", "shifts": 1, "scales": 1}, {"rule": "reuse", "shifts": ["a"], "scales": ["b"]}),
    {"rule": "reuse", "rules": 1},
]


@pytest.mark.parametrize("document", NO_DOCUMENTS)
def test_a_document_that_is_no_forecast_is_refused(document):
    with pytest.raises(ValueError, match=r"."):
        ForecastSpec.from_document(document)


@dataclass(frozen=True)
class Damped:
    """A share of the oldest computed feature, the rest of the newest."""

    share: float

    def reads(self, step, computed, site=None):
        return {computed[0]: 1 - self.share, computed[-1]: self.share} if len(computed) > 1 else {computed[0]: 1.0}


@pytest.fixture
def damped_method():
    @registry.register
    def damped(base: Method, share: Annotated[float, Range(least=0, most=0.5)] = 0.2) -> Method:
        """Reuse damped by the oldest feature.

        base: the schedule
        share: of the oldest feature
        """
        return base.with_forecast("damped", Damped(share))

    yield
    registry.unregister("damped")


@pytest.mark.usefixtures("damped_method")
def test_a_registered_method_of_ones_own_is_tuned_with(digits, tmp_path):
    """It is written, sampled with, made stronger, and kept in the file, without another line."""
    assert "; damped SHARE" in forecasts_module.vocabulary()
    how = FEW | {"forecasts": ["damped 0.1"], "path": tmp_path / "tune.json"}
    tuned = fc.tune(digits, LABELS[:1], **how, budget=0.55)
    names = [str(trial.forecast) for trial in tuned.trials]
    assert {"damped 0.1", "damped 0.25"} <= set(names)
    assert [str(trial.forecast) for trial in fc.tune(digits, LABELS[:1], **how, budget=0.55).trials] == names
    assert ForecastSpec.parse("damped 0.4").strengthened(0.15) is None


def test_the_registered_forecasts_are_rules():
    """Those whose parameters are numbers; GOC is the rule of tuning itself."""
    gram = Gram(SITES, 4)
    spec = ForecastSpec.parse("feedback 1, strength 0.25, eoc 0.5")
    assert spec.forecast(gram) == Feedback(1, 0.25)
    assert str(spec.strengthened(0.15)) == "feedback 1, strength 0.4, eoc 0.5"
    assert str(ForecastSpec.parse("feedback 2, strength 0.5")) == "feedback 2"
    assert ForecastSpec.parse("taylorseer 2").forecast(gram) == Taylor(2)
    assert ForecastSpec.parse("taylorseer 2").strengthened(0.15) is None
    named = {name for name in registry.methods() if forecasts_module.rule_named(name) is not None}
    assert {"taylorseer", "feedback", "goc"} <= named
    assert not named & {"fora", "explicit", "warmup", "eoc", "l2c", "smoothcache", "procache", "selective", "toca"}


def test_a_tuned_plan_samples_as_well_as_it_says(digits, tuned):
    source = fc.sampling.sources.as_source(digits)
    for plan, trial, unseen in zip(tuned.plans, tuned.best, tuned.held_out, strict=True):
        assert (trial.own, unseen.own) == (trial.psnr, unseen.psnr)
        for seeds, said in ((range(1000, 1004), trial.psnr), ([2000], unseen.psnr)):
            decibels = []
            for seed in seeds:
                how = fc.sampling.sources.Sampling(6, 1.5, seed)
                uncached = source.generate(LABELS, how)
                with fc.apply(digits, plan):
                    images = source.generate(LABELS, how)
                decibels.append(fc.evaluate.psnr(images, uncached).mean().item())
            assert sum(decibels) / len(decibels) == pytest.approx(said, abs=1e-4)


def test_a_tuned_plan_keeps_its_budget_and_is_no_worse_than_even_steps(digits, tuned):
    inputs = fc.sampling.sources.call_inputs(fc.sampling.sources.as_source(digits), 2)
    for plan, trial, even, budget in zip(tuned.plans, tuned.best, tuned.even, HOW["budget"], strict=True):
        assert 1 / plan.cost(digits, guidance=True, inputs=inputs).speedup <= budget
        assert trial.psnr >= even.psnr
        assert trial.computed == even.computed
        assert "on held-out samples" in plan.provenance["psnr"]


def test_refinement_makes_it_better_or_leaves_it(digits, tuned):
    plain = fc.tune(digits, LABELS, **HOW, refining=False)
    for rough, fine in zip(plain.best, tuned.best, strict=True):
        assert (fine.pattern, fine.forecast.unrefined) == (rough.pattern, rough.forecast)
        assert fine.psnr > rough.psnr if fine.forecast.is_refined else fine == rough
    assert any(trial.forecast.is_refined for trial in tuned.best)


def test_the_same_tuning_gives_the_same_plans_also_after_an_interruption(digits, tuned, tmp_path):
    class EnoughError(Exception):
        pass

    def stop(trial):
        if len(json.loads((tmp_path / "tune.json").read_text())["trials"]) == 5:
            raise EnoughError

    with pytest.raises(EnoughError):
        fc.tune(digits, LABELS, **HOW, held_out=LABELS, path=tmp_path / "tune.json", on_trial=stop)
    sampled = []
    again = fc.tune(digits, LABELS, **HOW, held_out=LABELS, path=tmp_path / "tune.json", on_trial=sampled.append)
    both = json.loads((tmp_path / "tune.json").read_text())["trials"]
    assert len(sampled) == len(both) - 5
    assert {trial["noise"] for trial in both} == {0, 1, 2, 3}
    assert [plan.rows for plan in again.plans] == [plan.rows for plan in tuned.plans]
    assert again.trials == tuned.trials


def test_a_tuned_plan_is_a_file_like_any_other(tuned, tmp_path):
    tuned.plan.save(tmp_path / "plan.json")
    assert fc.Plan.load(tmp_path / "plan.json").rows == tuned.plan.rows


def test_another_tuning_in_the_file_is_refused(digits, tmp_path):
    path = tmp_path / "tune.json"
    fc.tune(digits, LABELS[:1], **FEW, budget=0.6, path=path)
    before = path.read_bytes()
    with pytest.raises(fc.errors.SearchFileError, match=r"holds another tuning \(seed differ\)"):
        fc.tune(digits, LABELS[:1], **FEW, budget=0.6, path=path, seed=7)
    assert path.read_bytes() == before


def test_no_more_model_calls_are_made_than_were_announced(digits, monkeypatch):
    monkeypatch.setattr(refine, "SCHEDULES", 2)
    announced, calls = [], []
    few = {"num_steps": 4, "budget": 0.6, "number": 3, "held_out": LABELS[1:2], "reference": "own"}
    fc.tune(digits, LABELS[:1], **few, on_start=announced.append, on_step=lambda *_: calls.append(1))
    assert announced[0] / 3 < len(calls) <= announced[0]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"budget": 0.05}, "choose another budget"),
        ({"budget": 1.0}, "between 0 and 1"),
        ({"budget": 0}, "between 0 and 1"),
        ({"budget": Milliseconds(0.001)}, "0.001 ms were asked for; 4 images take .* choose a time between these"),
        ({"budget": [0.5, Milliseconds(1e7)]}, "ms were asked for"),
        ({"budget": [0.5, Milliseconds(float("nan"))]}, r"Milliseconds\(value=nan\) was asked for.* over 0"),
        ({"budget": AtLeast(float("inf"))}, "over 0"),
        ({"budget": AtLeast(-3)}, "over 0"),
        (
            {"forecasts": [replace(ForecastSpec.parse("goc 0.8"), shifts=(0.1,), scales=(0.0,))]},
            "'goc 0.8, refined' has refined weights; tuning refines them itself: give 'goc 0.8'",
        ),
        ({"forecasts": ["magic"]}, "There is no forecast 'magic'; there are: fitted ORDER"),
        ({"number": 0}, "from 1 on"),
        ({"reference": "fine"}, "reference is one of converged, own, not 'fine'"),
        ({"held_out": [0], "held_out_seed": 1002}, "another held_out_seed"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_sampled(digits, asked, message):
    def never(step):
        raise AssertionError

    with pytest.raises(fc.errors.InputError, match=message):
        fc.tune(digits, LABELS, num_steps=6, on_step=never, **asked)


FEW = {
    **{"num_steps": 5, "longest": 3, "number": 2, "forecasts": ["taylor 1"], "correcting": False, "refining": False},
    "reference": "own",
}


def test_plans_are_ranked_by_the_converged_samples_and_both_figures_are_told(digits, monkeypatch):
    """The figures are those of images that are sampled by hand, in the steps that the result names."""
    monkeypatch.setattr(fine_module, "LEAST_STEPS", 6)
    monkeypatch.setattr(fine_module, "MOST_STEPS", 24)
    monkeypatch.setattr(trial_runner, "NOISES", 1)
    how = FEW | {"num_steps": 3, "reference": "converged"}
    tuned = fc.tune(digits, LABELS[:1], **how, budget=0.7, held_out=LABELS[1:2])
    assert tuned.fine is not None
    assert tuned.best[0].psnr == max(trial.psnr for trial in (*tuned.best, *tuned.even))
    solver = DPMSolverMultistepScheduler.from_config(
        {**digits.scheduler.config, "timestep_spacing": "linspace", "final_sigmas_type": "zero"}
    )
    sampling = fc.sampling.sources.Sampling(3, 1.5, 2000)
    own = digits.generate(LABELS[1:2], sampling)
    best = replace(digits, scheduler=solver).generate(LABELS[1:2], replace(sampling, num_steps=tuned.fine.num_steps))
    with fc.apply(digits, tuned.plan):
        images = digits.generate(LABELS[1:2], sampling)
    pairs = [(images, best), (images, own), (own, best)]
    by_hand = [fc.evaluate.psnr(*pair).mean().item() for pair in pairs]
    row = tuned.held_out[0]
    assert [row.psnr, row.own, row.uncached] == pytest.approx(by_hand, abs=1e-3)
    assert f"{tuned.fine.num_steps} steps of DPM-Solver++ 2M" in tuned.show()
    assert tuned.plan.provenance["reference"].startswith("converged: ")


@pytest.mark.slow
def test_the_cheapest_plan_that_is_good_enough(digits):
    """Bisection gives what looking at every number of computed steps gives."""
    every = {count: fc.tune(digits, LABELS, **FEW, budget=count / 5 + 0.03).best[0] for count in (2, 3, 4)}
    assert [trial.computed for trial in every.values()] == [2, 3, 4]
    wanted = (every[2].psnr + every[3].psnr) / 2
    tuned = fc.tune(digits, LABELS, **FEW, budget=[AtLeast(wanted), AtLeast(1.0)])
    assert [trial.computed for trial in tuned.best] == [3, 2]
    assert tuned.best[0] == every[3]
    best = max(every.values(), key=lambda trial: trial.psnr).psnr
    with pytest.raises(fc.errors.InputError, match=rf"At least 75 dB .* {best:.2f} dB"):
        fc.tune(digits, LABELS, **FEW, budget=AtLeast(75.0))


@pytest.mark.parametrize(("budget", "count"), [(69.9, 2), (70.1, 3), (99.0, 4)])
def test_a_time_is_as_many_steps_as_fit_into_it(digits, monkeypatch, budget, count):
    """A run without a cache takes 100 ms and one with a single computed step 40, so that each further one takes 15."""
    times = itertools.cycle([100.0, 40.0])
    monkeypatch.setattr(budgets.BudgetConverter, "_batch_milliseconds", lambda converter: next(times))
    assert fc.tune(digits, LABELS, **FEW, budget=Milliseconds(budget)).best[0].computed == count


def test_a_time_that_is_asked_for_is_measured(digits):
    source = fc.sampling.sources.as_source(digits)
    settings = Settings.of_source(
        source,
        (1, 2),
        num_steps=6,
        guidance=1.5,
        seed=0,
        reference="own",
        batch=2,
        forecasts=(ForecastSpec.parse("reuse"),),
        longest=4,
        trials=1,
        search_seed=0,
    )
    converter = budgets.BudgetConverter(source, settings, World())
    full, least = converter._milliseconds
    assert full > least > 0
    assert converter.computed_steps(Milliseconds(full - 1e-3 * (full - least))) == 5


PROCESSES = """
import json, sys
import torch
import forecache as fc
from forecache import zoo
from forecache.distributed import started
from forecache.fit.tuning import plan_search, refine, trial_runner
from forecache.sampling import fine

torch.set_num_threads(1)
refine.ROUNDS, refine.SCHEDULES, plan_search.FINALISTS, trial_runner.NOISES = 1, 1, 2, 1
fine.LEAST_STEPS, fine.MOST_STEPS = 8, 32
with started() as world:
    calls = []
    tuned = fc.tune(zoo.load_digits(), [0, 1, 2], num_steps=4, longest=3, number=2, budget=0.55, batch=1,
                    forecasts=["taylor 1"], held_out=[4], path=sys.argv[1], on_start=calls.append)
    open(f"{sys.argv[1]}.{world.rank}", "w").write(json.dumps([world.size, calls, tuned.show(), tuned.fine.num_steps]))
"""


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path):
    (tmp_path / "script.py").write_text(PROCESSES)
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node"]
    for size in ("1", "2"):
        words = [*torchrun, size, str(tmp_path / "script.py"), str(tmp_path / f"{size}.json")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    one, *two = (json.loads((tmp_path / name).read_text()) for name in ("1.json.0", "2.json.0", "2.json.1"))
    assert [size for size, *_ in (one, *two)] == [1, 2, 2]
    assert len({fine for *_, fine in (one, *two)}) == 1
    judging = 2 * (4 + one[3])  # the held-out sample, without a cache and with the plan, and converged; at most
    calls = [announced for _, (announced,), *_ in (one, *two)]
    share = [(count - judging * (rank == 0)) / (calls[0] - judging) for rank, count in enumerate(calls[1:])]
    assert share == [pytest.approx(2 / 3), pytest.approx(1 / 3)]
    assert [text for _, _, text, _ in two] == [one[2]] * 2
    alone, shared = (json.loads((tmp_path / f"{size}.json").read_text()) for size in (1, 2))
    assert alone["settings"] == shared["settings"]
    for mine, theirs in zip(alone["trials"], shared["trials"], strict=True):
        near = {name: pytest.approx(theirs[name], abs=1e-6) for name in ("psnr", "own")}
        assert mine == {**theirs, **near}


@pytest.mark.parametrize(
    ("model", "computed"),
    [*(("digits", count) for count in (13, 10, 9, 7, 6, 5, 4)), *(("digits-text", count) for count in (13, 9, 6, 5))],
)
def test_the_plans_that_ship_fit_their_model(model, computed):
    loaded = zoo.load_digits() if model == "digits" else zoo.load_digits_text()
    target = fc.sampling.sources.as_source(loaded).target
    plan = fc.Plan.load(zoo.record(model).tuned_path(computed))
    assert {sum(cell.computed for cell in row) for row in plan.rows} == {computed}
    with fc.apply(target, plan):
        pass
    assert "on held-out samples" in plan.provenance["psnr"]


def test_a_plan_that_does_not_ship_is_named_with_those_that_do():
    with pytest.raises(
        fc.errors.InputError, match=r"plans for \[4, 5, 6, 7, 9, 10, 13\] computed steps of 20, not for 8"
    ):
        zoo.record("digits").tuned_path(8)
