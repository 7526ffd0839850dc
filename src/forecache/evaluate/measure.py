"""The computation of every metric of an evaluation.

B images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from forecache.errors import InputError
from forecache.evaluate.bootstrap import Bootstrap
from forecache.evaluate.clip import Clip, load_clip
from forecache.evaluate.estimates import Estimate
from forecache.evaluate.extractors import Extractor
from forecache.evaluate.features import Features
from forecache.evaluate.frechet import frechet_distance
from forecache.evaluate.images import EQUAL_DB, psnr, ssim
from forecache.evaluate.imagesets import ImageSet, paired
from forecache.evaluate.inception_score import inception_score, inception_scores
from forecache.evaluate.metrics import METRICS
from forecache.evaluate.neighbours import precision_recall, recalls_without
from forecache.evaluate.perceptual import Perceptual, load_lpips
from forecache.evaluate.reference import Reference

OnProgress = Callable[[str, int, int], None]
"""Called with the name of a stage, the amount done and the total amount."""


@dataclass(frozen=True)
class Against:
    """The data that samples are compared with.

    reference: for fid, sfid, precision, recall
    uncached: the same samples without a cache, for psnr, ssim, lpips
    prompts: one a sample, for clip
    labels: one a sample, for accuracy; by default those of the samples
    """

    reference: Reference | None = None
    uncached: ImageSet | None = None
    prompts: tuple[str, ...] | None = None
    labels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Judges:
    """The networks of an evaluation.

    extractor: network of the features
    clip: for the CLIP score; None loads the usual weights
    lpips: for LPIPS; None loads the usual weights
    """

    extractor: Extractor | None = None
    clip: Clip | None = None
    lpips: Perceptual | None = None


@dataclass(frozen=True)
class Setting:
    """The data and settings that the metrics of one evaluation share; `evaluate` describes them."""

    samples: ImageSet | None
    against: Against
    judges: Judges
    features: Features | None
    reference: Reference | None
    bootstrap: Bootstrap
    batch: int
    device: str
    tell: OnProgress
    notes: list[str] = field(default_factory=list)


def measured(name: str, names: Sequence[str], setting: Setting) -> dict[str, Estimate]:
    """The estimate of a metric, with those that are computed in the same pass."""
    if name in ("fid", "sfid"):
        return {name: _frechet(name, setting)}
    if name == "is":
        return {name: _inception_score(setting)}
    if name in ("precision", "recall"):
        return _neighbours(setting)
    if name == "accuracy":
        return {name: _accuracy(setting)}
    if name == "clip":
        return {name: _mean("clip", _clip(setting), setting.bootstrap)}
    pixels = _pairs([metric for metric in names if METRICS[metric].needs == "pairs"], setting)
    return {metric: _mean(metric, values, setting.bootstrap) for metric, values in pixels.items()}


def _mean(name: str, values: Tensor, bootstrap: Bootstrap) -> Estimate:
    values = values.double().cpu()
    if not bool(values.isfinite().all()):
        raise InputError(f"{name} is NaN or infinite for sample {int((~values.isfinite()).nonzero()[0, 0])}.")
    return Estimate(name, values.mean().item(), len(values), bootstrap.of_mean(values), bootstrap.seed)


def _frechet(name: str, setting: Setting) -> Estimate:
    features, reference, bootstrap = setting.features, setting.reference, setting.bootstrap
    layer = METRICS[name].layer
    assert features is not None
    assert reference is not None
    assert layer is not None
    target = reference.of(layer)
    value = frechet_distance(features.moments(layer), target)
    draws: tuple[float, ...] = ()
    if bootstrap.resamples:
        on_draw = partial(setting.tell, f"resampling {name}")
        draws = bootstrap.of_frechet(features.layer(layer).to(setting.device), target, on_draw)
    if features.count <= (dimensions := len(target.mean)):
        setting.notes.append(
            f"{METRICS[name].title}: {features.count} samples for {dimensions} dimensions; it is biased upwards, so "
            "compare it with sets of this size only."
        )
    return Estimate(name, value, features.count, draws, bootstrap.seed)


def _inception_score(setting: Setting) -> Estimate:
    assert setting.features is not None
    logits = setting.features.layer("logits").to(setting.device)
    draws = setting.bootstrap.of(lambda weights: inception_scores(logits, weights), len(logits))
    return Estimate("is", inception_score(logits), len(logits), draws, setting.bootstrap.seed)


def _neighbours(setting: Setting) -> dict[str, Estimate]:
    assert setting.features is not None
    assert setting.reference is not None
    known = setting.reference.features
    assert known is not None
    samples, others = setting.features.layer("pool"), known.layer("pool")
    bootstrap, resampled = setting.bootstrap, setting.bootstrap.resamples > 0
    total, done = (2 + resampled) * (len(samples) + len(others)), 0

    def on_rows(rows: int) -> None:
        nonlocal done
        done += rows
        setting.tell("precision, recall", done, total)

    samples, others = samples.to(setting.device), others.to(setting.device)
    precise, recalled = precision_recall(samples, others, on_rows=on_rows)
    draws: tuple[float, ...] = ()
    if resampled:
        groups = bootstrap.groups(len(samples)).to(setting.device)
        draws = bootstrap.of_jackknife(recalls_without(samples, others, groups, on_rows=on_rows))
    recall = Estimate("recall", recalled.double().mean().item(), len(samples), draws, bootstrap.seed)
    return {"precision": _mean("precision", precise, bootstrap), "recall": recall}


def _accuracy(setting: Setting) -> Estimate:
    assert setting.features is not None
    labels = setting.against.labels or (setting.samples.labels if setting.samples is not None else None)
    logits = setting.features.layer("logits")
    if labels is None or len(labels) != len(logits):
        given = "no labels" if labels is None else f"{len(labels)} labels"
        raise InputError(f"accuracy needs the label that each of {len(logits)} samples was made for; found {given}.")
    hits = logits.argmax(1) == torch.tensor(labels)
    return _mean("accuracy", hits, setting.bootstrap)


def _clip(setting: Setting) -> Tensor:
    samples, prompts = setting.samples, setting.against.prompts
    assert samples is not None
    assert prompts is not None
    if len(prompts) != len(samples):
        raise InputError(f"There are {len(prompts)} prompts for {len(samples)} samples: give one for every sample.")
    clip = setting.judges.clip or load_clip(device=setting.device)
    scores: list[Tensor] = []
    done = 0
    for part in samples.batches(setting.batch):
        scores.append(clip.score(part, prompts[done : done + len(part)]))
        done += len(part)
        setting.tell("CLIP score", done, len(samples))
    return torch.cat(scores)


def _pairs(names: Sequence[str], setting: Setting) -> dict[str, Tensor]:
    """The values (B,) of metrics of pairs, in one pass over both sets."""
    samples, uncached = setting.samples, setting.against.uncached
    assert samples is not None
    assert uncached is not None
    uncached = paired(samples, uncached)
    lpips = (setting.judges.lpips or load_lpips(device=setting.device)) if "lpips" in names else None
    functions = {
        "psnr": lambda x, y: psnr(x, y, peak=255).clamp_max(EQUAL_DB),
        "ssim": lambda x, y: ssim(x, y, peak=255),
        "lpips": lambda x, y: lpips.of(x / 255, y / 255) if lpips is not None else None,
    }
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    done = 0
    for x, y in zip(samples.batches(setting.batch), uncached.batches(setting.batch), strict=True):
        if x.shape != y.shape:
            raise InputError(
                f"{samples.which(done)} has {x.shape[2]} x {x.shape[3]} pixels, its partner {uncached.which(done)} has "
                f"{y.shape[2]} x {y.shape[3]}."
            )
        for name, parts in values.items():
            parts.append(functions[name](x, y))
        done += len(x)
        setting.tell("pairs", done, len(samples))
    return {name: torch.cat(parts) for name, parts in values.items()}
