"""Runs that are written to a folder."""

from dataclasses import dataclass, field

import torch

import forecache as fc
from forecache.sampling import runs
from forecache.zoo import load_digits


@dataclass
class Recording:
    """A source that notes the number of steps of every generation."""

    source: object = field(default_factory=load_digits)
    steps: list = field(default_factory=list)

    @property
    def target(self):
        return self.source.target

    @property
    def classes(self):
        return self.source.classes

    def generate(self, labels, how, first_index=0, on_step=None):
        self.steps.append(how.num_steps)
        return self.source.generate(labels, how, first_index, on_step)


def test_a_comparison_is_timed_on_a_warm_model(tmp_path):
    """A first call is slow, and would be counted against the plan; the images are the same with and without it."""
    source, settings = Recording(), runs.Settings((3, 1), 4, 1.5, 7, 16)
    plan = fc.fora(2).plan(fc.grid(source.target, 4))
    alone = runs.sample_to(tmp_path / "alone", source, plan, settings, model="digits")
    assert source.steps == [4]
    compared = runs.sample_to(tmp_path / "compared", source, plan, settings, model="digits", compare=True)
    assert source.steps[1:] == [2, 4, 4]
    assert "time_ratio" not in alone.record
    assert compared.record["time_ratio"] > 0
    first, second = ((tmp_path / name / "00001.png").read_bytes() for name in ("alone", "compared"))
    assert first == second
    assert torch.equal(runs.generate(source, plan, settings).images, runs.generate(source, plan, settings).images)
