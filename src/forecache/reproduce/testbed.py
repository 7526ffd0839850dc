"""What a table is run on: a model, the networks that judge its images, and what its rows need besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forecache import evaluate
from forecache.errors import InputError
from forecache.evaluate import clip
from forecache.evaluate.metrics import METRICS, chosen
from forecache.parts.router import Router
from forecache.parts.statistics import Statistics
from forecache.reproduce.table import SAMPLERS, Table
from forecache.sampling import sources
from forecache.sampling.device import place
from forecache.sampling.loop import random_labels
from forecache.sampling.runs import read_prompts
from forecache.sampling.sources import Condition, Source
from forecache.zoo import DigitsText, digits, digits_text
from forecache.zoo.digits import Digits
from forecache.zoo.open import open_source

BUNDLED = ("digits", "digits-text")


@dataclass(frozen=True)
class Given:
    """What a user gives for a model that is not bundled. reference: images or ADM's statistics. weights: of Inception.

    router: a file of ours or a published ``.pt``. statistics: a file of `forecache calibrate`. prompts: a file of
    texts, one a line. metrics: instead of the table's.
    """

    reference: str | None = None
    weights: str | None = None
    router: str | None = None
    statistics: str | None = None
    prompts: Path | None = None
    clip_model: str = clip.USUAL
    metrics: str | None = None


@dataclass(frozen=True)
class Ground:
    """A model with what judges it. metrics: of every row, those of pairs against the row without a cache.

    routers: by caching level. statistics: None where they are still to be measured. notes: what differs from the
    table's protocol. device: where distances are computed.
    """

    name: str
    source: Source
    metrics: tuple[str, ...]
    guidance: float
    judges: evaluate.Judges = field(default_factory=evaluate.Judges)
    reference: evaluate.Reference | None = None
    routers: Mapping[int, Router] = field(default_factory=dict)
    statistics: Statistics | None = None
    prompts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    device: str = "cpu"

    @property
    def is_bundled(self) -> bool:
        return self.name in BUNDLED

    def conditions(self, table: Table, count: int, seed: int) -> tuple[Condition, ...]:
        """One class or text a sample, as the table says; a model for texts takes its prompts in turn."""
        if self.source.classes and table.conditions == "random classes":
            return tuple(random_labels(count, self.source.classes, seed))
        given: Sequence[Condition] = self.prompts or sources.everything(self.source)
        if not given:
            raise InputError("The model makes images of texts: give a file of them, one a line, with --prompts.")
        return sources.checked(self.source, [given[index % len(given)] for index in range(count)])


def open_ground(
    table: Table, on: str | None, given: Given, device: str = "auto", dtype: str = "auto", *, judges: bool = True
) -> Ground:
    """The model that the table names, or ``on``: a bundled one, a pipeline folder, a repository on the hub.

    judges: False where this process never evaluates, so that nothing is loaded for it. The bundled models bring
    reference, extractor, routers and statistics, and keep their own sampler and guidance.
    """
    name = on or table.model
    if name in BUNDLED and (odd := _given(given, ("reference", "weights"))):
        raise InputError(f"{name} brings what judges it: leave --{odd[0]} out.")
    wanted = chosen(given.metrics) if given.metrics is not None else table.metrics
    where, _ = place(device, dtype)
    source = open_source(name, device, dtype)
    notes = _with_sampler(source, table)
    names, left_out = _metrics(name, source, wanted)
    notes += [f"{metric} is left out: {name} has nothing that it is measured with." for metric in left_out]
    if given.reference is None and name not in BUNDLED and (lacking := _needing(names, "reference")):
        raise InputError(
            f"{', '.join(lacking)} compare with real images: give ADM's .npz or a folder with --reference, or other "
            "metrics, such as --metrics is."
        )
    reference, judged = _judges(name, source, names, given, where) if judges else (None, evaluate.Judges())
    own = name in BUNDLED
    return Ground(
        name,
        source,
        names,
        sources.own_guidance(source) if own else table.guidance,
        judged,
        reference,
        _routers(table, name, given),
        _statistics(table, name, given),
        tuple(read_prompts(given.prompts)) if given.prompts is not None else (),
        tuple(notes),
        where,
    )


def _given(given: Given, names: Sequence[str]) -> list[str]:
    return [name for name in names if getattr(given, name) is not None]


def _needing(names: Sequence[str], what: str) -> list[str]:
    return [name for name in names if METRICS[name].needs == what]


def _metrics(name: str, source: Source, wanted: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The metrics that can be measured on the model, PSNR to the uncached samples among them; and those that cannot."""
    more = ["accuracy", "psnr"] if name == "digits" else ["psnr"]
    names = list(dict.fromkeys([*wanted, *more]))
    odd = [
        metric
        for metric in names
        if (metric == "clip" and source.classes)
        or (metric == "accuracy" and name != "digits")
        or (name == "digits-text" and metric not in ("fid", "psnr", "ssim"))
    ]
    return tuple(metric for metric in names if metric not in odd), odd


def _with_sampler(source: Source, table: Table) -> list[str]:
    """A pipeline samples by the table's scheduler, made of its own one's settings; bundled models keep theirs."""
    asked = SAMPLERS[table.sampler]
    pipe = getattr(source, "pipe", None)
    if pipe is None:
        scheduler = getattr(source, "digits", source)
        found = type(getattr(scheduler, "scheduler", None)).__name__
        return [] if found == asked else [f"Sampled by {found}, not by {table.sampler}: the model's own."]
    found = type(pipe.scheduler).__name__
    if found == asked:
        return []
    import diffusers

    pipe.scheduler = getattr(diffusers, asked).from_config(pipe.scheduler.config)
    return [f"The pipeline's {found} was replaced by {asked}, the sampler of the table."]


def _judges(
    name: str, source: Source, names: Sequence[str], given: Given, device: str
) -> tuple[evaluate.Reference | None, evaluate.Judges]:
    if isinstance(source, DigitsText):
        return evaluate.Reference(name, {"pool": source.reference}), evaluate.Judges(_text_extractor(source))
    if isinstance(source, Digits):
        return evaluate.open_reference(name), evaluate.Judges(evaluate.load_extractor("digits", device=device))
    needed = any(METRICS[metric].layer for metric in names)
    reference = evaluate.open_reference(given.reference) if given.reference is not None else None
    return reference, evaluate.Judges(
        evaluate.load_extractor("inception", given.weights, device) if needed else None,
        evaluate.load_clip(given.clip_model, device) if "clip" in names else None,
        evaluate.load_lpips(device=device) if "lpips" in names else None,
    )


def _text_extractor(source: DigitsText) -> evaluate.Extractor:
    """What the judge of digits-text sees in its canvases."""

    def of(images: Any) -> dict[str, Any]:
        return {"pool": source.features(images[:, :1].float() / 255)}

    return evaluate.Extractor("digits-text", ("pool",), of)


def _routers(table: Table, name: str, given: Given) -> dict[int, Router]:
    """The routers of the table's caching levels: the given one for all, else those that come with digits."""
    recipes = [row.recipe for row in table.rows]
    levels = {level for recipe in recipes for level in (recipe.levels() if recipe else ())}
    if not levels:
        return {}
    if given.router is not None:
        return dict.fromkeys(levels, Router.read(given.router))
    if name == "digits":
        return {level: Router.load(digits.router_path(level)) for level in levels if level in digits.ROUTERS}
    return {}


def _statistics(table: Table, name: str, given: Given) -> Statistics | None:
    if not any(row.recipe and row.recipe.uses("eoc", "smoothcache") for row in table.rows):
        return None
    if given.statistics is not None:
        return Statistics.load(given.statistics)
    if name in BUNDLED:
        return Statistics.load((digits if name == "digits" else digits_text).statistics_path(table.steps))
    return None
