"""The bundled model is what its card says, and the library's laws hold on it."""

import json
from dataclasses import replace

import pytest
import torch
from support import reference

import forecache as fc
from forecache import zoo
from forecache.bench import demo
from forecache.evaluate import psnr
from forecache.plan.cost import Cost
from forecache.sampling.loop import sample, to_images
from forecache.sampling.sources import Sampling
from forecache.zoo import load_digits
from forecache.zoo.digits import FOLDER

LABELS = [index % 10 for index in range(10)]


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def generate(digits):
    def run(plan=None):
        source = digits
        if plan is None:
            return source.generate(LABELS, Sampling(20, 1.5, 7))
        with fc.apply(source.target, plan):
            return source.generate(LABELS, Sampling(20, 1.5, 7))

    return run


@pytest.fixture(scope="module")
def uncached(generate):
    return generate()


def test_everything_that_ships_is_small():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12 * 2**20
    assert {"README.md", "training.json", "classifier.json", "classifier.safetensors"} <= {p.name for p in files}


def test_the_classifier_was_tested_at_99_percent():
    assert json.loads((FOLDER / "classifier.json").read_text())["test_accuracy"] >= 0.99


def test_samples_are_recognised(digits, uncached):
    """The card's figure is over 95 %; ten samples cannot be more exact than this."""
    assert (digits.recognised(uncached) == torch.tensor(LABELS)).float().mean() >= 0.85


def test_a_plan_that_computes_everything_is_bit_identical(digits, generate, uncached):
    plan = fc.explicit(skip=[]).plan(fc.grid(digits.transformer, 20))
    assert torch.equal(generate(plan), uncached)


class ByHand:
    """The digits transformer, its blocks run by hand with a cache of the reference's own."""

    def __init__(self, model, rule):
        self.config, self.device, self.dtype = model.config, model.device, model.dtype
        self._labels = torch.tensor(LABELS + [10] * len(LABELS))
        self._predict = reference.cached(reference.diffusers_dit, model, self._labels, rule)
        self._step = 0

    def __call__(self, x, timestep, class_labels, return_dict):
        assert torch.equal(class_labels, self._labels)
        self._step += 1
        return (self._predict(x, timestep, self._step - 1),)


@pytest.mark.parametrize("eta", [0.8, 1.2])
def test_goc_agrees_with_the_independent_one(digits, generate, eta):
    """Within 1e-4 on images after 20 steps of 12 blocks: rounding is amplified along the way, most so for eta > 1."""
    steps = fc.methods.goc_paper_steps(50)
    plan = fc.goc(fc.methods.fora_paper(50), eta, steps=steps).plan(fc.grid(digits.transformer, 20))
    model = ByHand(digits.transformer, reference.goc_emitted(reference.front(20, 2), eta, corrected=set(steps)))
    expected = to_images(sample(model, digits.scheduler, LABELS, num_steps=20, guidance=1.5, seed=7))
    assert (generate(plan) - expected).abs().max() < 1e-4


def test_goc_is_at_least_7_db_above_fora_at_its_best_eta(digits, generate, uncached):
    grid = fc.grid(digits.transformer, 20)
    base, steps = fc.methods.fora_paper(50), fc.methods.goc_paper_steps(50)
    fora = psnr(generate(base.plan(grid)), uncached).mean()
    best = max(psnr(generate(fc.goc(base, eta, steps=steps).plan(grid)), uncached).mean() for eta in (0.6, 0.8))
    assert best - fora >= 7


def test_the_loaded_model_samples_the_same_again(digits):
    first = to_images(sample(digits.transformer, digits.scheduler, [4], num_steps=3, seed=2))
    again = to_images(sample(load_digits().transformer, digits.scheduler, [4], num_steps=3, seed=2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("steps", [20, 50])
def test_the_bundled_statistics_are_of_this_model(digits, steps):
    stats = fc.Statistics.load(zoo.record("digits").statistics_path(steps))
    stats.check(fc.grid(digits, steps))
    assert (stats.count, stats.is_partial, stats.resolution) == (1000, False, "channel")
    assert stats.origin.seed not in range(10), "quality is measured with these seeds"
    with pytest.raises(fc.errors.StatisticsError, match="with other weights"):
        stats.check(fc.grid(type(digits)(small_like(digits.transformer), digits.scheduler), steps))


def small_like(transformer):
    """The same architecture, untrained."""
    torch.manual_seed(0)
    return type(transformer).from_config(transformer.config)


def test_the_bundled_statistics_are_the_averages_of_its_features(digits):
    """Of 20 other samples: close to those of 1000, far from those of another step."""
    stats = fc.Statistics.load(zoo.record("digits").statistics_path(20))
    few = fc.calibrate(digits, [index % 10 for index in range(20)], num_steps=20, seed=5, batch=20)
    for site in (0, 11, 23):
        mean, other = stats.means[site].float(), few.means[site].mean(1, keepdim=True)
        assert (mean[10] - other[10]).norm() < 0.5 * (mean[10] - other[1]).norm()
    assert (stats.changes[1:, :, 0] - few.changes[1:, :, 0]).abs().mean() < 0.05


def test_no_statistics_are_bundled_for_other_steps():
    with pytest.raises(
        fc.errors.InputError, match="for 20 and 50 steps, not for 30: make them with `forecache calibrate"
    ):
        zoo.record("digits").statistics_path(30)


@pytest.mark.parametrize(("macs", "time", "doubted"), [(2.0, 1.9, False), (2.0, 2.4, False), (2.0, 2.6, True)])
def test_a_row_of_the_demo_that_was_faster_than_its_macs_is_doubted(macs, time, doubted):
    cost = Cost(100, int(100 * macs), 0, (), ())
    row = demo.Row("", None, cost, torch.empty(0), (1.0,), time, 40.0, 1.0, 1.0, 0)
    assert row.is_too_fast == doubted
    assert not replace(row, cost=None).is_too_fast
