"""One evaluation: the metrics of a set of images, each with its interval.

evaluate(open_images("samples"), Against(open_reference("reference.npz")), "fid,sfid,is,prc",
         Judges(load_extractor("inception")))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from forecache.errors import InputError
from forecache.evaluate.bootstrap import Bootstrap
from forecache.evaluate.estimates import Estimate
from forecache.evaluate.extractors import Extractor
from forecache.evaluate.features import Features, extract
from forecache.evaluate.imagesets import ImageSet
from forecache.evaluate.measure import Against, Judges, OnProgress, Setting, measured
from forecache.evaluate.metrics import METRICS, parse_metrics
from forecache.evaluate.reference import Reference, prepared


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    samples: name of the set of images
    count: number of samples
    figures: estimates by metric, in the order of the request
    extractor: name of the network that features are of; None if no metric reads features
    reference: name of the reference; None if no metric compares with one
    notes: remarks for the reader, as sentences
    """

    samples: str
    count: int
    figures: Mapping[str, Estimate]
    extractor: str | None = None
    reference: str | None = None
    notes: tuple[str, ...] = ()

    def document(self, *, draws: bool = True) -> dict[str, Any]:
        """The evaluation for a JSON file.

        draws: with the value of every resample, which later comparisons need
        """
        return {
            "samples": self.samples,
            "count": self.count,
            "extractor": self.extractor,
            "reference": self.reference,
            "figures": {name: figure.document(draws=draws) for name, figure in self.figures.items()},
            "notes": list(self.notes),
        }


def evaluate(
    samples: ImageSet | Features,
    against: Against,
    metrics: str | Sequence[str],
    judges: Judges,
    *,
    features: Features | None = None,
    bootstrap: Bootstrap = Bootstrap(),  # noqa: B008 - it is frozen
    batch: int = 64,
    device: str = "cpu",
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """The metrics of samples, with intervals.

    samples: images, or their features
    against: reference, partners, prompts or labels to compare with
    metrics: names, or a text such as ``fid,sfid,is,prc``
    judges: the networks; they stay on the device that they were loaded on
    features: of the samples, if they were extracted already
    bootstrap: resamples of every interval
    batch: images in a call of a network
    device: where distances and covariances are computed

    Raises InputError if a metric lacks a reference, partners, prompts, samples, or a layer of the extractor.
    """
    names = check(samples, against, metrics)
    images = None if isinstance(samples, Features) else samples
    features = samples if isinstance(samples, Features) else features
    count = samples.count if isinstance(samples, Features) else len(samples)
    tell = on_progress or (lambda *_: None)
    layers = _layers(names, bootstrap)
    if layers and features is None:
        assert images is not None
        keep = [layer for layer, whole in layers.items() if whole]
        stream = [layer for layer, whole in layers.items() if not whole]
        on_images = partial(_tell_images, tell, "samples", count)
        features = extract(images, _extractor(judges), keep, stream=stream, batch=batch, on_images=on_images)
    if features is not None and layers and features.count != count:
        raise InputError(f"There are features of {features.count} images for {count} samples.")
    reference = _reference(names, against, judges, features, batch, tell)
    setting = Setting(images, against, judges, features, reference, bootstrap, batch, device, tell)
    figures: dict[str, Estimate] = {}
    for name in names:
        figures = figures if name in figures else figures | measured(name, names, setting)
    return Evaluation(
        images.name if images is not None else "features",
        count,
        {name: figures[name] for name in names},
        features.extractor if features is not None and layers else None,
        reference.name if reference is not None else None,
        tuple(setting.notes),
    )


def needs_extractor(samples: ImageSet | Features, against: Against, metrics: str | Sequence[str]) -> bool:
    """Whether a metric needs features of the samples or of the reference that are still to be extracted."""
    names = parse_metrics(metrics)
    if not isinstance(samples, Features) and any(METRICS[name].layer for name in names):
        return True
    keep, stream = _of_reference(names)
    reference = against.reference
    return reference is not None and not (
        all(reference.has(name, kept=True) for name in keep) and all(reference.has(name, kept=False) for name in stream)
    )


def _of_reference(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The layers whose features the reference needs, and those whose moments are enough."""
    wanted = [METRICS[name] for name in names if METRICS[name].needs == "reference"]
    keep = dict.fromkeys(metric.layer for metric in wanted if metric.kept and metric.layer)
    return [*keep], [*dict.fromkeys(metric.layer for metric in wanted if not metric.kept and metric.layer)]


def _layers(names: Sequence[str], bootstrap: Bootstrap) -> dict[str, bool]:
    """The layers that the metrics read; True if they need features, False if moments are enough."""
    layers: dict[str, bool] = {}
    for metric in (METRICS[name] for name in names):
        if metric.layer is not None:
            whole = metric.kept or bootstrap.resamples > 0
            layers[metric.layer] = layers.get(metric.layer, False) or whole
    return layers


def check(samples: ImageSet | Features, against: Against, metrics: str | Sequence[str]) -> tuple[str, ...]:
    """The names of the metrics; InputError, before any work, if one lacks samples or what it compares them with."""
    names = parse_metrics(metrics)
    features_only = isinstance(samples, Features)
    count, where = (samples.count, "the file") if features_only else (len(samples), samples.name)
    for name in names:
        metric = METRICS[name]
        if count < metric.at_least:
            raise InputError(f"{name} needs at least {metric.at_least} samples; {where} has {count}.")
        if metric.needs in ("pairs", "prompts") and features_only:
            raise InputError(f"{name} needs the images themselves; only features were given.")
        given = {"reference": against.reference, "pairs": against.uncached, "prompts": against.prompts}
        if metric.needs in given and given[metric.needs] is None:
            words = {"reference": "a reference", "pairs": "the uncached samples", "prompts": "a prompt for each sample"}
            raise InputError(f"{name} needs {words[metric.needs]}; none was given.")
    return names


def _extractor(judges: Judges) -> Extractor:
    if judges.extractor is None:
        raise InputError("These metrics need an extractor; none was given.")
    return judges.extractor


def _reference(
    names: Sequence[str], against: Against, judges: Judges, features: Features | None, batch: int, tell: OnProgress
) -> Reference | None:
    reference = against.reference
    keep, stream = _of_reference(names)
    if not (keep or stream) or reference is None or features is None:
        return None
    total = len(reference.images) if reference.images is not None else 0
    on_images = partial(_tell_images, tell, "reference", total)
    complete = not needs_extractor(features, against, names)
    by = judges.extractor or (Extractor(features.extractor, (), lambda _: {}) if complete else _extractor(judges))
    if by.name != features.extractor:
        raise InputError(f"The features of the samples are those of {features.extractor}, not of {by.name}.")
    return prepared(reference, by, keep, stream=stream, batch=batch, on_images=on_images)


def _tell_images(tell: OnProgress, what: str, total: int, done: int) -> None:
    tell(what, done, total)
