"""PSNR and Fréchet distance against closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import forecache as fc
from forecache.evaluate import Moments, frechet_distance, psnr


def test_psnr_of_a_constant_error_is_closed():
    images = torch.rand(3, 1, 4, 4)
    values = psnr(images + torch.tensor([0.0, 0.1, 0.01])[:, None, None, None], images)
    assert values[0] == math.inf
    assert values[1:].tolist() == pytest.approx([20, 40], abs=1e-4)
    assert psnr(images + 0.1, images, peak=10)[0].item() == pytest.approx(40, abs=1e-4)


def test_psnr_wants_pairs():
    with pytest.raises(fc.errors.InputError, match="pair by pair"):
        psnr(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4))


@given(st.integers(0, 1000))
def test_diagonal_gaussians_have_a_closed_distance(seed):
    """|m - n|^2 + sum (s - t)^2 for standard deviations s, t."""
    draw = np.random.default_rng(seed)
    m, n, s, t = draw.uniform(0, 3, (4, 5))
    a = Moments(9, torch.tensor(m), torch.diag(torch.tensor(s**2)))
    b = Moments(9, torch.tensor(n), torch.diag(torch.tensor(t**2)))
    assert frechet_distance(a, b) == pytest.approx(((m - n) ** 2 + (s - t) ** 2).sum(), abs=1e-6)


def test_rotated_gaussians_against_the_root_of_the_product():
    """The textbook formula with a general matrix root, by eigenvalues of C_a C_b."""
    draw = np.random.default_rng(0)
    x, y = (
        draw.normal(size=(40, 6)) @ draw.normal(size=(6, 6)),
        draw.normal(size=(50, 6)) @ draw.normal(size=(6, 6)) + 1,
    )
    a, b = np.cov(x.T), np.cov(y.T)
    root = np.sqrt(np.linalg.eigvals(a @ b).real.clip(0)).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root
    got = frechet_distance(Moments.of(torch.tensor(x)), Moments.of(torch.tensor(y)))
    assert got == pytest.approx(expected, rel=1e-6)


def test_a_set_is_at_distance_zero_from_itself_even_with_few_samples():
    features = Moments.of(torch.randn(4, 20, generator=torch.Generator().manual_seed(0)))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-5)


def test_unusable_features_are_refused():
    with pytest.raises(fc.errors.InputError, match="at least 2"):
        Moments.of(torch.zeros(1, 3))
    with pytest.raises(fc.errors.InputError, match="NaN"):
        Moments.of(torch.tensor([[0.0, math.nan], [1.0, 2.0]]))
    with pytest.raises(fc.errors.InputError, match="dimensions"):
        frechet_distance(Moments.of(torch.rand(4, 3)), Moments.of(torch.rand(4, 2)))
