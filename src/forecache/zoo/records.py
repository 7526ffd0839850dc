"""The record of a bundled model: everything that ships with it, so that other packages need not know it by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from forecache.errors import InputError
from forecache.evaluate.extractors import ExtractorOpener
from forecache.evaluate.reference import Reference
from forecache.sampling.sources import Condition, Source

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Record:
    """A bundled model and what ships with it.

    name: how commands, tables and files name the model, its extractor and its reference
    open: (dtype, device) -> the model, ready to sample from, with its judge: `features`, `recognised`, ...
    extractor: opens the judge as an extractor of `forecache.evaluate`
    reference: opens the test set's features, as the extractor sees them
    metrics: the metrics that its judge and its images allow, by name
    classes: number of classes, labels 0 to classes - 1; 0 for a text-to-image model
    prompts: texts to sample when none are given; empty for a model of classes
    guidance: classifier-free guidance scale of its figures, statistics and routers
    steps: sampling steps of its figures
    ask: what the comparison page calls its input
    example: an input for the comparison page: labels with commas between, or texts, one a line
    """

    name: str
    open: Callable[[torch.dtype, str], Source]
    extractor: ExtractorOpener
    reference: Callable[[], Reference]
    metrics: tuple[str, ...]
    classes: int
    guidance: float
    steps: int
    ask: str
    example: str
    prompts: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return ASSETS / self.name

    @property
    def card(self) -> Path:
        """The model card: how it was trained, what it can do."""
        return self.folder / "README.md"

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Every class, or every default prompt."""
        return tuple(range(self.classes)) or self.prompts

    @property
    def statistics(self) -> Mapping[int, Path]:
        """The bundled statistics by number of steps, for `forecache.Statistics.load`."""
        return _numbered(self.folder, "statistics-*.safetensors")

    @property
    def routers(self) -> Mapping[int, Path]:
        """The bundled routers by caching level, the percentage of cells that they skip, for `forecache.l2c`."""
        return _numbered(self.folder, "router-*.safetensors")

    @property
    def tuned_folder(self) -> Path:
        """The folder of the plans that `forecache tune` found for the model: ``plan-<computed>-of-<steps>.json``."""
        return self.folder / "tuned"

    def statistics_path(self, num_steps: int) -> Path:
        """The bundled statistics for a number of steps; InputError if there are none."""
        if num_steps not in self.statistics:
            raise InputError(
                f"{self.name} comes with statistics for {_listed(self.statistics)} steps, not for {num_steps}: make "
                f"them with `forecache calibrate --model {self.name} --steps {num_steps}`."
            )
        return self.statistics[num_steps]

    def router_path(self, level: int) -> Path:
        """The bundled router of a caching level, in percent; InputError if there is none."""
        if level not in self.routers:
            raise InputError(
                f"{self.name} comes with routers for {_listed(self.routers)} % of the cells; {level} was asked for."
            )
        return self.routers[level]

    def tuned_path(self, computed: int, num_steps: int = 20) -> Path:
        """The tuned plan that computes ``computed`` of ``num_steps`` steps, for `forecache.Plan.load`.

        Raises InputError if there is none.
        """
        path = self.tuned_folder / f"plan-{computed}-of-{num_steps}.json"
        if not path.exists():
            plans = self.tuned_folder.glob(f"plan-*-of-{num_steps}.json")
            counts = sorted(int(plan.stem.split("-")[1]) for plan in plans)
            raise InputError(
                f"{self.name} comes with tuned plans for {counts or 'no number of'} computed steps of {num_steps}, not "
                f"for {computed}: find one with `forecache tune --model {self.name} --steps {num_steps}`."
            )
        return path


def _numbered(folder: Path, pattern: str) -> dict[int, Path]:
    """The files of a pattern by the number in their names, in ascending order."""
    paths = {int(path.stem.rsplit("-", 1)[1]): path for path in folder.glob(pattern)}
    return dict(sorted(paths.items()))


def _listed(numbers: Mapping[int, Path]) -> str:
    return " and ".join(map(str, numbers)) or "no"
