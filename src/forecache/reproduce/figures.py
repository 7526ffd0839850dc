"""The papers' figures, measured again on any model, as data for JSON; `forecache.report.paper_figures` draws them.

    figure, source = FIGURES["goc-figure-1"], open_source("digits")
    data = measure(figure, source, settings_of(figure, source, "digits"), "out/figure.json")

The file is written after every measurement, and the same call continues an interrupted one.

B batch, N tokens, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forecache._version import __version__
from forecache.environment import environment
from forecache.errors import InputError, TableError
from forecache.evaluate import psnr
from forecache.io import files
from forecache.io.document import Document, refusing
from forecache.methods.explicit import explicit
from forecache.methods.fora import fora
from forecache.methods.goc import goc
from forecache.models.find import find, grid, layout_for
from forecache.models.fingerprint import describe_scheduler, fingerprint
from forecache.parts.forecasts import Gradient, Taylor
from forecache.parts.grid import Action, Grid, Site
from forecache.plan.method import Method
from forecache.plan.plan import Plan
from forecache.runtime.apply import apply
from forecache.runtime.plan_source import Fixed
from forecache.runtime.session import Session
from forecache.sampling import sources
from forecache.sampling.shards import plan_digest
from forecache.sampling.sources import Condition, Source

DOCUMENT = Document("forecache-figure", 1)
KEYS = {"figure": str, "settings": dict, "points": dict, "environment": dict, "forecache": str}
OnPoint = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """What determines the data of a figure.

    on: name of the model.
    model: fingerprint of its weights.
    scheduler: its scheduler with its settings.
    conditions: classes or texts, one a sample.
    steps: sampling steps.
    guidance: classifier-free guidance scale.
    seed: of the noise.
    eta: of GOC.
    plans: further plans of a figure that shows plans side by side, by name.
    """

    on: str
    model: str
    scheduler: str
    conditions: tuple[Condition, ...]
    steps: int
    guidance: float
    seed: int
    eta: float
    plans: Mapping[str, Plan] = field(default_factory=dict, repr=False, hash=False)

    def document(self) -> dict[str, Any]:
        """The settings as JSON holds them: plans by their digests, and only where there are any."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "plans"}
        digests = {name: plan_digest(plan) for name, plan in self.plans.items()}
        return values | {"conditions": list(self.conditions)} | ({"plans": digests} if digests else {})


@dataclass(frozen=True)
class PaperFigure:
    """A figure of a paper.

    name: as `forecache reproduce` takes it.
    title: what it shows.
    paper: arXiv number.
    number: of the figure in the paper, empty where it is not known.
    samples: samples by default.
    points: (lab) -> the measurements, by key, each as a function without arguments.
    eta: of GOC in it.
    takes_plans: whether further plans can be shown in it.
    """

    name: str
    title: str
    paper: str
    number: str
    samples: int
    points: Callable[[Lab], Mapping[str, Callable[[], Any]]] = field(repr=False)
    eta: float = 1.2
    takes_plans: bool = False

    @property
    def source(self) -> str:
        """The paper and the number of the figure."""
        return f"arXiv {self.paper}{f', figure {self.number}' if self.number else ''}"


class Lab:
    """A model and the settings of a figure: samples under plans, and features without one.

    source: the model.
    settings: of the figure.
    """

    def __init__(self, source: Source, settings: Settings) -> None:
        self.source, self.settings = source, settings
        self.grid: Grid = grid(source.target, settings.steps)
        self._uncached: Tensor | None = None

    @property
    def how(self) -> sources.Sampling:
        return sources.Sampling(self.settings.steps, self.settings.guidance, self.settings.seed)

    @property
    def uncached(self) -> Tensor:
        """The images (B, C, H, W) without a cache."""
        if self._uncached is None:
            self._uncached = sources.in_batches(self.source, self.settings.conditions, self.how, 16)
        return self._uncached

    def images(self, method: Method | Plan) -> Tensor:
        """The images (B, C, H, W) under a method or a plan."""
        plan = method.plan(self.grid) if isinstance(method, Method) else method
        with apply(self.source.target, plan):
            return sources.in_batches(self.source, self.settings.conditions, self.how, 16)

    def closeness(self, method: Method) -> dict[str, float]:
        """PSNR to the uncached images in dB, mean over images, and the relative L2 distance of all of them."""
        images = self.images(method)
        distance = (images - self.uncached).norm() / self.uncached.norm()
        return {"psnr": psnr(images, self.uncached).clamp_max(100).mean().item(), "distance": distance.item()}

    def features(self, watched: Callable[[int, Site], bool]) -> dict[tuple[int, str], Tensor]:
        """Features (N, D) of the first sample, conditional half, without a cache, by step and site."""
        features: dict[tuple[int, str], Tensor] = {}
        second = getattr(self.source, "conditional", "first") == "second" and self.settings.guidance > 1

        def watch(step: int, site: int, feature: Tensor) -> None:
            if watched(step, self.grid.sites[site]):
                row = len(feature) // 2 if second else 0
                features[step, self.grid.sites[site].name] = feature[row].detach().float().cpu().clone()

        every_step = explicit(compute=range(self.grid.num_steps)).plan(self.grid)
        layout = layout_for(find(self.source.target), self.grid)
        with Session(Fixed(every_step), [layout], watch=watch) as session:
            session.new_run()
            self.source.generate(list(self.settings.conditions[:1]), self.how)
            session.check_complete()
        return features


# ---- GOC -------------------------------------------------------------------------------------------------------------


def _trajectories(lab: Lab) -> dict[str, Callable[[], Any]]:
    """An attention and an MLP of the middle block: outputs at t-1, t and t+1, and estimates of the last."""
    depths = sorted({site.depth for site in lab.grid.sites})
    middle = depths[len(depths) // 2]
    sites = {
        kind: next((site for site in lab.grid.sites if site.depth == middle and site.kind == kind), None)
        for kind in ("attn", "mlp")
    }
    newest = lab.grid.num_steps // 4 * 2  # an even step, computed by FORA N = 2
    if newest < 2 or None in sites.values():
        raise InputError(
            f"This figure needs 4 steps at least, and a model of attentions and MLPs: there are {lab.grid.num_steps} "
            f"steps, and sites of the kinds {', '.join(sorted({site.kind for site in lab.grid.sites}))}."
        )

    def point(site: Site) -> Callable[[], Any]:
        return lambda: _points(lab.features(lambda step, other: other == site), site.name, newest, lab.settings.eta)

    return {kind: point(site) for kind, site in sites.items() if site is not None}


def _points(features: Mapping[tuple[int, str], Tensor], site: str, newest: int, eta: float) -> dict[str, Any]:
    """Points in two principal components of the three outputs, and the estimates' distances from the last."""
    outputs = [features[step, site] for step in (newest - 1, newest, newest + 1)]
    emitted = {newest: features[newest, site], newest - 2: features[newest - 2, site]}
    emitted[newest - 1] = emitted[newest - 2]  # a skipped step before was reused
    computed = [newest, newest - 2]
    rules = {"GC": Gradient(eta), "Taylor 1": Taylor(1)}
    estimates = {"reuse": emitted[newest]}
    for name, rule in rules.items():
        reads = rule.reads(newest + 1, computed)
        estimates[name] = sum((weight * emitted[step] for step, weight in reads.items()), torch.zeros(()))
    mean_D, axes_2D = principal(torch.cat(outputs))
    truth = outputs[-1]

    def place(feature_ND: Tensor) -> list[list[float]]:
        return ((feature_ND - mean_D) @ axes_2D.T).tolist()

    return {
        "site": site,
        "step": newest,
        "outputs": {name: place(output) for name, output in zip(("t-1", "t", "t+1"), outputs, strict=True)},
        "estimates": {name: place(estimate) for name, estimate in estimates.items()},
        "errors": {name: ((e - truth).norm() / truth.norm()).item() for name, e in estimates.items()},
    }


def principal(points_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (D,) of points and their first two principal axes (2, D), each with its largest part positive."""
    mean_D = points_ND.double().mean(0)
    _, _, axes = torch.linalg.svd(points_ND.double() - mean_D, full_matrices=False)
    axes_2D = axes[:2]
    signs = torch.gather(axes_2D, 1, axes_2D.abs().argmax(1, keepdim=True)).sign()
    return mean_D.float(), (axes_2D * signs).float()


def _steps(lab: Lab) -> dict[str, Callable[[], Any]]:
    """FORA 50 % with GC at one step alone, at all steps up to it, and at all others (ours); ``none`` is FORA."""
    base = fora(2)
    skipped = range(3, lab.grid.num_steps, 2)
    points: dict[str, Callable[[], Any]] = {"none": lambda: lab.closeness(base)}

    def point(steps: Sequence[int]) -> Callable[[], Any]:
        return lambda: lab.closeness(goc(base, lab.settings.eta, steps=steps))

    for step in skipped:
        points[f"at {step}"] = point([step])
        points[f"up to {step}"] = point(range(3, step + 1, 2))
        points[f"without {step}"] = point([other for other in skipped if other != step])
    return points


def _side_by_side(lab: Lab) -> dict[str, Callable[[], Any]]:
    """The same noise under no cache, FORA, FORA + GC, FORA + GOC and further plans: images as nested lists."""
    half, steps = fora(2), lab.grid.num_steps
    listed = [step for step in range(3, steps, 2) if step != steps - 3]  # of 20, the authors' list: 17 is left out
    plans: dict[str, Method | Plan] = {
        "FORA": half,
        "FORA + GC": goc(half, lab.settings.eta),
        "FORA + GOC": goc(half, lab.settings.eta, steps=listed),
        "FORA + GC, eta 0.8": goc(half, 0.8),
        **lab.settings.plans,
    }

    def point(method: Method | Plan) -> Callable[[], Any]:
        def run() -> dict[str, Any]:
            images = lab.images(method)
            closeness = psnr(images, lab.uncached).clamp_max(100)
            return {"images": _bytes(images), "psnr": closeness.tolist()}

        return run

    return {"no cache": lambda: {"images": _bytes(lab.uncached)}} | {
        name: point(method) for name, method in plans.items()
    }


def _bytes(images: Tensor) -> list[Any]:
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).tolist()


# ---- ProCache --------------------------------------------------------------------------------------------------------


def _changes(lab: Lab) -> dict[str, Callable[[], Any]]:
    """Relative L1 change of every site from step to step, of the first sample."""

    def run() -> dict[str, Any]:
        features = lab.features(lambda step, site: True)
        table = [
            [
                ((features[step, site.name] - before).abs().sum() / features[step, site.name].abs().sum()).item()
                for step in range(1, lab.grid.num_steps)
                for before in (features[step - 1, site.name],)
            ]
            for site in lab.grid.sites
        ]
        return {"sites": [site.name for site in lab.grid.sites], "changes": table}

    return {"changes": run}


MOST_STEPS, MOST_DEPTHS = 10, 6
"""Most rows and columns of the map of error propagation."""


def _propagation(lab: Lab) -> dict[str, Callable[[], Any]]:
    """The image's change by one reused estimate: of a few blocks, at one step. Key ``step/first-last``."""

    def point(step: int, low: int, high: int) -> Callable[[], Any]:
        def schedule(at: int, site: Site, cells: Grid) -> Action:
            return Action.SKIP if at == step and low <= site.depth < high else Action.COMPUTE

        return lambda: lab.closeness(Method("one estimate", schedule))

    return {
        f"{step}/{low}-{high - 1}": point(step, low, high)
        for step in _thinned(range(1, lab.grid.num_steps), MOST_STEPS)
        for low, high in _groups(1 + max(site.depth for site in lab.grid.sites))
    }


def _thinned(steps: Sequence[int], most: int) -> list[int]:
    """At most so many of the steps, evenly, the first and the last among them."""
    count = min(most, len(steps))
    return sorted({steps[round(index * (len(steps) - 1) / max(1, count - 1))] for index in range(count)})


def _groups(blocks: int) -> Iterator[tuple[int, int]]:
    """Consecutive blocks in at most `MOST_DEPTHS` groups, as (first, last + 1)."""
    count = min(MOST_DEPTHS, blocks)
    bounds = [round(index * blocks / count) for index in range(count + 1)]
    return itertools.pairwise(bounds)


FIGURES = {
    figure.name: figure
    for figure in (
        PaperFigure(
            "goc-figure-1",
            "outputs of an attention and an MLP at three steps, and estimates of the last",
            "2503.05156",
            "1",
            1,
            _trajectories,
        ),
        PaperFigure("goc-figure-3", "GC at one single step, and at all steps up to it", "2503.05156", "3", 32, _steps),
        *(
            PaperFigure(
                f"goc-figure-{number}",
                "the same seeds under FORA, GC and GOC",
                "2503.05156",
                number,
                8,
                _side_by_side,
                takes_plans=True,
            )
            for number in ("4", "5")
        ),
        PaperFigure("procache-changes", "change of features by step and site", "2512.17298", "", 1, _changes),
        PaperFigure(
            "procache-errors", "effect on the image of one estimate at (step, depth)", "2512.17298", "", 8, _propagation
        ),
    )
}


def settings_of(
    figure: PaperFigure, source: Source, on: str, *, samples: int | None = None, seed: int = 0, steps: int = 20,
    labels: Sequence[int] = (), prompts: Sequence[str] = (), plans: Mapping[str, Plan] = {},
) -> Settings:  # fmt: skip
    """The settings of a figure on a model: conditions are its classes or prompts, or those that are given, cycled.

    samples: those of the figure by default; of labels, one each.
    steps: of the runs; those of the plans, if there are any.
    plans: further plans by name, of a figure that takes them.

    Raises InputError for a model of texts without any, and for plans that the figure or one another do not fit;
    PlanMismatchError for a plan of another model.
    """
    cycle: Sequence[Condition] = tuple(labels) or tuple(prompts) or sources.all_conditions(source)
    if not cycle:
        raise InputError("The model takes prompts: give a file of them, one a line, with --prompts.")
    count = (len(labels) or figure.samples) if samples is None else samples
    if plans:
        steps = _steps_of(figure, source, plans)
    conditions = sources.check_conditions(source, [cycle[index % len(cycle)] for index in range(count)])
    target = source.target
    described = describe_scheduler(getattr(target, "scheduler", None))
    guidance = sources.own_guidance(source)
    return Settings(on, fingerprint(find(target)), described, conditions, steps, guidance, seed, figure.eta, plans)


def _steps_of(figure: PaperFigure, source: Source, plans: Mapping[str, Plan]) -> int:
    """The number of steps of plans that are to be shown together; InputError if they cannot be."""
    if not figure.takes_plans:
        raise InputError(f"{figure.name} shows no plans side by side, as goc-figure-4 does: leave --plan out.")
    counts = {name: plan.num_steps for name, plan in plans.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"The plans of a figure have one number of steps, and these have several: {listed}.")
    for plan in plans.values():
        layout_for(find(source.target), plan.grid)
    return next(iter(counts.values()))


def measure(
    figure: PaperFigure, source: Source, settings: Settings, path: Path | str, on_point: OnPoint = lambda *_: None
) -> dict[str, Any]:
    """The data of a figure; every measurement is written when it is known, and none is made twice.

    Raises TableError if the file has other settings.
    """
    path, lab = Path(path), Lab(source, settings)
    wanted = settings.document()
    points: dict[str, Any] = {}
    if path.exists():
        document = read(path)
        if (document["figure"], document["settings"]) != (figure.name, wanted):
            raise TableError(f"{path} holds a figure with other settings: choose another folder, or delete it.")
        points = document["points"]
    functions = figure.points(lab)
    for number, (key, run) in enumerate(functions.items(), 1):
        if key not in points:
            points[key] = run()
            values = {"figure": figure.name, "settings": wanted, "points": points, "environment": environment()}
            files.write_json(path, DOCUMENT.wrap(values | {"forecache": __version__}))
        on_point(number, len(functions))
    return read(path)


def read(path: Path) -> dict[str, Any]:
    """The document of a figure's file. Raises TableError, which says what is wrong with it."""
    with refusing(path, TableError, "figure", "Delete it, and measure the figure again"):
        return DOCUMENT.fields(files.document(path, 256 * 2**20), KEYS)
