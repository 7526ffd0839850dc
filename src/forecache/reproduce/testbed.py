"""The testbed of a table: a model, the networks that judge its images, and the routers and statistics of its rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forecache import evaluate
from forecache.errors import InputError
from forecache.evaluate import clip
from forecache.evaluate.metrics import METRICS, parse_metrics
from forecache.methods import registry
from forecache.parts.router import Router
from forecache.parts.statistics import Statistics
from forecache.reproduce import recipes
from forecache.reproduce.table import RESPACED, SAMPLERS, Table
from forecache.sampling import sources
from forecache.sampling.device import resolve
from forecache.sampling.loop import random_labels
from forecache.sampling.respaced import respaced
from forecache.sampling.runs import read_prompts
from forecache.sampling.sources import Condition, DiTSource, Source
from forecache.zoo.bundled import models, record
from forecache.zoo.open import open_source

OWN_VAE = "own"
"""The word for the pipeline's own decoder."""


@dataclass(frozen=True)
class TestbedOptions:
    """What the user supplies for a model that does not ship with forecache; None takes the default.

    reference: real images, an .npz of ADM or a folder. Default: none, for metrics that need none.
    weights: a file of Inception's weights. Default: downloaded.
    router: a router file, ours or a published ``.pt``. Default: none.
    statistics: a file of `forecache calibrate`. Default: measured as the table says.
    prompts: a file of prompts, one a line.
    clip_model: a folder or a hub repository of CLIP.
    metrics: names separated by commas. Default: the table's.
    vae: a folder or a hub repository of the decoder, "own" for the pipeline's. Default: on the table's own model the
        table's, else the pipeline's.
    """

    reference: str | None = None
    weights: str | None = None
    router: str | None = None
    statistics: str | None = None
    prompts: Path | None = None
    clip_model: str = clip.USUAL
    metrics: str | None = None
    vae: str | None = None


@dataclass(frozen=True)
class Testbed:
    """A model with everything that measures it.

    name: the model's name, folder or repository.
    source: the model.
    metrics: of every row; those of image pairs compare with the row without a cache.
    guidance: classifier-free guidance scale.
    judges: the networks that metrics need.
    reference: real images; None if no metric needs any.
    routers: by caching level, in percent.
    statistics: for eoc and smoothcache; None where they are still to be measured.
    prompts: of a text-to-image model; empty takes the model's own.
    notes: differences from the table's protocol, as sentences.
    device: where distances are computed.
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
        """Whether the model ships with forecache."""
        return self.name in models()

    def conditions(self, table: Table, count: int, seed: int) -> tuple[Condition, ...]:
        """The class or the prompt of every sample, as the table says; prompts are cycled."""
        if self.source.classes and table.conditions == "random classes":
            return tuple(random_labels(count, self.source.classes, seed))
        cycle: Sequence[Condition] = self.prompts or sources.all_conditions(self.source)
        if not cycle:
            raise InputError("The model takes prompts: give a file of them, one a line, with --prompts.")
        return sources.check_conditions(self.source, [cycle[index % len(cycle)] for index in range(count)])


def open_testbed(
    table: Table,
    on: str | None = None,
    options: TestbedOptions = TestbedOptions(),
    device: str = "auto",
    dtype: str = "auto",
    *,
    judges: bool = True,
) -> Testbed:
    """The testbed of a table on the model that the table names, or on another one.

    on: a bundled model, a pipeline folder, or a hub repository. Bundled models bring their reference, extractor,
        routers and statistics, and keep their own sampler and guidance scale.
    judges: False for a process that does not evaluate; it then loads no judging networks.

    Raises InputError if a metric lacks its reference, or an option does not apply to a bundled model.
    """
    name = on or table.model
    is_bundled = name in models()
    if is_bundled and (idle := [option for option in ("reference", "weights") if getattr(options, option) is not None]):
        raise InputError(f"{name} brings its own reference and judge: leave --{idle[0]} out.")
    wanted = parse_metrics(options.metrics) if options.metrics is not None else table.metrics
    placement, _ = resolve(device, dtype)
    source = open_source(name, device, dtype)
    metrics, unmeasurable = _metrics(name, source, wanted)
    source, notes = _with_sampler(source, table)
    notes += _with_vae(source, table, options.vae, is_own=on is None)
    notes += [f"{metric} is left out: {name} has nothing that it is measured with." for metric in unmeasurable]
    needing = [metric for metric in metrics if METRICS[metric].needs == "reference"]
    if options.reference is None and not is_bundled and needing:
        raise InputError(
            f"{', '.join(needing)} compare with real images: give ADM's .npz or a folder with --reference, or other "
            "metrics, such as --metrics is."
        )
    statistics = _statistics(table, name, options)
    notes += _on_statistics(table, name, statistics)
    reference, networks = None, evaluate.Judges()
    if judges:
        reference, networks = _judges(name, metrics, options, placement)
    return Testbed(
        name,
        source,
        metrics,
        sources.own_guidance(source) if is_bundled else table.guidance,
        networks,
        reference,
        _routers(table, name, options),
        statistics,
        tuple(read_prompts(options.prompts)) if options.prompts is not None else (),
        tuple(notes),
        placement,
    )


def _metrics(name: str, source: Source, wanted: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The metrics that can be measured on the model, PSNR to the uncached samples added, and those that cannot."""
    if name in models():
        measurable: Collection[str] = record(name).metrics
    else:
        measurable = METRICS.keys() - {"accuracy"} - ({"clip"} if source.classes else set())
    own = [metric for metric in ("accuracy", "psnr") if metric in measurable]
    names = list(dict.fromkeys([*wanted, *own]))
    unmeasurable = [metric for metric in names if metric not in measurable]
    return tuple(metric for metric in names if metric not in unmeasurable), unmeasurable


def _with_sampler(source: Source, table: Table) -> tuple[Source, list[str]]:
    """The source with the table's sampler, in its own settings, and notes; bundled models keep theirs."""
    wanted = SAMPLERS[table.sampler]
    pipe = getattr(source, "pipe", None)
    if pipe is None:
        own = type(getattr(source, "scheduler", None)).__name__
        return source, [] if own == wanted else [f"Sampled by {own}, not by {table.sampler}: the model's own."]
    own = type(pipe.scheduler).__name__
    if table.sampler == RESPACED and isinstance(source, DiTSource):
        note = "Sampled as DiT's original code does: respaced timesteps, guidance on three of the channels."
        return respaced(pipe), [note]
    if own == wanted:
        return source, []
    if wanted not in {scheduler.__name__ for scheduler in pipe.scheduler.compatibles}:
        raise InputError(
            f"{table.name} is a table of {table.sampler}, and a pipeline with {own} cannot be sampled by it: measure "
            "the table on a model of its own kind, such as a DiT or PixArt pipeline."
        )
    import diffusers

    pipe.scheduler = getattr(diffusers, wanted).from_config(pipe.scheduler.config)
    return source, [f"The pipeline's {own} was replaced by {wanted}, the sampler of the table."]


def _with_vae(source: Source, table: Table, given: str | None, is_own: bool) -> list[str]:
    """Give a pipeline another decoder: the user's, or on the table's own model the table's. Returns notes."""
    pipe = getattr(source, "pipe", None)
    name = given or (table.vae if is_own else "")
    if pipe is None or name in ("", OWN_VAE):
        if given not in (None, OWN_VAE):
            raise InputError(f"The model decodes nothing: leave --vae {given} out.")
        is_named = pipe is not None and table.vae and name == ""
        return [f"Decoded by the pipeline's own VAE, not by {table.vae}."] if is_named else []
    import diffusers

    try:
        vae = diffusers.AutoencoderKL.from_pretrained(name, torch_dtype=pipe.vae.dtype)
    except Exception as error:  # the hub, files and configurations fail in many ways; the reason is kept
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"The VAE {name} cannot be loaded: {reason} Give a folder with --vae, or --vae own."
        ) from error
    pipe.vae = vae.eval().to(pipe.device)
    return [f"Decoded by {name}."]


def _judges(
    name: str, names: Sequence[str], options: TestbedOptions, device: str
) -> tuple[evaluate.Reference | None, evaluate.Judges]:
    if name in models():
        return evaluate.open_reference(name), evaluate.Judges(evaluate.load_extractor(name, device=device))
    needed = any(METRICS[metric].layer for metric in names)
    reference = evaluate.open_reference(options.reference) if options.reference is not None else None
    return reference, evaluate.Judges(
        evaluate.load_extractor("inception", options.weights, device) if needed else None,
        evaluate.load_clip(options.clip_model, device) if "clip" in names else None,
        evaluate.load_lpips(device=device) if "lpips" in names else None,
    )


def _routers(table: Table, name: str, options: TestbedOptions) -> dict[int, Router]:
    """The routers of the table's caching levels: the user's for all of them, else the bundled ones."""
    levels = {level for row in table.rows if row.recipe is not None for level in recipes.levels(row.recipe)}
    if not levels:
        return {}
    if options.router is not None:
        return dict.fromkeys(levels, Router.read(options.router))
    bundled = record(name).routers if name in models() else {}
    return {level: Router.load(path) for level, path in bundled.items() if level in levels}


def _on_statistics(table: Table, name: str, statistics: Statistics | None) -> list[str]:
    """A note where EOC corrects with other priors than its authors' code, which has one mean a token."""
    uses_eoc = any(entry.name == "eoc" for row in table.rows if row.recipe for entry, _ in registry.links(row.recipe))
    if not uses_eoc or statistics is None or statistics.resolution == "token":
        return []
    return [
        f"EOC's priors are means per channel here, as the statistics of {name} keep them; its authors' are per token: "
        "calibrate with --keep full and give the file with --stats."
    ]


def _statistics(table: Table, name: str, options: TestbedOptions) -> Statistics | None:
    if not any(recipes.needs_statistics(row.recipe) for row in table.rows):
        return None
    if options.statistics is not None:
        return Statistics.load(options.statistics)
    if name in models():
        return Statistics.load(record(name).statistics_path(table.steps))
    return None
