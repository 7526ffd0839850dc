"""Errors of estimates by step and site."""

import pytest
import torch
from support.statistics import measured

import forecache as fc
from forecache.fit import step_errors
from forecache.models.find import find, layout_for
from forecache.runtime.plan_source import Fixed
from forecache.runtime.session import Session
from forecache.sampling.sources import Sampling
from forecache.zoo import load_digits

STEPS = 5


@pytest.fixture(scope="module")
def source():
    return load_digits()


@pytest.mark.parametrize(
    "method", [fc.fora(2), fc.goc(fc.fora(3), 0.8), fc.taylorseer(fc.fora(2), 1), fc.goc(fc.fora(3), 1.2)]
)
def test_an_error_is_that_of_the_estimate_made_by_hand(source, method):
    """From the features of a run without a cache: the estimates as the plan's cells say, which read estimates, too."""
    whole = fc.grid(source.target, STEPS)
    plan, how = method.plan(whole), Sampling(STEPS, 1.5, 3)
    gram = step_errors.measured_features(source, [3, 1], how, 2)
    features = [[None] * STEPS for _ in whole.sites]

    def watch(step, site, feature):
        features[site][step] = feature.clone().flatten(1)

    every = fc.explicit(compute=range(STEPS)).plan(whole)
    with Session(Fixed(every), [layout_for(find(source.target), whole)], watch=watch):
        source.generate([3, 1], how)
    table = step_errors.step_errors(gram, plan)
    drawn = torch.randperm(features[0][0].shape[1], generator=torch.Generator().manual_seed(0))[:1024].sort().values
    for site in (0, 7, len(whole.sites) - 1):
        emitted = []
        for step, cell in enumerate(plan.rows[site]):
            true = features[site][step]
            emitted.append(true if cell.computed else sum(weight * emitted[read] for read, weight in cell.reads))
            error = ((emitted[step] - true)[:, drawn].norm() / true[:, drawn].norm()).item()
            assert table[site][step] == pytest.approx(error, rel=1e-3, abs=1e-5)
    document = step_errors.document(gram, plan)
    assert document["sites"] == [site.name for site in whole.sites]


def test_what_cannot_be_known_is_none(source):
    """A correction by measured tensors, and whatever reads its estimate."""
    whole = fc.grid(source.target, 20)
    stats = fc.Statistics.load(fc.zoo.bundled.record("digits").statistics_path(20))
    plan = fc.eoc(fc.fora(2), stats, judge="all").plan(whole)
    gram = step_errors.measured_features(source, [3], Sampling(20, 1.5, 3), 1)
    table = step_errors.step_errors(gram, plan)
    for row, errors in zip(plan.rows, table, strict=True):
        assert [error is None for error in errors] == [bool(cell.constants) for cell in row]
    with pytest.raises(fc.errors.StatisticsError):
        step_errors.step_errors(gram, fc.fora(2).plan(measured_grid()))


def measured_grid():
    stats = measured()
    return fc.Grid(stats.num_steps, stats.sites)
