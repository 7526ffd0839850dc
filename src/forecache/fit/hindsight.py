"""Shares of hindsight from calibration: what each gap of a method pays back best, judged by the final samples (ours).

To first order every gap moves the final samples by a multiple of its own share. So a run for every gap, in which that
gap alone pays back, measures all moves, and the shares that bring the samples nearest to a reference are a problem of
least squares. What the method's forecast pays back already, by feedback or by fitted weights, is in these runs, so that
it is not paid twice.

B samples, G gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forecache.errors import InputError
from forecache.evaluate.images import EQUAL_DB, psnr
from forecache.methods.hindsight import hindsight
from forecache.models.find import grid_at
from forecache.models.levels import FINEST, AskedSites
from forecache.parts.hindsight import Hindsight
from forecache.plan.method import Method
from forecache.runtime.apply import apply
from forecache.sampling.fine import Reference, converged
from forecache.sampling.sources import Condition, Sampling, as_source, check_conditions, in_batches

TRIED = 0.5
"""The share at which the move of a gap is measured."""
MOST = 1.0
"""The largest share that is fitted: beyond it, a gap would pay for the errors of others."""
RIDGE = 0.01
"""Ridge of the least squares, as a share of the mean squared move."""


@dataclass(frozen=True)
class PaidBack:
    """A method with shares of hindsight from calibration.

    method: the method with these shares; the base itself where nothing is gained.
    thetas: the share of every gap that a computed step follows, in order; all 0 where nothing is gained.
    psnr: mean PSNR in dB of the calibration samples to the reference, with these shares.
    base_psnr: the same of the base.
    even_psnr: the same with `TRIED` for every gap.
    """

    method: Method
    thetas: tuple[float, ...]
    psnr: float
    base_psnr: float
    even_psnr: float


def fit_hindsight(
    target: object,
    base: Method,
    conditions: Sequence[Condition],
    *,
    num_steps: int,
    guidance: float = 1.5,
    seed: int = 0,
    batch: int = 32,
    reference: Reference | Tensor = "converged",
    asked: AskedSites = FINEST,
) -> PaidBack:
    """The base with the share of each gap that brings the calibration samples nearest to the reference.

    Costs G + 3 cached runs of the samples, and the reference.

    target: a DiTPipeline, a text-to-image pipeline, a bundled model, or any `sources.Source`.
    base: a method that `forecache.hindsight` takes.
    conditions: labels or texts of the calibration samples, one a sample; 8 and more, or shares fit their noise.
    num_steps: scheduler steps.
    reference: ``converged`` samples of the same noise, the source's ``own`` without a cache, or samples (B, ...) in
        [0, 1] themselves.
    asked: the sites of plans; the model's finest by default.

    Raises PlanError for a method or a sampler that hindsight cannot correct.
    """
    source = as_source(target)
    given, how = check_conditions(source, conditions), Sampling(num_steps, guidance, seed)
    if not given or batch < 1:
        raise InputError(f"There are {len(given)} conditions and a batch of {batch}: give at least one of each.")
    if isinstance(reference, Tensor):
        truth = reference
    elif reference == "own":
        truth = in_batches(source, given, how, batch)
    else:
        truth = converged(source, given, num_steps=num_steps, guidance=guidance, seed=seed, batch=batch).images

    def sampled(method: Method) -> Tensor:
        with apply(source.target, method.plan(grid_at(source.target, num_steps, asked))):
            return in_batches(source, given, how, batch)

    even = replace(base, hindsight=Hindsight(TRIED))
    count = len(even.plan(grid_at(source.target, num_steps, asked)).looks)
    without = sampled(base)
    moves = [sampled(replace(base, hindsight=Hindsight(0.0, alone(gap, count)))) - without for gap in range(count)]
    thetas = best_shares(truth - without, torch.stack(moves) / TRIED)
    method = hindsight(base, thetas=thetas)
    scores = [float(psnr(images, truth).clamp_max(EQUAL_DB).mean()) for images in (without, sampled(even))]
    found = float(psnr(sampled(method), truth).clamp_max(EQUAL_DB).mean())
    if found <= max(scores):  # far from a straight line: what was measured whole is trusted more
        thetas = (0.0 if scores[0] >= scores[1] else TRIED,) * count
        method, found = (base, scores[0]) if scores[0] >= scores[1] else (hindsight(base, thetas=thetas), scores[1])
    return PaidBack(method, thetas, found, scores[0], scores[1])


def best_shares(missing: Tensor, moves: Tensor) -> tuple[float, ...]:
    """The shares, 0 to `MOST`, whose moves come nearest to what is missing, every sample in shares of its own error.

    missing: (B, ...), reference less samples. moves: (G, B, ...), by a share of 1.
    """
    sizes = missing.flatten(1).double().norm(dim=1).clamp_min(1e-12)
    wanted = (missing.flatten(1).double() / sizes[:, None]).flatten()
    columns = (moves.flatten(2).double() / sizes[:, None]).flatten(1)
    return bounded_shares((columns @ columns.T).numpy(), (columns @ wanted).numpy())


def bounded_shares(square: NDArray[np.float64], right: NDArray[np.float64]) -> tuple[float, ...]:
    """The shares, 0 to `MOST`, of normal equations (G, G) and (G,)."""
    square = square + RIDGE * square.diagonal().mean() * np.eye(len(square))
    shares = np.zeros(len(square))
    for _ in range(500):  # coordinate descent, which keeps the bounds
        for gap in range(len(shares)):
            rest = right[gap] - square[gap] @ shares + square[gap, gap] * shares[gap]
            shares[gap] = np.clip(rest / max(square[gap, gap], 1e-300), 0, MOST)
    return tuple(round(float(share), 3) for share in shares)


def alone(gap: int, count: int) -> tuple[float, ...]:
    """The shares with which one of so many gaps pays back."""
    return tuple(TRIED * (other == gap) for other in range(count))
