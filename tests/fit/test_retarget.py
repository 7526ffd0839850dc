"""Retargeting: what carries over, what is fitted anew, what it costs."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from support.small import small_dit

import forecache as fc
from forecache.evaluate.images import EQUAL_DB
from forecache.fit.tuning import ForecastSpec, Trial, Tuned
from forecache.fit.tuning.retarget import _stretched
from forecache.fit.tuning.surrogate import Surrogate
from forecache.plan.sampler import Sampler
from forecache.sampling.fine import rescheduled
from forecache.sampling.sources import Sampling, as_source
from forecache.zoo.digits import Digits

LABELS = [1, 4, 2]


@pytest.fixture(scope="module")
def own():
    return Digits(small_dit(num_layers=2), diffusers.DDIMScheduler(clip_sample=False))


def tuned_of(own, pattern, forecast, gains=None):
    """The result of a tuning that found this schedule and forecast."""
    trial = Trial(pattern, ForecastSpec.parse(forecast), 30.0, own=35.0)
    plan = fc.explicit(pattern=pattern).plan(fc.grid(own, len(pattern)))
    surrogate = Surrogate(np.ones(len(pattern)) if gains is None else np.asarray(gains))
    return Tuned((plan,), (trial,), (trial,), (), (trial,), (35.0,), surrogate)


def computed_rows(own, run):
    """What a run gives, and how many rows go through the first block."""
    rows = []
    hook = own.transformer.transformer_blocks[0].attn1.register_forward_hook(lambda *args: rows.append(len(args[2])))
    try:
        return run(), sum(rows)
    finally:
        hook.remove()


@pytest.mark.parametrize(("guidance", "num_steps"), [(3.0, 6), (1.5, 9)])
def test_the_better_schedule_is_chosen_by_its_samples_and_the_cost_is_what_was_computed(own, guidance, num_steps):
    tuned = tuned_of(own, "###...", "taylor 1", gains=[1, 1, 1, 1, 30, 30])
    again, rows = computed_rows(
        own, lambda: fc.retarget(tuned, own, LABELS, num_steps=num_steps, guidance=guidance, seed=3)
    )
    assert again.images == pytest.approx(rows / 2 / num_steps)
    assert again.plan.computed_share == pytest.approx(1 / 2, abs=0.06)
    how = Sampling(num_steps, guidance, 3)
    bare = own.generate(LABELS, how)
    with fc.apply(own, again.plan):
        images = own.generate(LABELS, how)
    assert len(again.decibels) == 2
    decibels = fc.evaluate.psnr(images, bare).clamp_max(EQUAL_DB).mean().item()
    assert decibels == pytest.approx(max(again.decibels.values()), abs=1e-4)
    assert f"{max(again.decibels.values()):.2f} dB" in again.plan.provenance["psnr"]


def test_weights_are_fitted_to_the_new_features(own):
    """Least squares by hand, of the sixth step's features on those of the two computed steps before it."""
    again = fc.retarget(tuned_of(own, "##.##.", "fitted 1"), own, LABELS, num_steps=6, guidance=2.0, computed=5)
    row, site = again.plan.rows[0], 0
    step = next(number for number, cell in enumerate(row) if not cell.computed and len(cell.reads) == 2)
    whole, seen = fc.grid(own, 6), {}
    layout = fc.models.find.layout_for(own.transformer, whole)
    source = fc.runtime.plan_source.Fixed(fc.explicit(compute=range(6)).plan(whole))
    watch = lambda at, where, feature: seen.__setitem__((at, where), feature.double().flatten())  # noqa: E731
    with fc.runtime.session.Session(source, [layout], watch=watch) as session:
        session.new_run()
        own.generate(LABELS, Sampling(6, 2.0, 1000))
    (newest, weight), (older, other) = row[step].reads
    change = seen[newest, site] - seen[older, site]
    wanted = (seen[step, site] - seen[older, site]) @ change / change.square().sum()
    assert weight + other == pytest.approx(1)
    assert weight == pytest.approx(wanted.item(), abs=1e-3)


def test_a_schedule_is_dense_at_the_same_share_of_the_run():
    assert _stretched("####....", 16, 8) == "#######....#...."  # a gap of five becomes two of five
    assert _stretched("#.#.#.#.", 4, 2) == "#.#."
    assert _stretched("#.#.#.#.", 12, 6) == "#.#.#.#.#.#."
    assert _stretched("####", 3, 3) == "###"
    for count in range(1, 10):
        assert _stretched("##...#..#.", 10, count).count("#") == count


def test_the_sampler_goes_with_it(own):
    tuned = tuned_of(own, "##.#..", "reuse")
    scheduler = diffusers.DPMSolverMultistepScheduler()
    with rescheduled(as_source(own), scheduler) as other:
        plan = fc.explicit(pattern="##.#..").plan(fc.grid(other.target, 6))
    brought = replace(plan, sampler=Sampler(plan.grid.scheduler, 6))
    again = fc.retarget(replace(tuned, plans=(brought,)), own, LABELS, num_steps=8)
    assert again.plan.sampler == Sampler(plan.grid.scheduler, 8)
    with fc.apply(own, again.plan):
        images = own.generate(LABELS, Sampling(8, 1.5, 1000))
    with rescheduled(as_source(own), scheduler) as other:
        bare = other.generate(LABELS, Sampling(8, 1.5, 1000))
        with fc.apply(other.target, replace(again.plan, sampler=None)):
            assert torch.equal(other.generate(LABELS, Sampling(8, 1.5, 1000)), images)
    decibels = fc.evaluate.psnr(images, bare).clamp_max(EQUAL_DB).mean().item()
    assert decibels == pytest.approx(max(again.decibels.values()), abs=1e-4)


@pytest.mark.parametrize(
    ("pattern", "asked", "message"),
    [
        ("######", {}, "computes all of its 6 steps.*set its sampler alone"),
        ("##.#..", {"computed": 6}, "plans compute 1 to 5: give another number"),
        ("##.#..", {"place": 1}, "place=1 were given"),
        ("##.#..", {"longest": 1}, "longest=1"),
    ],
)
def test_what_cannot_be_retargeted_is_refused(own, pattern, asked, message):
    with pytest.raises(fc.errors.InputError, match=message):
        fc.retarget(tuned_of(own, pattern, "reuse"), own, LABELS, num_steps=6, **asked)


def test_a_plan_alone_is_no_tuning(own):
    with pytest.raises(fc.errors.InputError, match="a Plan was given: give what forecache.tune returns"):
        fc.retarget(fc.fora(2).plan(fc.grid(own, 6)), own, LABELS, num_steps=6)
