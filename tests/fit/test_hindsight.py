"""Shares of hindsight from calibration: least squares with bounds, a small fit, and the option of tuning."""

import pytest
import torch

import forecache as fc
from forecache import zoo
from forecache.fit import hindsight
from forecache.fit.tuning import plan_search
from forecache.fit.tuning.forecasts import ForecastSpec
from forecache.methods import build

LABELS = list(range(3))


@pytest.fixture(scope="module")
def digits():
    return zoo.load_digits()


def test_shares_are_least_squares_within_their_bounds():
    draw = torch.Generator().manual_seed(0)
    moves = torch.randn(3, 5, 2, 4, generator=draw, dtype=torch.float64)
    truth = torch.tensor([0.3, 0.8, 0.5], dtype=torch.float64)
    missing = torch.einsum("g,gbij->bij", truth, moves)
    assert hindsight.best_shares(missing, moves) == pytest.approx(truth.tolist(), abs=0.03)
    pulled = torch.einsum("g,gbij->bij", torch.tensor([-1.0, 3.0, 0.5], dtype=torch.float64), moves)
    shares = hindsight.best_shares(pulled, moves)
    assert shares[:2] == (0.0, 1.0)
    sizes = pulled.flatten(1).norm(dim=1)[:, None]  # with two at their bounds, the third alone is a line
    rest, line = ((one.flatten(1) / sizes).flatten() for one in (pulled - moves[1], moves[2]))
    assert shares[2] == pytest.approx(float(line @ rest / (line @ line)), abs=0.03)


def test_a_small_fit_pays_back_more_than_nothing_and_makes_a_method_with_a_recipe(digits):
    base = fc.taylorseer(fc.fora(3), 1)
    how = {"num_steps": 7, "guidance": 1.0, "seed": 5}
    images = digits.generate(LABELS, fc.sampling.sources.Sampling(**how))
    found = hindsight.fit_hindsight(digits, base, LABELS, **how, reference=images)
    assert len(found.thetas) == 2
    assert found.psnr >= max(found.base_psnr, found.even_psnr)
    assert found.psnr > found.base_psnr
    grid = fc.grid(digits, 7)
    assert build(found.method.recipe).plan(grid) == found.method.plan(grid)
    with pytest.raises(fc.errors.InputError, match="give at least one of each"):
        hindsight.fit_hindsight(digits, base, [], **how)


@pytest.mark.slow
def test_tuning_tries_hindsight_on_the_best_plan(digits, monkeypatch):
    monkeypatch.setattr(plan_search, "FINALISTS", 1)
    how = {
        "num_steps": 6, "budget": [fc.fit.Calls(2)], "number": 1, "longest": 4, "reference": "own", "refining": False,
        "correcting": False, "forecasts": ["taylor 1"],
    }  # fmt: skip
    found = fc.tune(digits, LABELS, **how, hindsight=True)
    (trial,) = found.best
    without = [one for one in found.trials if one.pattern == trial.pattern and not one.forecast.thetas]
    assert without
    assert bool(trial.forecast.thetas) == bool(found.plan.looks)
    assert trial.forecast.unrefined == without[0].forecast.unrefined
    with pytest.raises(fc.errors.InputError, match="one sampler in one number of steps: leave"):
        fc.tune(digits, LABELS, num_steps=6, samplers=["own", "unipc"], hindsight=True)


def test_a_forecast_with_hindsight_as_data():
    spec = ForecastSpec.parse("taylor 1")
    told = ForecastSpec.from_document(spec.as_document() | {"thetas": [0.5, 0.25]})
    assert told.thetas == (0.5, 0.25)
    assert ForecastSpec.from_document(told.as_document()) == told
    assert str(told) == "taylor 1, hindsight"
    assert told.unrefined == spec
