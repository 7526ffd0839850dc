"""Tuning: errors of schedules from inner products, the best schedule under gains, plans that are found again."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import forecache as fc
from forecache import zoo
from forecache.distributed import World
from forecache.fit.tuning import AtLeast, Milliseconds, budgets, polish, proposals, surrogate, trials, tuner
from forecache.fit.tuning import products as products_module
from forecache.fit.tuning.optimal import Optimal
from forecache.fit.tuning.products import Fitted, Products, observe
from forecache.fit.tuning.settings import settings_of
from forecache.parts.forecasts import Feedback, Reuse, Taylor

SITES = tuple(fc.parts.Site(f"blocks.{depth}.{kind}", depth, kind) for depth in range(2) for kind in ("attn", "mlp"))
patterns = st.lists(st.integers(1, 4), min_size=2, max_size=6).map(
    lambda intervals: "".join("#" + "." * (interval - 1) for interval in intervals)
)
forecasts = st.one_of(
    st.just(Reuse()), st.builds(Taylor, st.integers(1, 3)), st.builds(Feedback, st.integers(1, 3), st.floats(0, 1))
)


def made(num_steps, seed=0, rows=5):
    """Random features that change smoothly, [site][step], and their products."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(SITES), num_steps, rows, 7, generator=generator, dtype=torch.float64).cumsum(1)
    products = Products(SITES, num_steps)
    for site, feature in enumerate(features):
        products.add(site, list(feature))
        products.sums.append(feature.sum(1))
        products.counts.append(torch.full((7,), rows))
    return features, products


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
def test_errors_from_products_are_those_of_the_features(pattern, forecast, seed):
    features, products = made(len(pattern), seed)
    missed = (emitted(features, planned(pattern, forecast)) - features).square().sum((0, 2, 3))
    scale = float(features.square().sum())
    assert products.errors(pattern, forecast) == pytest.approx(missed.numpy(), rel=1e-6, abs=1e-9 * scale)


@given(patterns, st.integers(0, 2), st.integers(0, 20), st.booleans())
@settings(deadline=None, max_examples=50)
def test_fitted_weights_are_least_squares_site_by_site(pattern, order, seed, centred):
    """Against torch's solver on the features themselves: with the sum to one built in, or free about the averages."""
    features, products = made(len(pattern), seed, rows=9)
    forecast = Fitted(products, order, centred=centred)
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
            found = dict(row[step].reads)
            assert [found.get(source, 0.0) for source in read] == pytest.approx(wanted, abs=1e-3)
            assert centred or sum(found.values()) == pytest.approx(1)
            left = target - sum((w * change for w, change in zip(wanted, changes, strict=True)), torch.zeros(()))
            total[step] += float(left.square().sum())
    assert products.errors(pattern, forecast) == pytest.approx(total, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("forecast", [Reuse(), Taylor(1), Taylor(2), "fitted"])
@pytest.mark.parametrize(("num_steps", "count", "longest"), [(9, 4, 4), (10, 3, 5), (8, 5, 8), (7, 1, 8), (6, 6, 3)])
def test_the_optimal_pattern_is_the_best_of_all(forecast, num_steps, count, longest):
    _, products = made(num_steps, seed=3)
    rule = Fitted(products, 2) if forecast == "fitted" else forecast
    gains = np.random.default_rng(1).uniform(0.1, 2, num_steps)

    def cost(pattern):
        return float(products.errors(pattern, rule) @ gains)

    every = []
    for others in itertools.combinations(range(1, num_steps), count - 1):
        pattern = "".join("#" if step in (0, *others) else "." for step in range(num_steps))
        if max(map(len, pattern.split("#"))) < longest:
            every.append(pattern)
    best = min(every, key=cost)
    found = Optimal(products, rule, longest).pattern(gains, count)
    assert found.count("#") == count
    assert cost(found) == pytest.approx(cost(best), rel=1e-9)


def test_gains_that_made_the_measurements_are_found_again():
    rng = np.random.default_rng(0)
    truth = surrogate.basis(20, 6) @ rng.uniform(0.5, 3, 6)
    errors = [rng.uniform(0, 1, 20) * (rng.uniform(0, 1, 20) < 0.6) for _ in range(200)]
    measured = [float(-10 * np.log10(each @ truth * 1e-4)) for each in errors]
    found = surrogate.fit(errors, measured)
    expected = [found.decibels(each) for each in errors]
    assert np.abs(np.array(expected) - measured).mean() < 0.25
    assert np.corrcoef(found.gains, truth)[0, 1] > 0.9


@given(st.integers(1, 6), st.integers(0, 30))
@settings(deadline=None, max_examples=30)
def test_nonnegative_least_squares_meets_its_conditions(size, seed):
    """At the optimum every entry is zero with an uphill slope, or positive with none."""
    rng = np.random.default_rng(seed)
    system, target = rng.normal(size=(size + 4, size)), rng.normal(size=size + 4)
    found = surrogate.nonnegative(system, target)
    slope = system.T @ (system @ found - target)
    assert (found >= 0).all()
    assert (slope > -1e-4).all()
    assert np.abs(slope[found > 1e-9]).max(initial=0) < 1e-4


@pytest.mark.parametrize(("num_steps", "count"), [(50, 17), (20, 7), (20, 13), (9, 2), (5, 4), (24, 3)])
def test_a_search_proposes_new_patterns_that_fit_until_its_number_is_used_up(num_steps, count):
    _, products = made(num_steps)
    learned = proposals.Learned(products, ["taylor 2", "taylor 1"], 8)
    search = proposals.Search(learned, count, 30, seed=0)
    seen = set()
    while (proposed := search.propose()) is not None:
        pattern, name = proposed
        assert proposed not in seen
        assert (len(pattern), pattern.count("#"), pattern[0]) == (num_steps, count, "#")
        assert max(map(len, pattern.split("#"))) < 8
        seen.add(proposed)
        score = -10 * np.log10(products.errors(pattern, learned.forecast(name)).sum() + 1e-9)
        search.tell(trials.Trial(pattern, name, float(score)))
    assert len(seen) <= 30 + proposals.LAST
    assert len({pattern for pattern, _ in list(seen)}) <= 30
    finalists = search.finalists(5)
    assert search.best in finalists
    assert len(finalists) == min(5, len(seen))
    assert sum(map(search.is_even, finalists)) >= 2
    best = search.schedules(3)
    assert best[0] == search.best
    assert len({each.pattern for each in best}) == len(best) == min(3, len({pattern for pattern, _ in seen}))
    assert best == sorted(best, key=lambda trial: -trial.psnr)
    assert len(seen) >= 30 or num_steps < 10 or count * 8 == num_steps  # then only one pattern fits


@pytest.mark.parametrize("correcting", [True, False])
def test_feedback_and_correction_are_tried_when_the_schedules_are_used_up(correcting):
    """A stand-in for samples that likes both: feedback of 0.3, and a correction of 0.7."""
    _, products = made(9)
    learned = proposals.Learned(products, ["taylor 1"], 8, correcting)
    search = proposals.Search(learned, 3, 1, seed=0)
    while (proposed := search.propose()) is not None:
        pattern, name = proposed
        strength, theta = (float(trials.NAME.fullmatch(name)[part] or 0) for part in ("strength", "theta"))
        search.tell(trials.Trial(pattern, name, 40 - abs(strength - 0.3) - abs(theta - 0.7)))
    assert search.best.forecast == "taylor 1, feedback 0.3" + (", eoc 0.7" if correcting else "")
    assert len({trial.pattern for trial in learned.trials}) == 1
    assert any("eoc" in trial.forecast for trial in learned.trials) == correcting


@given(patterns, st.integers(0, 20), st.data())
@settings(deadline=None, max_examples=30)
def test_weights_are_moved_to_the_newest_feature_and_scaled(pattern, seed, data):
    plan = planned(pattern, Taylor(2))
    skipped = [step for step, sign in enumerate(pattern) if sign == "."]
    by = {(way, step): data.draw(st.floats(-0.3, 0.3)) for way in polish.WAYS for step in skipped}
    found = planned(pattern, polish.Moved(Taylor(2), by))
    for before, after in zip(plan.rows, found.rows, strict=True):
        for step, (was, now) in enumerate(zip(before, after, strict=True)):
            if was.computed:
                assert now == was
                continue
            newest, *others = [weight for _, weight in was.reads]
            if others:
                newest, others[0] = newest + by["moved", step], others[0] - by["moved", step]
            wanted = [weight * (1 + by["scaled", step]) for weight in (newest, *others)]
            assert [weight for _, weight in now.reads] == pytest.approx(wanted)
    movable = polish.movable(plan)
    assert [step for way, step in movable if way == "scaled"] == skipped
    several = [step for step in skipped if len(plan.rows[0][step].reads) > 1]
    assert [step for way, step in movable if way == "moved"] == several
    name = trials.moved("fitted 1, feedback 0.5, eoc 0.6", pattern, by)
    assert trials.moves_of(name, pattern) == {place: pytest.approx(value, abs=1e-4) for place, value in by.items()}
    assert trials.unmoved(name) == "fitted 1, feedback 0.5, eoc 0.6"
    twice = trials.moves_of(trials.moved(name, pattern, by), pattern)
    assert twice == {place: pytest.approx(2 * value, abs=2e-4) for place, value in by.items()}


@given(st.integers(1, 5), st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_the_weights_are_moved_to_where_least_squares_says(moves, seed):
    """Images that are linear in the moves: numpy's least squares of the same, every image by one over its error."""
    rng = np.random.default_rng(seed)
    base, missed = rng.normal(size=(3, 2, 4, 4)), rng.normal(size=(3, 2, 4, 4)) * [[[[0.1]]], [[[1]]], [[[5]]]]
    directions = rng.normal(size=(moves, 3, 2, 4, 4))
    slopes = polish.Slopes(torch.from_numpy(base), torch.from_numpy(base + missed))
    for direction in directions:
        slopes.add(torch.from_numpy(base + 0.05 * direction), 0.05)
    per_image = 1 / np.sqrt((missed**2).mean((1, 2, 3), keepdims=True))
    system = (directions * per_image).reshape(moves, -1).T
    damped = np.diag(np.sqrt(polish.DAMPING * (system**2).sum(0)))
    augmented = np.concatenate([system, damped]), np.concatenate([(missed * per_image).ravel(), np.zeros(moves)])
    expected = np.linalg.lstsq(*augmented, rcond=None)[0].clip(-0.7, 0.7)
    assert polish.step(slopes.sums(), [0.7] * moves) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_schedule_that_is_best_after_a_round_is_polished_to_the_end(monkeypatch):
    """Of the best three, the second gains most in its round; the fourth is not looked at."""
    gains = {"#.#.": 0.1, "##..": 1.0, "#..#": 0.2, "#...": 9.0}
    found = [trials.Trial(pattern, "goc 1", 40 - 0.3 * rank) for rank, pattern in enumerate(gains)]
    rounds = []

    def polished(self, trial, count):
        rounds.append((trial.pattern, count))
        return replace(trial, psnr=trial.psnr + gains[trial.pattern] * count)

    monkeypatch.setattr(tuner._Tuning, "_polished", polished)
    monkeypatch.setattr(tuner._Tuning, "_again", lambda self, trial: trial)
    monkeypatch.setattr(polish, "SCHEDULES", 3)
    monkeypatch.setattr(polish, "ROUNDS", 4)
    search = proposals.Search.__new__(proposals.Search)
    search._mine = found
    best = tuner._Tuning._polished_of(tuner._Tuning.__new__(tuner._Tuning), found[0], search)
    assert rounds == [("#.#.", 1), ("##..", 1), ("#..#", 1), ("##..", 3)]
    assert (best.pattern, best.psnr) == ("##..", pytest.approx(40 - 0.3 + 4))


# ---- on the bundled model -------------------------------------------------------------------------------------------

LABELS = list(range(4))
HOW = {"num_steps": 6, "budget": [0.55, 0.4], "number": 6, "longest": 4}


@pytest.fixture(scope="module", autouse=True)
def _short():
    """One round of polishing, and few finalists."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polish, "ROUNDS", 1)
        patch.setattr(polish, "SCHEDULES", 1)
        patch.setattr(tuner, "FINALISTS", 3)
        yield


@pytest.fixture(scope="module")
def digits():
    return zoo.load_digits()


@pytest.fixture(scope="module")
def tuned(digits):
    return fc.tune(digits, LABELS, **HOW, held_out=LABELS)


def test_products_are_those_of_the_features_that_the_model_gives_out(digits):
    source = fc.sampling.sources.as_source(digits)
    how = fc.sampling.sources.Sampling(4, 1.5, 0)
    products, images = observe(source, LABELS, how, batch=2)
    assert torch.equal(images, torch.cat([source.generate(LABELS[:2], how), source.generate(LABELS[2:], how, 2)]))
    norms = np.diagonal(products.table, axis1=1, axis2=2)
    assert (norms > 0).all()
    assert (np.abs(products.table) <= np.sqrt(norms[:, :, None] * norms[:, None, :]) * (1 + 1e-6)).all()


def test_products_about_the_averages_are_those_of_the_features_less_their_channels_means(digits, monkeypatch):
    """All entries of the features, by hand."""
    source, how, seen = fc.sampling.sources.as_source(digits), fc.sampling.sources.Sampling(3, 1.5, 0), {}
    monkeypatch.setattr(products_module, "COORDINATES", 10**9)
    watched = products_module._Watch.see

    def see(self, step, site, feature):
        seen.setdefault((site, step), []).append(feature)
        watched(self, step, site, feature)

    monkeypatch.setattr(products_module._Watch, "see", see)
    products, _ = observe(source, LABELS, how, batch=2)
    for site in range(len(products.sites)):
        features = [torch.cat(seen[site, step]).double() for step in range(3)]
        about = torch.stack([(each - each.mean((0, 1))).flatten() for each in features])
        assert products.spread[site] == pytest.approx((about @ about.T).numpy(), rel=1e-5, abs=1e-4)
        assert products.means[site].numpy() == pytest.approx(
            torch.stack(features).mean((1, 2)).numpy(), rel=1e-4, abs=1e-5
        )


def test_a_correction_is_eocs_on_the_averages_of_the_same_samples(digits):
    """As `fc.eoc` makes it of `fc.calibrate`'s averages over both halves of the pair."""
    source, pattern = fc.sampling.sources.as_source(digits), "#..#.#"
    products, _ = observe(source, LABELS, fc.sampling.sources.Sampling(6, 1.5, 3), batch=2)
    statistics = fc.calibrate(digits, LABELS, num_steps=6, seed=3, batch=4, rows="all")
    base = fc.feedback(fc.explicit(pattern=pattern), 1, 0.5)
    grid = fc.grid(digits, 6)
    expected = fc.eoc(base, statistics, 0.6, form="additive", judge="all", per="channel").plan(grid)
    name = "taylor 1, feedback 0.5, eoc 0.6"
    made = replace(base, forecast=trials.forecast_of(name, products), correction=trials.correction_of(name, products))
    plan = made.plan(grid)
    assert plan.rows == expected.rows
    assert {name.split("/")[1] for name in plan.constants} == {"1", "2", "4"}
    for name, shift in expected.constants.items():
        assert torch.allclose(plan.constants[name], shift, rtol=1e-4, atol=1e-5)
    assert trials.correction_of("taylor 1, feedback 0.5", products) is None
    with pytest.raises(fc.errors.StatisticsError):
        made.plan(fc.grid(digits, 7))


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
    assert trials.corrected(name, by) == expected


@pytest.mark.parametrize(
    ("name", "by", "expected"),
    [
        ("goc 0.8, eoc 0.3", 0.15, "goc 0.95, eoc 0.3"),
        ("fitted 1, feedback 0.15, eoc 0.3", -0.15, "fitted 1, eoc 0.3"),
        ("taylor 2", 0.15, "taylor 2, feedback 0.15"),
        ("taylor 2, feedback 0.95", 0.15, None),
    ],
)
def test_feedback_is_strengthened_step_by_step(name, by, expected):
    assert trials.varied(name, by) == expected


def test_a_tuned_plan_samples_as_well_as_it_says(digits, tuned):
    source = fc.sampling.sources.as_source(digits)
    for plan, trial, unseen in zip(tuned.plans, tuned.chosen, tuned.held_out, strict=True):
        for seeds, said in ((range(1000, 1004), trial.psnr), ([2000], unseen)):
            found = []
            for seed in seeds:
                how = fc.sampling.sources.Sampling(6, 1.5, seed)
                uncached = source.generate(LABELS, how)
                with fc.apply(digits, plan):
                    images = source.generate(LABELS, how)
                found.append(fc.evaluate.psnr(images, uncached).mean().item())
            assert sum(found) / len(found) == pytest.approx(said, abs=1e-4)


def test_a_tuned_plan_keeps_its_budget_and_is_no_worse_than_even_steps(digits, tuned):
    inputs = fc.sampling.sources.call_inputs(fc.sampling.sources.as_source(digits), 2)
    for plan, trial, even, budget in zip(tuned.plans, tuned.chosen, tuned.uniform, HOW["budget"], strict=True):
        assert 1 / plan.cost(digits, guidance=True, inputs=inputs).speedup <= budget
        assert trial.psnr >= even.psnr
        assert trial.computed == even.computed
        assert "on others" in plan.provenance["psnr"]


def test_polishing_makes_it_better_or_leaves_it(digits, tuned):
    plain = fc.tune(digits, LABELS, **HOW, polishing=False)
    for rough, fine in zip(plain.chosen, tuned.chosen, strict=True):
        assert (fine.pattern, trials.unmoved(fine.forecast)) == (rough.pattern, rough.forecast)
        assert fine.psnr > rough.psnr if "moved" in fine.forecast else fine == rough
    assert any("moved" in trial.forecast for trial in tuned.chosen)


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
    fc.tune(digits, LABELS[:1], num_steps=4, budget=0.6, number=2, path=path)
    before = path.read_bytes()
    with pytest.raises(fc.errors.SearchFileError, match=r"holds another tuning \(seed differ\)"):
        fc.tune(digits, LABELS[:1], num_steps=4, budget=0.6, number=2, path=path, seed=7)
    assert path.read_bytes() == before


def test_no_more_model_calls_are_made_than_were_announced(digits, monkeypatch):
    monkeypatch.setattr(polish, "SCHEDULES", 2)
    announced, made = [], []
    few = {"num_steps": 4, "budget": 0.6, "number": 3, "held_out": LABELS[1:2]}
    fc.tune(digits, LABELS[:1], **few, on_start=announced.append, on_step=lambda *_: made.append(1))
    assert announced[0] / 3 < len(made) <= announced[0]


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
        ({"forecasts": ["goc 0.8, moved 0.1"]}, "tuning moves them itself: 'goc 0.8'"),
        ({"forecasts": ["magic"]}, "There is no forecast 'magic'; there are: fitted ORDER"),
        ({"number": 0}, "from 1 on"),
        ({"held_out": [0], "held_out_seed": 1002}, "another held_out_seed"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_sampled(digits, asked, message):
    def never(step):
        raise AssertionError

    with pytest.raises(fc.errors.InputError, match=message):
        fc.tune(digits, LABELS, num_steps=6, on_step=never, **asked)


FEW = {"num_steps": 5, "longest": 3, "number": 2, "forecasts": ["taylor 1"], "correcting": False, "polishing": False}


def test_the_cheapest_plan_that_is_good_enough(digits):
    """What is found by halving is what looking at every number of computed steps finds."""
    every = {count: fc.tune(digits, LABELS, **FEW, budget=count / 5 + 0.03).chosen[0] for count in (2, 3, 4)}
    assert [trial.computed for trial in every.values()] == [2, 3, 4]
    wanted = (every[2].psnr + every[3].psnr) / 2
    found = fc.tune(digits, LABELS, **FEW, budget=[AtLeast(wanted), AtLeast(1.0)])
    assert [trial.computed for trial in found.chosen] == [3, 2]
    assert found.chosen[0] == every[3]
    best = max(every.values(), key=lambda trial: trial.psnr).psnr
    with pytest.raises(fc.errors.InputError, match=rf"At least 75 dB .* {best:.2f} dB"):
        fc.tune(digits, LABELS, **FEW, budget=AtLeast(75.0))


@pytest.mark.parametrize(("budget", "count"), [(69.9, 2), (70.1, 3), (99.0, 4)])
def test_a_time_is_as_many_steps_as_fit_into_it(digits, monkeypatch, budget, count):
    """A run without a cache takes 100 ms and one with a single computed step 40, so that each further one takes 15."""
    times = itertools.cycle([100.0, 40.0])
    monkeypatch.setattr(budgets.Counts, "_timed", lambda counts, how: next(times))
    assert fc.tune(digits, LABELS, **FEW, budget=Milliseconds(budget)).chosen[0].computed == count


def test_a_time_that_is_asked_for_is_measured(digits):
    source = fc.sampling.sources.as_source(digits)
    settings = settings_of(source, (1, 2), 6, 1.5, 0, 2, ("reuse",), 4, 1, 0)
    counts = budgets.Counts(source, settings, World())
    full, least = counts._milliseconds
    assert full > least > 0
    assert counts.of(Milliseconds(full - 1e-3 * (full - least))) == 5


PROCESSES = """
import json, sys
import torch
import forecache as fc
from forecache import zoo
from forecache.distributed import started
from forecache.fit.tuning import polish, tuner

torch.set_num_threads(1)
polish.ROUNDS, polish.SCHEDULES, tuner.FINALISTS, tuner.NOISES = 1, 1, 2, 1
with started() as world:
    calls = []
    tuned = fc.tune(zoo.load_digits(), [0, 1, 2], num_steps=4, longest=3, number=2, budget=0.55, batch=1,
                    forecasts=["taylor 1"], held_out=[4], path=sys.argv[1], on_start=calls.append)
    open(f"{sys.argv[1]}.{world.rank}", "w").write(json.dumps([world.size, calls, tuned.show()]))
"""


def test_two_processes_find_what_one_does(tmp_path):
    (tmp_path / "script.py").write_text(PROCESSES)
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node"]
    for size in ("1", "2"):
        words = [*torchrun, size, str(tmp_path / "script.py"), str(tmp_path / f"{size}.json")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    one, *two = (json.loads((tmp_path / name).read_text()) for name in ("1.json.0", "2.json.0", "2.json.1"))
    assert [each[0] for each in (one, *two)] == [1, 2, 2]
    judging = 2 * 4  # the held-out sample, without a cache and with the plan
    share = [(each[1][0] - judging * (rank == 0)) / (one[1][0] - judging) for rank, each in enumerate(two)]
    assert share == [pytest.approx(2 / 3), pytest.approx(1 / 3)]
    assert [each[2] for each in two] == [one[2]] * 2
    alone, shared = (json.loads((tmp_path / f"{size}.json").read_text()) for size in (1, 2))
    assert alone["settings"] == shared["settings"]
    for mine, theirs in zip(alone["trials"], shared["trials"], strict=True):
        assert mine == {**theirs, "psnr": pytest.approx(theirs["psnr"], abs=1e-6)}


@pytest.mark.parametrize(
    ("model", "computed"),
    [*(("digits", count) for count in (13, 10, 9, 7, 6, 5, 4)), *(("digits-text", count) for count in (13, 9, 6, 5))],
)
def test_the_plans_that_ship_fit_their_model(model, computed):
    loaded = zoo.load_digits() if model == "digits" else zoo.load_digits_text()
    target = fc.sampling.sources.as_source(loaded).target
    plan = fc.Plan.load(zoo.tuned_path(model, computed))
    assert {sum(cell.computed for cell in row) for row in plan.rows} == {computed}
    with fc.apply(target, plan):
        pass
    assert "on others" in plan.provenance["psnr"]


def test_a_plan_that_does_not_ship_is_named_with_those_that_do():
    with pytest.raises(
        fc.errors.InputError, match=r"plans for \[4, 5, 6, 7, 9, 10, 13\] computed steps of 20, not for 8"
    ):
        zoo.tuned_path("digits", 8)
