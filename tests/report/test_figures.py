"""Intervals: how often they hold the truth, what they say of differences, and what a table prints in bold."""

import json
import statistics

import numpy as np
import pytest
import torch
from rich.console import Console

import forecache as fc
from forecache.evaluate import Bootstrap, Estimate, Moments, Row, difference, frechet_distance, inception_score
from forecache.evaluate.inception_score import inception_scores
from forecache.evaluate.metrics import METRICS, parse_metrics
from forecache.evaluate.tables import best, legend, markdown, rich_table


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def psnr_figure(values, seed=0, resamples=200):
    values = torch.as_tensor(values, dtype=torch.float64)
    return Estimate("psnr", values.mean().item(), len(values), Bootstrap(resamples, seed).of_mean(values), seed)


def test_the_error_of_a_mean_is_the_textbook_one():
    values = normal(400) * 3
    error = psnr_figure(values, resamples=2000).error
    assert error == pytest.approx(values.std(correction=0).item() / 20, rel=0.05)


def test_draws_depend_on_seed_and_size_alone():
    values = normal(50)
    assert psnr_figure(values).draws == psnr_figure(values).draws
    assert psnr_figure(values, seed=1).draws != psnr_figure(values).draws
    one, two = list(Bootstrap(20, 3).weights(50)), list(Bootstrap(20, 3).weights(50, 5))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=False))
    assert all(weight.sum() == 50 for weight in one)
    assert Bootstrap(0).of_mean(values) == ()
    assert Estimate("psnr", 1.0, 50).interval is None


@pytest.mark.parametrize("size", [5, 60], ids=["many", "fewer than dimensions"])
def test_frechet_draws_are_the_distances_of_resampled_features(size):
    features, reference = normal(40, size), Moments.of(normal(90, size, seed=1) + 0.5)
    draws = Bootstrap(20, 7).of_frechet(features, reference)
    for draw, weight in zip(draws, Bootstrap(20, 7).weights(40), strict=True):
        again = features.repeat_interleave(weight, 0)
        assert draw == pytest.approx(frechet_distance(Moments.of(again), reference), rel=1e-4)


def test_the_jackknife_of_a_mean_has_the_textbook_error():
    """Of 40 values in 20 groups of 2: the standard deviation of the groups' means over the root of 20."""
    values = normal(40).double()
    bootstrap = Bootstrap(20, 3)
    groups = bootstrap.groups(40)
    without = torch.stack([values[groups != group].mean() for group in range(20)])
    means = torch.stack([values[groups == group].mean() for group in range(20)])
    figure = Estimate("recall", values.mean().item(), 40, bootstrap.of_jackknife(without), 3)
    assert figure.error == pytest.approx(means.std().item() / 20**0.5, rel=1e-6)


def test_the_cost_of_resampling_is_bounded():
    assert Bootstrap(100).frechet_resamples(1000, 128) == 100
    assert Bootstrap(100).frechet_resamples(50_000, 2048) == 20
    assert Bootstrap(0).frechet_resamples(50_000, 2048) == 0
    with pytest.raises(fc.errors.InputError, match="5 dimensions, a reference of 6"):
        Bootstrap(20).of_frechet(normal(9, 5), Moments.of(normal(9, 6)))


def test_inception_draws_are_the_scores_of_resampled_logits():
    """In one split, so that a resample can be put together as a set of its own."""
    logits = 3 * normal(30, 4)
    weights = torch.stack(list(Bootstrap(20, 7).weights(30)))
    found = inception_scores(logits, weights, splits=1)
    for value, weight in zip(found.tolist(), weights, strict=True):
        assert value == pytest.approx(inception_score(logits.repeat_interleave(weight, 0), splits=1), rel=1e-6)


def test_intervals_hold_what_they_are_for():
    """The 95 % interval of a Fréchet distance holds its mean over sets of this size, in about 95 % of the sets.

    1/sqrt(150) * sqrt(.05 * .95) is 1.8 %, so that 88 to 100 % are within four of those.
    """
    reference = Moments.of(normal(5000, 4, seed=999))
    sets = [normal(150, 4, seed=seed) * 1.2 + 0.3 for seed in range(150)]
    values = [frechet_distance(Moments.of(each), reference) for each in sets]
    truth = statistics.mean(values)
    held = 0
    for each, value in zip(sets, values, strict=True):
        low, high = Estimate("fid", value, 150, Bootstrap(40).of_frechet(each, reference), 0).interval
        held += low <= truth <= high
    assert 0.88 <= held / len(sets) <= 1
    resampled = statistics.mean(Bootstrap(40).of_frechet(sets[0], reference))
    assert resampled > values[0]  # the bias of resampling, which the interval leaves out


def test_a_difference_of_pairs_is_sharper_than_one_of_strangers():
    """b is a + 0.1: the difference has almost no error, though each figure has one ten times as large as 0.1."""
    a = normal(100) * 10
    b = a + 0.1 + 0.01 * normal(100, seed=1)
    pairs = difference(psnr_figure(b), psnr_figure(a))
    assert pairs.value == pytest.approx(0.1, abs=0.01)
    assert pairs.error == pytest.approx(0.01 / 10, rel=0.3)
    assert pairs.real
    strangers = difference(psnr_figure(b), psnr_figure(a, seed=1))
    assert strangers.error == pytest.approx(np.hypot(psnr_figure(a, seed=1).error, psnr_figure(b).error))
    assert not strangers.real
    assert not difference(psnr_figure(b), Estimate("psnr", 0.0, 100)).real


def test_independent_sets_of_one_size_get_the_error_of_independent_sets():
    """Drawn at the same places, they do not look like pairs: the errors add in squares."""
    a, b = psnr_figure(normal(2000), resamples=1000), psnr_figure(normal(2000, seed=1), resamples=1000)
    assert difference(a, b).error == pytest.approx(np.hypot(a.error, b.error), rel=0.1)


def test_what_does_not_compare_is_refused():
    with pytest.raises(fc.errors.InputError, match="fid of 10 and fid of 20 samples do not compare"):
        difference(Estimate("fid", 1.0, 10), Estimate("fid", 2.0, 20))
    with pytest.raises(fc.errors.InputError, match="do not compare"):
        difference(Estimate("fid", 1.0, 10), Estimate("sfid", 2.0, 10))
    assert difference(Estimate("psnr", 3.0, 10), Estimate("psnr", 2.0, 20)).value == 1
    with pytest.raises(fc.errors.InputError, match="at least 20 resamples"):
        Bootstrap(19)


def rows(*means, **options):
    noise = normal(100)
    return [
        Row(f"row {i}", {"psnr": psnr_figure(30 + mean + scale * noise * (i + 1))}, **options)
        for i, (mean, scale) in enumerate(means)
    ]


def test_bold_is_only_what_is_better_by_more_than_its_interval():
    near = rows((0, 1.0), (0.05, 1.0))
    assert best(near, "psnr") is None
    assert "**" not in "\n".join(markdown(near))
    far = rows((0, 1.0), (5, 1.0), (1, 1.0))
    assert best(far, "psnr") == 1
    text = markdown(far)
    assert text[0] == "|  | PSNR, dB ↑ | samples |"
    assert text[3].startswith(f"| row 1 | **{far[1].figures['psnr']}** | 100 |")
    assert "\n".join(text).count("**") == 2


def test_what_takes_no_part_is_never_bold():
    far = [*rows((0, 1.0), (1, 1.0)), Row("published", {"psnr": 90.0}), *rows((50, 1.0), competes=False)]
    assert best(far, "psnr") == 1
    assert best(far[1:3], "psnr") is None  # nothing is left to be better than
    fid = [
        Row("a", {"fid": Estimate("fid", 1.0, 10, (0.9, 1.1), 0)}),
        Row("b", {"fid": Estimate("fid", 9.0, 20, (8, 9), 0)}),
    ]
    assert best(fid, "fid") is None
    alike = [Row(str(i), {"fid": Estimate("fid", 1 + i * 1e-5, 10, (1 + i * 1e-5, 2 + i * 1e-5), 0)}) for i in (0, 1)]
    assert difference(alike[1].figures["fid"], alike[0].figures["fid"]).real
    assert best(alike, "fid") is None


def test_a_table_says_samples_seeds_and_resamples():
    table = rows((0, 1.0), (5, 1.0), seeds=(3, 4))
    text = "\n".join(markdown(table))
    assert "| samples | seeds |" in text
    assert "| 100 | 3, 4 |" in text
    assert "from 200 bootstrap resamples of the samples (seed 0" in legend(table)
    assert "No intervals" in legend([Row("a", {"psnr": 1.0})])
    console = Console(width=80, record=True, force_terminal=True)
    with console.capture() as out:
        console.print(rich_table(table))
    assert "PSNR, dB ↑" in out.get()
    assert f"\x1b[1m{table[1].figures['psnr']}" in out.get()


def test_figures_are_data():
    figure = psnr_figure(normal(30))
    again = Estimate.read(json.loads(json.dumps(figure.document())))
    assert (again.metric, again.count, again.seed, again.value) == ("psnr", 30, 0, figure.value)
    assert again.draws == pytest.approx(figure.draws, rel=1e-6)
    assert "draws" not in figure.document(draws=False)
    assert figure.document()["interval"] == pytest.approx(figure.interval)
    for broken in ({}, {**figure.document(), "value": "x"}, {**figure.document(), "metric": "beauty"}):
        with pytest.raises(fc.errors.InputError, match="estimate of an evaluation|no metric 'beauty'"):
            Estimate.read(broken)


def test_intervals_stay_in_the_range_of_the_metric():
    assert Estimate("precision", 0.99, 9, (0.9, 1.0, 1.0), 0).interval[1] == 1
    assert Estimate("fid", 0.1, 9, (0.1, 9.0), 0).interval[0] == 0


def test_names_of_metrics():
    assert parse_metrics("FID, prc,precision") == ("fid", "precision", "recall")
    assert parse_metrics(["adm", "psnr"]) == ("fid", "sfid", "is", "precision", "recall", "psnr")
    with pytest.raises(fc.errors.InputError, match="no metric 'beauty'; there are fid"):
        parse_metrics("fid,beauty")
    with pytest.raises(fc.errors.InputError, match="No metric was asked for"):
        parse_metrics(" , ")
    assert all(name == metric.name for name, metric in METRICS.items())
