"""The inception score (Salimans et al., arXiv 1606.03498): clear single images, a diverse set.

B images, C classes, S images of a split.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from forecache.errors import InputError

SPLITS = 10


def inception_score(logits: Tensor, splits: int = SPLITS, seed: int | None = 2020) -> float:
    """exp(mean KL(p(y|x) || p(y))) within each of ``splits`` parts, averaged: between 1 and the number of classes.

    logits: (B, C), B at least ``splits``
    splits: number of parts
    seed: seed of torch-fidelity's shuffle, since parts of images sorted by class would score low; None keeps their
        order, as the ADM suite does
    """
    return _scores(logits, None, splits, seed).mean().item()


def inception_scores(logits: Tensor, weights: Tensor, splits: int = SPLITS, seed: int | None = 2020) -> Tensor:
    """The score (R,) of every resample; weights (R, B): the number of times it holds each image."""
    return _scores(logits, weights, splits, seed).mean(0)


def _scores(logits_BC: Tensor, weights: Tensor | None, splits: int, seed: int | None) -> Tensor:
    """The scores (splits, R) of resamples; R is 1, the whole set, without weights."""
    if logits_BC.ndim != 2 or len(logits_BC) < splits:
        raise InputError(
            f"An inception score in {splits} splits needs logits (images, classes) of at least {splits} images; "
            f"got {tuple(logits_BC.shape)}."
        )
    if not bool(logits_BC.isfinite().all()):
        raise InputError("The logits have NaN or infinite entries: check the images that they were taken from.")
    count = len(logits_BC)
    order = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
    scores = []
    for part in range(splits):
        index = torch.from_numpy(order[part * count // splits : (part + 1) * count // splits]).to(logits_BC.device)
        share = None if weights is None else weights[:, index.cpu()].to(logits_BC)
        scores.append(_score(logits_BC[index].double(), share))
    return torch.stack(scores).cpu()


def _score(logits_SC: Tensor, weights_RS: Tensor | None) -> Tensor:
    """exp of the mean KL(p || q), as the sum of p log p minus that of q log q, so that a resample costs one product."""
    log_SC = logits_SC.log_softmax(1)
    p_SC = log_SC.exp()
    if weights_RS is None:
        weights_RS = torch.ones(1, len(p_SC), device=p_SC.device)
    share_RS = weights_RS.double()
    share_RS = share_RS / share_RS.sum(1, keepdim=True).clamp_min(1)
    q_RC = share_RS @ p_SC
    own_R = share_RS @ (p_SC * log_SC).sum(1)
    return (own_R - torch.special.xlogy(q_RC, q_RC).sum(1)).exp()
