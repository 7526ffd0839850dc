"""Reproductions on small random pipelines, judged by projections in the place of Inception."""

from dataclasses import replace

import torch

from forecache import evaluate
from forecache.reproduce import testbed as testbeds
from forecache.reproduce.table import Calibration, bundled, open_table
from forecache.reproduce.worker import Protocol

TABLES = list(bundled())
DIT = [name for name in TABLES if open_table(name).conditions != "prompts"]
SMALL = Protocol(samples=10, batch=5, resamples=20)
ROWS = ["FORA 50 %", "L2C 22 %"]


class Judge:
    """Stands for Inception: fixed projections of the pixels of small images."""

    def __init__(self):
        draw, sizes = torch.Generator().manual_seed(0), {"pool": 6, "spatial": 5, "logits": 4}
        self.projections = {name: torch.randn(192, size, generator=draw) / 14 for name, size in sizes.items()}

    def __call__(self, images):
        flat = images.flatten(1).float() / 255
        return {name: flat @ projection for name, projection in self.projections.items()}


JUDGE = evaluate.Extractor("projections", ("pool", "spatial", "logits"), Judge())


def open_projected(table, on, real, router=None, **options):
    """The testbed of `open_testbed`, judged by projections in the place of Inception."""
    options = testbeds.TestbedOptions(str(real), router=str(router) if router else None, **options)
    opened = testbeds.open_testbed(table, str(on), options, "cpu", judges=False)
    return replace(opened, judges=evaluate.Judges(JUDGE), reference=evaluate.open_reference(real))


def shortened(table):
    """The table with a calibration on three samples."""
    how = Calibration(3, 1.5, True, 9) if table.calibration else None
    return replace(table, calibration=how)


def figures(result):
    return {
        name: {key: figure.value for key, figure in row["figures"].items()} for name, row in result.measured.items()
    }


class Counting:
    """A source that counts its generations."""

    def __init__(self, source):
        self.source, self.calls = source, 0
        self.target, self.classes, self.label = source.target, source.classes, source.label

    def generate(self, *arguments, **more):
        self.calls += 1
        return self.source.generate(*arguments, **more)
