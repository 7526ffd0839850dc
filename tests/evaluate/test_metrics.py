"""Metrics on features and images: closed forms, torch-fidelity, scikit-image, and small re-implementations."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from support.torchvision_standin import torch_fidelity

import forecache as fc
from forecache.evaluate import (
    Bootstrap,
    Moments,
    Stream,
    distance_to,
    frechet_distance,
    inception_score,
    precision_recall,
    psnr,
    ssim,
)
from forecache.evaluate.neighbours import recalls_without

assert torch_fidelity.__version__
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric  # noqa: E402
from torch_fidelity.metric_isc import isc_features_to_metric  # noqa: E402
from torch_fidelity.metric_prc import prc_features_to_metric  # noqa: E402


def normal(*shape, seed=0, mean=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + mean


# --- Fréchet distance -------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000))
def test_fid_is_that_of_torch_fidelity(seed):
    a = normal(60, 12, seed=seed) @ normal(12, 12, seed=seed + 1)
    b = normal(90, 12, seed=seed + 2, mean=0.3) @ normal(12, 12, seed=seed + 3)
    theirs = fid_statistics_to_metric(*map(fid_features_to_statistics, (a.double(), b.double())), False)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(
        theirs["frechet_inception_distance"], rel=1e-6
    )


def test_the_distance_of_correlated_gaussians_is_closed_where_covariances_commute():
    """C_a = Q diag(s^2) Q^T and C_b = Q diag(t^2) Q^T with one rotation: the root of the product is Q diag(s t) Q^T."""
    q = torch.linalg.qr(normal(7, 7).double())[0]
    s, t = normal(2, 7, seed=5).double().abs() + 0.1
    m = normal(7, seed=4).double()
    a, b = Moments(None, m, q @ torch.diag(s**2) @ q.T), Moments(None, m + 2, q @ torch.diag(t**2) @ q.T)
    expected = (4 * 7 + (s - t).square().sum()).item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert distance_to(b)(a) == pytest.approx(expected, rel=1e-9)
    assert distance_to(a)(b) == pytest.approx(expected, rel=1e-9)


def test_sampled_gaussians_come_near_the_distance_of_their_distributions():
    a, b = normal(200_000, 3), normal(200_000, 3, seed=1) * 2 + 1
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(3 * 1 + 3 * (2 - 1) ** 2, rel=0.01)


# --- moments ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(0, 99))
def test_moments_do_not_depend_on_how_features_come(sizes, seed):
    """Also far from zero, where sums of squares in float64 would lose half of the digits."""
    features = normal(sum(sizes), 5, seed=seed).double() + 1e6
    stream = Stream()
    for part in features.split(sizes):
        stream.add(part)
    found = stream.moments()
    centered = features - 1e6
    torch.testing.assert_close(found.mean - 1e6, centered.mean(0), atol=1e-8, rtol=0)
    torch.testing.assert_close(found.covariance, torch.cov(centered.T), atol=1e-7, rtol=1e-7)
    assert found.count == len(features)


def test_moments_of_parts_merge_into_those_of_the_whole():
    features = normal(50, 4).double()
    whole, merged = Moments.of(features), Moments.merged(map(Moments.of, features.split([20, 2, 28])))
    assert merged.count == whole.count == 50
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.covariance, whole.covariance)
    with pytest.raises(fc.errors.InputError, match="number of features is known"):
        Moments.merged([Moments(None, whole.mean, whole.covariance)])
    with pytest.raises(fc.errors.InputError, match="3 dimensions cannot join those of 4"):
        Moments.merged([whole, Moments.of(features[:, :3])])


SCRIPT = """
import json, sys
from pathlib import Path

import torch

from forecache.distributed import started
from forecache.evaluate import Stream

folder, cuts = Path(sys.argv[1]), json.loads(sys.argv[2])
features = torch.load(folder / "features.pt")
with started() as world:
    for cut in cuts:
        stream = Stream()
        for part in features.tensor_split([cut])[world.rank].split(7):
            stream.add(part)
        found = stream.across(world.sum_, features.shape[1]).moments()
        torch.save([world.size, found.count, found.mean, found.covariance], folder / f"{cut}-{world.rank}.pt")
"""


def test_two_processes_have_the_moments_of_one(tmp_path):
    """Uneven parts, and a process that sees nothing."""
    features = normal(60, 6).double() * 3 + 1000
    torch.save(features, tmp_path / "features.pt")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc_per_node", "2"]
    words = [tmp_path / "script.py", tmp_path, "[23, 60]"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("23-0", "23-1", "60-0", "60-1"):
        size, count, mean, covariance = torch.load(tmp_path / f"{name}.pt")
        assert (size, count) == (2, 60)
        torch.testing.assert_close(mean, features.mean(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(covariance, torch.cov(features.T), rtol=1e-9, atol=1e-9)


# --- inception score --------------------------------------------------------------------------------------------------


def test_the_inception_score_of_discrete_cases():
    """All classes, each sure: the number of classes; one class, or no idea: 1; k of n classes, each sure: k."""
    sure = 200 * torch.eye(4)
    assert inception_score(sure.repeat(20, 1), splits=1) == pytest.approx(4)
    assert inception_score(sure[:1].repeat(20, 1)) == pytest.approx(1)
    assert inception_score(torch.zeros(20, 9)) == pytest.approx(1)
    assert inception_score(sure[:3].repeat(20, 1), splits=1) == pytest.approx(3)
    # two classes in unequal shares: exp of the entropy of the shares
    shares = torch.tensor([0.25, 0.75])
    assert inception_score(200 * torch.eye(2)[[0, 1, 1, 1]].repeat(5, 1), splits=1) == pytest.approx(
        math.exp(-(shares * shares.log()).sum())
    )
    # sorted by class, parts of one class each are poor; shuffled, they are not
    ordered = sure.repeat_interleave(25, 0)
    assert inception_score(ordered, splits=4, seed=None) == pytest.approx(1)
    assert inception_score(ordered, splits=4) > 3.5


@given(st.integers(0, 1000), st.integers(20, 70), st.integers(1, 10))
def test_the_inception_score_is_that_of_torch_fidelity(seed, count, splits):
    logits = 3 * normal(count, 8, seed=seed)
    theirs = isc_features_to_metric(logits, splits)
    assert inception_score(logits, splits) == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    theirs = isc_features_to_metric(logits, splits, shuffle=False)
    assert inception_score(logits, splits, seed=None) == pytest.approx(theirs["inception_score_mean"], rel=1e-9)


# --- precision and recall ---------------------------------------------------------------------------------------------


def by_hand(points, features, k):
    """Every distance in float64, one by one."""
    distance = lambda a, b: math.dist(a.tolist(), b.tolist())  # noqa: E731
    radius = [sorted(distance(a, b) for b in features)[k] for a in features]
    return [any(distance(p, a) <= r for a, r in zip(features, radius, strict=True)) for p in points]


def test_precision_and_recall_of_points_on_a_line():
    """References 0, 1, 2, 10 have, to the nearest neighbour, balls of radius 1, 1, 1, 8: [-1, 3] and [2, 18]."""
    reference = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    samples = torch.tensor([[-1.0], [-1.5], [3.0], [18.0], [18.5]])  # radii 0.5, 0.5, 4, 0.5, 0.5
    precise, recalled = precision_recall(samples, reference, neighbours=1)
    assert precise.tolist() == [True, False, True, True, False]
    # the samples' balls: [-2, -0.5 ...], [-1, 7], [17.5, 19]
    assert recalled.tolist() == [True, True, True, False]


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_one_by_one(k, monkeypatch):
    monkeypatch.setattr("forecache.evaluate.neighbours.ROWS", 7)
    monkeypatch.setattr("forecache.evaluate.neighbours.COLUMNS", 5)
    samples, reference = normal(23, 3).double(), normal(31, 3, seed=1, mean=0.7).double()
    rows = []
    precise, recalled = precision_recall(samples, reference, k, rows.append)
    assert precise.tolist() == by_hand(samples, reference, k)
    assert recalled.tolist() == by_hand(reference, samples, k)
    assert 0 < precise.double().mean() < 1
    assert sum(rows) == 2 * (23 + 31)


def test_recall_without_a_group_is_that_of_the_others(monkeypatch):
    monkeypatch.setattr("forecache.evaluate.neighbours.ROWS", 9)
    monkeypatch.setattr("forecache.evaluate.neighbours.COLUMNS", 20)
    samples, reference = normal(40, 3).double(), normal(31, 3, seed=1, mean=0.7).double()
    groups = Bootstrap(20, 5).groups(40) % 6
    found = recalls_without(samples, reference, groups)
    for group, recall in enumerate(found.tolist()):
        _, recalled = precision_recall(samples[groups != group], reference)
        assert recall == pytest.approx(recalled.double().mean().item(), abs=1e-6)
    assert len(set(found.tolist())) > 1
    assert sorted(Bootstrap(20, 5).groups(40).bincount().tolist()) == [2] * 20


def test_precision_and_recall_are_those_of_torch_fidelity():
    samples, reference = normal(300, 16), normal(400, 16, seed=1) * 1.1
    theirs = prc_features_to_metric(samples, reference, prc_neighborhood=3, save_cpu_ram=False, verbose=False)
    precise, recalled = precision_recall(samples, reference)
    assert precise.double().mean().item() == pytest.approx(theirs["precision"], abs=1e-6)
    assert recalled.double().mean().item() == pytest.approx(theirs["recall"], abs=1e-6)
    assert 0.1 < theirs["precision"] < 0.9 or 0.1 < theirs["recall"] < 0.9


# --- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_scikit_image(channels):
    images = torch.rand(3, channels, 17, 23, generator=torch.Generator().manual_seed(0))
    other = (images + 0.1 * normal(*images.shape)).clamp(0, 1)
    found = ssim(images, other)
    for a, b, value in zip(images, other, found, strict=True):
        theirs = structural_similarity(
            a.numpy().astype(np.float64),
            b.numpy().astype(np.float64),
            channel_axis=0,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert value.item() == pytest.approx(theirs, abs=1e-9)
    torch.testing.assert_close(ssim(255 * images, 255 * other, peak=255), found)
    assert ssim(images, images).tolist() == pytest.approx([1, 1, 1])


def test_ssim_of_flat_images_is_closed():
    """Without structure, only the means count: (2 a b + c) / (a^2 + b^2 + c)."""
    a, b, c = 0.3, 0.5, 0.01**2
    found = ssim(torch.full((1, 1, 12, 12), a), torch.full((1, 1, 12, 12), b))
    assert found.item() == pytest.approx((2 * a * b + c) / (a * a + b * b + c), abs=1e-6)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_unusable_features_are_refused():
    broken = torch.full((30, 4), math.nan)
    with pytest.raises(fc.errors.InputError, match="more than 3 features"):
        precision_recall(normal(3, 2), normal(9, 2))
    with pytest.raises(fc.errors.InputError, match="4 and 5 dimensions"):
        precision_recall(normal(9, 4), normal(9, 5))
    with pytest.raises(fc.errors.InputError, match="of the reference have NaN"):
        precision_recall(normal(9, 4), broken)
    with pytest.raises(fc.errors.InputError, match="at least 10 images"):
        inception_score(normal(9, 4))
    with pytest.raises(fc.errors.InputError, match="logits have NaN"):
        inception_score(broken)
    with pytest.raises(fc.errors.InputError, match="NaN"):
        Stream().add(broken)
    with pytest.raises(fc.errors.InputError, match="at least 11 x 11 pixels; these are 10 x 30"):
        ssim(torch.zeros(1, 1, 10, 30), torch.zeros(1, 1, 10, 30))
    with pytest.raises(fc.errors.InputError, match="SSIM compares images pair by pair"):
        ssim(torch.zeros(1, 1, 20, 20), torch.zeros(1, 3, 20, 20))
    assert psnr(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).item() == 0


def test_importing_the_metrics_imports_no_torchvision():
    program = "import forecache.evaluate, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "forecache" in loaded
    assert not loaded & {"torchvision", "torch_fidelity", "lpips", "transformers", "PIL", "rich", "scipy", "skimage"}
