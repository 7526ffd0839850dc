"""The metrics by name: the data that each needs, whether higher or lower is better, and its number of digits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from forecache.errors import InputError

Needs = Literal["reference", "samples", "pairs", "prompts", "labels"]


@dataclass(frozen=True)
class Metric:
    """A metric of a set of images.

    name: in options and files
    title: in tables, with the unit
    better: whether higher or lower values are better
    needs: the data that samples are compared with
    layer: the features that it reads; None for pixels
    kept: whether it reads the features themselves, and not only their moments
    at_least: fewest samples
    biased: whether its value shifts with the number of samples, so that only sets of one size compare
    digits: decimals in print
    least: lowest possible value
    most: highest possible value
    """

    name: str
    title: str
    better: Literal["higher", "lower"]
    needs: Needs
    layer: str | None = None
    kept: bool = True
    at_least: int = 1
    biased: bool = False
    digits: int = 3
    least: float = 0.0
    most: float = math.inf


METRICS = {
    metric.name: metric
    for metric in (
        Metric("fid", "FID", "lower", "reference", "pool", kept=False, at_least=2, biased=True),
        Metric("sfid", "sFID", "lower", "reference", "spatial", kept=False, at_least=2, biased=True),
        Metric("is", "IS", "higher", "samples", "logits", at_least=10, biased=True, least=1),
        Metric("precision", "Prec.", "higher", "reference", "pool", at_least=4, most=1),
        Metric("recall", "Recall", "higher", "reference", "pool", at_least=4, biased=True, most=1),
        Metric("accuracy", "class", "higher", "labels", "logits", most=1),
        Metric("clip", "CLIP", "higher", "prompts", digits=2, most=100),
        Metric("psnr", "PSNR, dB", "higher", "pairs", digits=2, least=-math.inf),
        Metric("ssim", "SSIM", "higher", "pairs", digits=4, least=-1, most=1),
        Metric("lpips", "LPIPS", "lower", "pairs", digits=4),
    )
}

ALIASES = {"prc": ("precision", "recall"), "adm": ("fid", "sfid", "is", "precision", "recall")}


def parse_metrics(names: str | Sequence[str]) -> tuple[str, ...]:
    """The metrics of a text such as ``fid,sfid,is,prc``, or of names: aliases resolved, without duplicates.

    Raises InputError for an unknown name, or if there is none.
    """
    words = [word.strip().lower() for word in (names.split(",") if isinstance(names, str) else names)]
    metrics: list[str] = []
    for word in filter(None, words):
        if word not in METRICS and word not in ALIASES:
            raise InputError(f"There is no metric {word!r}; there are {', '.join([*METRICS, *ALIASES])}.")
        metrics += [name for name in ALIASES.get(word, (word,)) if name not in metrics]
    if not metrics:
        raise InputError(f"No metric was asked for; there are {', '.join([*METRICS, *ALIASES])}.")
    return tuple(metrics)
