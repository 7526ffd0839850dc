"""The guard against drift: a run that leaves what was calibrated is computed to its end, or refused."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from support.small import small_dit

import forecache as fc
from forecache.parts.drift import Changes
from forecache.runtime import Guards

STEPS = 12
TIMES = tuple(range(990, 0, -82))[:STEPS]
LABELS = torch.tensor([1, 2])
PLAIN = "#.#.#.#.#.#."
LANES = "cond", "uncond"


@pytest.fixture(scope="module")
def model():
    return small_dit(3)


@torch.no_grad()
def run(model, scale=0.1, *, names=("one",), session=None, outputs=None, faster_from=STEPS):
    """A loop whose steps become four times as long from ``faster_from`` on."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for step, time in enumerate(TIMES):
        for name in names:
            call = {"timestep": torch.full((2,), time), "class_labels": LABELS}
            if session is None:
                out = model(x, **call).sample
            else:
                with session.lane(name):
                    out = model(x, **call).sample
        if outputs is not None:
            outputs.append(out)
        x = x - scale * (4 if step >= faster_from else 1) * out[:, :4]
    return x


def changes_of(outputs):
    """The changes as the documentation has them, sample by sample, and the largest of a batch."""
    pairs = [
        max(float((b - a)[i].abs().mean() / b[i].abs().mean()) for i in range(len(a)))
        for a, b in combinations(outputs, 2)
    ]
    return tuple(pairs)


@pytest.fixture(scope="module")
def calibrated(model):
    run(model, outputs=(outputs := []))
    return changes_of(outputs)


def left_at(outputs, calibrated, most, pattern=PLAIN):
    """The step from which all is computed, from the outputs of the bare run up to there: the rule written out."""
    pairs = dict(zip(combinations(range(STEPS), 2), calibrated, strict=True))
    computed = [step for step, sign in enumerate(pattern) if sign == "#"]
    for earlier, later in pairwise(computed):
        a, b = outputs[earlier], outputs[later]
        seen = max(float((b - a)[i].abs().mean() / b[i].abs().mean()) for i in range(len(a)))
        if not seen <= most * pairs[earlier, later]:
            return later + 1
    return None


PLANS = {
    "static": lambda: fc.fora(2),
    "Taylor": lambda: fc.taylorseer(fc.fora(2), 1),
    "decides": lambda: fc.teacache(99.0, max_gap=1),
    "a budget": lambda: fc.goc(fc.teacache(99.0, max_gap=1, budget=7), 0.8),
}


def test_a_run_as_calibrated_follows_its_plan(model, calibrated):
    with fc.apply(model, fc.fora(2), num_steps=STEPS) as bare:
        sample = run(model)
    guards = Guards(max_drift=1.5, changes=calibrated)
    with fc.apply(model, fc.fora(2), num_steps=STEPS, guards=guards) as session:
        assert torch.equal(run(model), sample)
    assert session.stats.drifted == 0
    assert session.stats.last.picture == bare.stats.last.picture == PLAIN


@pytest.mark.parametrize(
    ("name", "names"), [("static", ("one",)), ("Taylor", LANES), ("decides", LANES), ("a budget", ("one",))]
)
def test_the_rest_of_a_run_that_drifts_is_computed(model, calibrated, name, names):
    """The step is found by the rule written out on what the run gave; what was run repeats it bit for bit."""
    method = PLANS[name]()
    guards = Guards(max_drift=1.5, changes=calibrated)
    with fc.apply(model, method, num_steps=STEPS, guards=guards) as session:
        sample = run(model, faster_from=4, names=names, session=session, outputs=(outputs := []))
    picture = session.stats.last.picture
    start = left_at(outputs, calibrated, 1.5)
    assert 4 < start < STEPS - 2
    assert picture[:start].replace("~", ".") == PLAIN[:start]
    assert picture[start:] == "#" * (STEPS - start)
    assert session.stats.drifted == 1
    assert "1 generation left what was calibrated" in str(session.stats)
    assert session.stats.computed == len(names) * picture.count("#") * len(session.decided().grid.sites)
    with fc.apply(model, session.decided()) as again:
        assert torch.equal(run(model, faster_from=4, names=names, session=again), sample)


def test_the_generation_after_one_that_drifted_starts_clean(model, calibrated):
    guards = Guards(max_drift=1.5, changes=calibrated)
    with fc.apply(model, fc.taylorseer(fc.fora(2), 1), num_steps=STEPS, guards=guards) as session:
        run(model, faster_from=4)
        run(model)
    assert session.stats.drifted == 1
    assert session.stats.last.picture.replace("~", ".") == PLAIN


def test_a_run_that_drifts_is_refused_where_that_is_asked(model, calibrated):
    guards = Guards(max_drift=1.5, changes=calibrated, on_drift="raise")
    with fc.apply(model, fc.fora(2), num_steps=STEPS, guards=guards) as session:
        with pytest.raises(fc.errors.DriftError, match=r"times the calibrated change, and max_drift allows 1.5"):
            run(model, faster_from=4)
        run(model)
    assert session.stats.last.picture == PLAIN


def test_one_sample_that_is_no_number_counts(model, calibrated):
    with fc.apply(model, fc.fora(2), num_steps=STEPS, guards=Guards(max_drift=1e9, changes=calibrated)) as session:
        run(model, scale=torch.tensor([0.1, float("nan")])[:, None, None, None])
    assert session.stats.last.picture == "#.#" + "#" * (STEPS - 3)


def test_changes_at_another_number_of_steps():
    """A run that changes at the same speed at all times, and one that changes ever faster."""
    even = Changes(tuple(float(later - earlier) for earlier, later in combinations(range(10), 2)))
    assert even.num_steps == 10
    for earlier, later in combinations(range(10), 2):
        assert even.between(earlier, later, 10) == pytest.approx(later - earlier)
    assert even.between(0, 18, 19) == pytest.approx(9)
    assert even.between(3, 4, 19) == pytest.approx(0.5)
    rising = Changes(tuple(float(later**2 - earlier**2) for earlier, later in combinations(range(10), 2)))
    for earlier, later in combinations(range(19), 2):
        exact = (later / 2) ** 2 - (earlier / 2) ** 2
        assert rising.between(earlier, later, 19) == pytest.approx(exact, abs=0.6)
    assert np.isfinite(Changes((1.0,)).between(0, 30, 31))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_drift": 0}, "max_drift is a ratio over 0"),
        ({"max_drift": 2, "changes": (1.0, 2.0)}, "190 for 20 steps; 2 were given"),
        ({"max_drift": 2, "changes": (1.0, float("nan"), 1.0)}, "finite numbers from 0 on"),
        ({"changes": (1.0,)}, "give max_drift="),
        ({"max_drift": 2, "on_drift": "stop"}, 'on_drift is "compute" or "raise"'),
    ],
)
def test_what_is_no_guard_is_refused(options, why):
    with pytest.raises(fc.errors.PlanError, match=why):
        Guards(**options)


def test_a_guard_that_would_see_nothing_is_refused(model, calibrated):
    with pytest.raises(fc.errors.PlanError, match=r"there are none: give changes=forecache.calibrate"):
        fc.apply(model, fc.fora(2).plan(fc.grid(model, STEPS)), guards=Guards(max_drift=2))
    plan = fc.explicit(pattern="#" + "." * (STEPS - 1)).plan(fc.grid(model, STEPS))
    with pytest.raises(fc.errors.PlanError, match="this plan has 1 of them"):
        fc.apply(model, plan, guards=Guards(max_drift=2, changes=calibrated))
